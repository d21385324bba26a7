"""Detection and segmentation from end to end on synthetic sets: they learn, resume, and refuse impossible settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deepcluster.cli.main import main
from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.result import Result, mean_and_std
from deepcluster.evaluate.voc.detection import voc_detection
from deepcluster.evaluate.voc.detector import load_detector
from deepcluster.evaluate.voc.segmentation import voc_segmentation
from deepcluster.evaluate.voc.segmenter import load_segmenter
from deepcluster.evaluate.voc.training import SGDConfig, shuffled_batches
from deepcluster.models.zoo import build_backbone

from ..steps import interrupting
from .make import SIDE, make_shapes

SMALL = {"pool": "align", "min_size": SIDE, "max_size": SIDE, "regions": 16}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("VOC"))


def subject(results: Path, name: str = "convnet", **options: Any) -> Subject:
    torch.manual_seed(3)
    backbone = build_backbone(name, image_size=32, **({"widths": (16, 16, 24), "pools": (1, 2)} | options)).eval()
    return Subject("net", Model(backbone, torch.zeros(0, backbone.dim)), "cpu", results)


def detect(results: Path, data: Path, iterations: int = 4, **more: Any) -> Result:
    values: dict[str, Any] = {
        "split": "train",
        "test_split": "val",
        "iterations": iterations,
        "batch": 2,
        "lr": 0.01,
        **SMALL,
    }
    values |= {"anchors": (12, 20)} | more
    return voc_detection(subject(results), data, **values)


def segment(results: Path, data: Path, iterations: int = 4, **more: Any) -> Result:
    values: dict[str, Any] = {"crop": 40, "scale": (0.8, 1.2), "iterations": iterations, "batch": 4, "lr": 0.05} | more
    return voc_segmentation(subject(results), data, **values)


@pytest.mark.parametrize(
    ("protocol", "run"),
    [pytest.param("voc-detection", detect, marks=pytest.mark.slow), ("voc-segmentation", segment)],
)
def test_interrupted_and_resumed_is_equal_to_the_bit(tmp_path: Path, shapes: Path, protocol: str, run: Any) -> None:
    whole = run(tmp_path / "whole", shapes, draws=2)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", shapes, draws=2, screen=interrupting(2))
    assert len(list((tmp_path / "parts").glob(f"{protocol}-*.state"))) == 1
    with pytest.raises(Interrupted):  # in the second draw
        run(tmp_path / "parts", shapes, draws=2, screen=interrupting(2 + 1))
    parts = run(tmp_path / "parts", shapes, draws=2)
    assert parts.scores == whole.scores and parts.draws == whole.draws
    assert not list((tmp_path / "parts").glob("*.state"))
    ours, theirs = ([load_file(file) for file in trained(result)] for result in (parts, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    first, second = ours
    assert any(not torch.equal(first[key], second[key]) for key in first)  # draws differ


def trained(result: Result) -> list[Path]:
    """The files of the networks of all draws, the first draw's first."""
    file = Path(result.settings["file"])
    return sorted(file.parent.glob(f"{file.stem}*.safetensors"), key=lambda path: len(path.stem))


def test_other_settings_are_not_resumed(tmp_path: Path, shapes: Path) -> None:
    with pytest.raises(Interrupted):
        segment(tmp_path, shapes, screen=interrupting(2))
    other = segment(tmp_path, shapes, seed=1)
    assert other.scores == segment(tmp_path / "fresh", shapes, seed=1).scores


@pytest.mark.slow
def test_detection_learns_and_records_its_settings(tmp_path: Path, shapes: Path) -> None:
    result = detect(tmp_path, shapes, iterations=56)
    assert result.scores["map"] > 0.5
    assert result.scores["map"] == pytest.approx((result.scores["ap_cat"] + result.scores["ap_dog"]) / 2)
    assert result.settings["images_data"] == 15 and result.settings["images_test"] == 8
    assert list(result.settings["left_out"]) == ["JPEGImages/003.jpg"]
    assert result.settings["drops"] == (40,) and result.settings["iterations"] == 56
    detector = load_detector(result.settings["file"])
    found = detector.find(np.array(Image.open(shapes / "JPEGImages/017.jpg")))
    assert found["labels"][0] == "cat"


def test_segmentation_learns_and_frozen_convolutions_do_not_change(tmp_path: Path, shapes: Path) -> None:
    result = segment(tmp_path / "all", shapes, iterations=60)
    assert result.scores["miou"] > 0.5 and result.scores["pixel_accuracy"] > 0.8
    assert {"iou_background", "iou_cat", "iou_dog"} <= set(result.scores)
    net = load_segmenter(result.settings["file"])
    mask = net.segment(np.array(Image.open(shapes / "JPEGImages/017.jpg")))
    assert mask.shape == (SIDE, SIDE) and net.classes[7] == "cat" and (mask == 8).any()
    frozen = segment(tmp_path / "fc", shapes, iterations=3, train="fc6-8")
    assert frozen.settings["train"] == "fc6-8" and "convolutions are frozen" in frozen.settings["protocol"]
    kept = load_file(frozen.settings["file"])
    moved = load_file(result.settings["file"])
    begun = subject(tmp_path).backbone.trunk.get_submodule("features").state_dict()
    key = "maps.parts.0.0.0.weight"
    assert torch.equal(kept[key], begun["0.0.weight"]) and not torch.equal(moved[key], begun["0.0.weight"])


@pytest.mark.slow
def test_fast_rcnn_on_given_regions_with_frozen_convolutions(tmp_path: Path, shapes: Path) -> None:
    """Fast R-CNN with the true boxes and noise as regions, only its head learned."""
    random = np.random.default_rng(1)
    regions = {}
    for file in (shapes / "SegmentationClass").iterdir():
        y, x = np.nonzero(~np.isin(np.array(Image.open(file)), (0, 255)))
        true = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        corners = random.integers(0, SIDE - 12, (12, 2))
        noise = np.concatenate([corners, corners + random.integers(8, 12, (12, 2))], 1)
        regions[file.stem] = np.concatenate([[true], noise]).astype(np.float32)
    np.savez(tmp_path / "p.npz", **regions)  # type: ignore[arg-type]
    more: dict[str, Any] = {"head": "fast", "anchors": (), "train": "fc6-8", "proposals": (tmp_path / "p.npz",)}
    result = detect(tmp_path, shapes, 60, **more)
    assert result.scores["map"] > 0.5
    kept = load_file(result.settings["file"])
    expected = subject(tmp_path).backbone.trunk.get_parameter("features.0.0.weight")
    assert torch.equal(kept["maps.parts.0.0.0.weight"], expected)
    assert not any(key.startswith("rpn.") for key in kept)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("name a file with --proposals", {"head": "fast"}),
        ("proposes regions itself", {"proposals": ("p.npz",)}),
        ("no fc6 and fc7", {"redraw": True}),
        ("use --pool align", {"fpn": True, "pool": "max"}),
        ("leave out --fpn", {"fpn": True}),
        ("leave out --anchors", {"head": "fast", "anchors": (8,), "proposals": ("p.npz",)}),
        ("choose one of all, fc6-8", {"train": "fc8"}),
        ("--draws 0 is too few", {"draws": 0}),
        ("--ap 'coco' does not exist", {"ap": "coco"}),
        ("has no split 'test'", {"test_split": "test"}),
    ],
)
def test_detection_refuses(tmp_path: Path, shapes: Path, words: str, more: dict[str, Any]) -> None:
    with pytest.raises(DeepClusterError, match=words):
        detect(tmp_path, shapes, **more)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("no fc6 and fc7", {"redraw": True}),
        ("has stride 4, not 16", {"stride": 16}),
        ("two factors above 0", {"scale": (2.0, 1.0)}),
        ("choose one of all, fc6-8", {"train": "fc8"}),
        ("--draws 0 is too few", {"draws": 0}),
        ("lower --lr", {"iterations": 9, "lr": 1e30}),
        ("--iterations 0 is too few", {"iterations": 0}),
    ],
)
def test_segmentation_refuses(tmp_path: Path, shapes: Path, words: str, more: dict[str, Any]) -> None:
    with pytest.raises(DeepClusterError, match=words):
        segment(tmp_path, shapes, **more)


def test_every_epoch_shows_every_image_once() -> None:
    stream = shuffled_batches([4, 7, 9, 11, 12], 3, seed=0, step=0)
    batches = [next(stream) for _ in range(20)]
    shown = [pair for batch in batches for pair in batch]
    assert [epoch for _, epoch in shown] == sorted(epoch for _, epoch in shown)
    for epoch in range(12):
        assert sorted(image for image, of in shown if of == epoch) == [4, 7, 9, 11, 12]
    orders = {tuple(image for image, of in shown if of == epoch) for epoch in range(12)}
    assert len(orders) > 6
    for step in (1, 7, 15):
        assert next(shuffled_batches([4, 7, 9, 11, 12], 3, seed=0, step=step)) == batches[step]


def test_learning_rate_drops_and_biases_learn_twice_as_fast() -> None:
    config = SGDConfig(70_000, 1, 0.001, (50_000,))
    assert config.learning_rate(49_999) == 0.001 and config.learning_rate(50_000) == pytest.approx(0.0001)
    groups = config.optimizer(torch.nn.Linear(2, 3)).param_groups
    assert [(group["factor"], group["params"][0].ndim) for group in groups] == [(1.0, 2), (2.0, 1)]


def test_mean_and_std_over_draws() -> None:
    scores = mean_and_std([{"map": 0.1}, {"map": 0.3, "ap_x": 0.5}])
    spread = pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert scores == {"map": pytest.approx(0.2), "map_std": spread, "ap_x": 0.5}


def test_command_line(tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["convnet", "--untrained", "--image-size", "32", "--data", str(shapes), "--out", str(tmp_path), "--json"]
    detecting = [
        *common,
        "--split",
        "train",
        "--test-split",
        "val",
        "--min-size",
        "48",
        "--anchors",
        "12",
        "--iterations",
    ]
    assert main(["evaluate", "convnet", "voc-detection", *common[1:], "--split", "nothing"]) == 2
    assert "has no split 'nothing'" in capsys.readouterr().err
    assert main(["evaluate", "convnet", "voc-detection", *detecting[1:], "2", "--regions", "8"]) == 0
    assert (tmp_path / "voc-detection.json").is_file() and '"max_size": 80' in capsys.readouterr().out
    segmenting = ["--crop", "32", "--batch", "2", "--iterations", "2"]
    assert main(["evaluate", "convnet", "voc-segmentation", *common[1:], *segmenting]) == 0
    assert len(list(tmp_path.glob("voc-segmentation-*.safetensors"))) == 1
    for protocol in ("voc-detection", "voc-segmentation"):
        assert main(["evaluate", "convnet", protocol, "--untrained"]) == 2
        assert "--data must be given" in capsys.readouterr().err


@pytest.mark.slow
def test_blood_cells_are_detected(tmp_path: Path, shared_data: Path) -> None:
    """364 microscope images (BCCD), from random weights, at 192 px: minutes on one core."""
    net = subject(tmp_path, widths=(16, 32, 64, 128, 128), pools=(1, 3, 5))
    sizes: dict[str, Any] = {"min_size": 192, "max_size": 384, "anchors": (16, 32, 64), "regions": 64}
    data = shared_data / "voc/bccd.tar"
    result = voc_detection(net, data, split="train", iterations=300, batch=2, lr=0.01, **sizes)
    assert result.scores["ap_WBC"] > 0.7 and result.scores["ap_RBC"] > 0.5 and result.scores["map"] > 0.4


@pytest.mark.slow
def test_three_images_of_voc_are_memorized(tmp_path: Path, shared_data: Path) -> None:
    values: dict[str, Any] = {
        "split": "all",
        "test_split": "all",
        "crop": 160,
        "scale": (1.0, 1.0),
        "batch": 3,
        "lr": 0.05,
    }
    result = voc_segmentation(subject(tmp_path), shared_data / "voc/voc2011-sample.tar", iterations=150, **values)
    assert result.scores["pixel_accuracy"] > 0.6  # background alone is 0.53

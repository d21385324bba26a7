"""Anchors, pooled regions and the networks around them, each against arithmetic on the single cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat
from torchvision.models.detection.image_list import ImageList

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.tensor_file import save_tensors
from deepcluster.evaluate.voc.detection import mirror_boxes, read_proposals
from deepcluster.evaluate.voc.detector import (
    Anchors,
    Detector,
    DetectorConfig,
    RegionPool,
    keeps_fully_connected,
    load_detector,
    near_objects,
)
from deepcluster.evaluate.voc.maps import Grid
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone

CLASSES = ("ant", "bee")


def built(name: str, size: int = 32, **options: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(name, image_size=size, **options).eval()  # type: ignore[arg-type]


def test_anchors_are_centered_on_cells() -> None:
    anchors = Anchors([Grid(16, 15.0), Grid(32, 0.0)], [(32, 64), (128, 256)])
    maps = [torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 1, 1)]
    found = anchors(ImageList(torch.zeros(2, 3, 64, 64), [(60, 64), (64, 64)]), maps)
    assert len(found) == 2 and anchors.num_anchors_per_location() == [6, 6]
    expected = []
    for grid, sides, (rows, columns) in ((Grid(16, 15.0), (32, 64), (2, 3)), (Grid(32, 0.0), (128, 256), (1, 1))):
        for row in range(rows):
            for column in range(columns):
                x, y = grid.first + 0.5 + grid.stride * column, grid.first + 0.5 + grid.stride * row
                for ratio in (0.5, 1.0, 2.0):  # height over width
                    for side in sides:
                        w, h = side / ratio**0.5, side * ratio**0.5
                        expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize("grid", [Grid(8, 3.5), Grid(16, 15.0), Grid(4, 0.0)])
def test_regions_are_pooled_where_the_cells_lie(grid: Grid) -> None:
    """A map whose every cell holds its own place in the image: a pooled region must tell where the region is."""
    place = grid.first + grid.stride * torch.arange(12).float()
    cells = torch.stack([place.expand(12, 12), place[:, None].expand(12, 12)])[None]  # x, y
    low, high = float(place[2]) + 0.5, float(place[8]) + 0.5
    box = torch.tensor([[low, low, high, high], [low, low, low + grid.stride, high]])
    aligned = RegionPool(grid, 3, "align")({"0": cells}, [box], [(999, 999)])
    third = (high - low) / 3
    for bin_ in range(3):  # the mean over a bin is the ramp in its middle, in continuous coordinates
        assert float(aligned[0, 0, 0, bin_]) == pytest.approx(low + third * (bin_ + 0.5) - 0.5, abs=1e-3)
        assert float(aligned[1, 1, bin_, 0]) == pytest.approx(low + third * (bin_ + 0.5) - 0.5, abs=1e-3)
    first, last = int(low), int(high) - 1
    largest = RegionPool(grid, 1, "max")({"0": cells}, [box[:1]], [(999, 999)])
    nearest = place[int(np.abs(place.numpy() - last).argmin())]
    assert float(largest[0, 0, 0, 0]) == float(nearest)
    smallest = -RegionPool(grid, 1, "max")({"0": -cells}, [box[:1]], [(999, 999)])
    assert float(smallest[0, 0, 0, 0]) == float(place[int(np.abs(place.numpy() - first).argmin())])


def test_background_is_learned_from_regions_near_objects() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 5, 10, 15], [9, 9, 19, 19], [50, 50, 60, 60]])
    assert near_objects(boxes, truth).tolist() == boxes[:2].tolist()
    assert len(near_objects(boxes[2:], truth)) == 2 and len(near_objects(boxes, truth[:0])) == 4  # never none at all


def test_mirrored_boxes_hold_the_same_pixels() -> None:
    image = torch.arange(7 * 9).view(7, 9)
    boxes = torch.tensor([[1.0, 2, 4, 6], [0, 0, 9, 7]])
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in zip(
        boxes.int().tolist(), mirror_boxes(boxes, 9).int().tolist(), strict=True
    ):
        assert torch.equal(image.flip(1)[v0:v1, u0:u1].flip(1), image[y0:y1, x0:x1])


@pytest.mark.slow
def test_fc6_and_fc7_start_as_the_backbones_where_they_fit() -> None:
    plan = DetectorConfig(min_size=96, max_size=128)
    fitting, small = built("alexnet", 224), built("alexnet", 63)
    assert keeps_fully_connected(fitting, plan) and not keeps_fully_connected(small, plan)
    assert not keeps_fully_connected(fitting, DetectorConfig(redraw=True)) and not keeps_fully_connected(
        built("convnet"), plan
    )
    detector = Detector(fitting, CLASSES, plan).eval()
    region = torch.randn(2, 256, 6, 6)
    with torch.no_grad():
        expected = F.relu(fitting.trunk.get_submodule("classifier")(region.flatten(1)))
        torch.testing.assert_close(detector.heads.box_head(region), expected)
    assert Detector(small, CLASSES, plan).heads.box_head[1].in_features == 256 * 36
    assert (
        DetectorConfig().sides == (128, 256, 512)
        and plan.sides == (20, 41, 82)
        and DetectorConfig(anchors=(7,)).sides == (7,)
    )


@pytest.mark.parametrize(
    ("name", "options", "plan"),
    [
        ("convnet", {"widths": (8, 8, 16), "sobel": "paper"}, {}),
        ("convnet", {"widths": (8, 8, 16), "sobel": "deepercluster"}, {"head": "fast"}),
        ("resnet18", {"stem": "imagenet"}, {"regions": 8}),
        ("resnet18", {"stem": "imagenet", "sobel": "paper"}, {"fpn": True, "regions": 8}),
    ],
)
def test_every_network_trains_and_detects(
    tmp_path: Path, name: str, options: dict[str, Any], plan: dict[str, Any]
) -> None:
    config: dict[str, Any] = {"pool": "align", "min_size": 64} | plan
    detector = Detector(built(name, 64, **options), CLASSES, DetectorConfig(**config))
    if detector.rpn is not None:  # fewer regions, for speed
        detector.rpn._pre_nms_top_n = detector.rpn._post_nms_top_n = {"training": 30, "testing": 12}
    images = [torch.rand(3, 50, 64), torch.rand(3, 70, 60)]
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[1.0, 9, 30, 60], [20, 20, 55, 66]]), "labels": torch.tensor([2, 1])},
    ]
    regions = [torch.tensor([[3.0, 3, 42, 42], [10, 10, 30, 30]])] * 2 if plan.get("head") == "fast" else None
    statistics = {key: value.clone() for key, value in detector.named_buffers()}
    detector.train()
    losses = detector(images, targets, regions)
    assert len(losses) == (2 if regions else 4)
    sum(losses.values()).backward()
    without = [key for key, weight in detector.named_parameters() if weight.grad is None]
    assert not without
    assert all(torch.equal(value, statistics[key]) for key, value in detector.named_buffers())
    picture = (images[0].permute(1, 2, 0) * 255).byte().numpy()
    given = None if regions is None else regions[0].numpy()
    found = detector.find(picture, given)
    assert found["boxes"].shape == (len(found["labels"]), 4) and (np.diff(found["scores"]) <= 0).all()
    assert (found["boxes"] >= 0).all() and (found["boxes"][:, [0, 2]] <= 64).all() and (found["boxes"] <= 64).all()
    loaded = load_detector(save_tensors(tmp_path / "d.safetensors", "detector", detector.about, detector.state_dict()))
    if loaded.rpn is not None:
        loaded.rpn._pre_nms_top_n = loaded.rpn._post_nms_top_n = {"training": 30, "testing": 12}
    again = loaded.find(picture, given)
    np.testing.assert_array_equal(again["boxes"], found["boxes"])
    assert again["labels"] == found["labels"]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="leave out --fpn"):
        Detector(built("convnet"), CLASSES, DetectorConfig(fpn=True, pool="align"))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for file in ("x.safetensors", "y.safetensors"):
        with pytest.raises(DeepClusterError, match="as a detector"):
            load_detector(tmp_path / file)


def test_proposals_from_both_kinds_of_file(tmp_path: Path) -> None:
    a, b = np.array([[0, 1, 5, 6.0]]), np.array([[2, 2, 9, 9.0], [0, 0, 3, 4]])
    np.savez(tmp_path / "p.npz", a=a)
    cells, names = np.empty((1, 1), object), np.empty((1, 1), object)
    cells[0, 0] = np.array([[y0 + 1, x0 + 1, y1, x1] for x0, y0, x1, y1 in b])  # 1-based, inclusive, rows first
    names[0, 0] = "b"
    savemat(tmp_path / "p.mat", {"images": names, "boxes": cells})
    found = read_proposals([tmp_path / "p.npz", tmp_path / "p.mat"], ["b", "a"])
    np.testing.assert_array_equal(found[0], b)
    np.testing.assert_array_equal(found[1], a)
    with pytest.raises(DeepClusterError, match="no proposals for 1 of 2 images, such as c"):
        read_proposals([tmp_path / "p.npz"], ["a", "c"])
    np.savez(tmp_path / "q.npz", a=np.zeros((3, 5)))
    (tmp_path / "r.npz").write_bytes(b"PK")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], object))
    for file, words in (
        ("q.npz", "not \\(P, 4\\) numbers"),
        ("r.npz", "cannot be read"),
        ("pickled.npz", "cannot be read"),
    ):
        with pytest.raises(DeepClusterError, match=words):
            read_proposals([tmp_path / file], ["a"])

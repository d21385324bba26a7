"""Fully convolutional networks and their score: against the linear layers they came from, NumPy and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import nn

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.tensor_file import save_tensors
from deepcluster.evaluate.voc.annotation import VOID
from deepcluster.evaluate.voc.maps import Grid
from deepcluster.evaluate.voc.segmentation import confusion_matrix, iou_scores, random_crop
from deepcluster.evaluate.voc.segmenter import (
    PIXELS,
    FullyConvolutional,
    Segmenter,
    load_segmenter,
    resample,
)
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone

CLASSES = ("ant", "bee")


@pytest.fixture(scope="module")
def alexnet() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("alexnet", image_size=127, sobel="paper").eval()  # its last map is 3 x 3


def test_iou_matches_sklearn() -> None:
    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 4, (6, 20, 30)), random.integers(0, 4, (6, 20, 30))
    truth[random.random(truth.shape) < 0.2] = VOID
    counts = sum(confusion_matrix(one, other, 4) for one, other in zip(truth, guess, strict=True))
    flat = truth != VOID
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(truth[flat], guess[flat], labels=range(4)))
    scores = iou_scores(np.asarray(counts), ["background", "a", "b", "c"])
    theirs = metrics.jaccard_score(truth[flat], guess[flat], average=None, labels=range(4))
    np.testing.assert_allclose([scores[f"iou_{name}"] for name in ("background", "a", "b", "c")], theirs)
    assert scores["miou"] == pytest.approx(theirs.mean())
    assert scores["pixel_accuracy"] == pytest.approx((truth == guess)[flat].mean())


def test_absent_classes_are_left_out_and_wrong_guesses_are_not() -> None:
    truth, guess = np.array([[0, 0, 1, VOID]]), np.array([[0, 2, 1, 3]])
    scores = iou_scores(confusion_matrix(truth, guess, 4), ["background", "a", "b", "c"])
    assert scores == {
        "miou": pytest.approx((1 / 2 + 1 + 0) / 3),
        "pixel_accuracy": pytest.approx(2 / 3),
        "iou_background": 0.5,
        "iou_a": 1.0,
        "iou_b": 0.0,
    }


def test_fc6_and_fc7_match_the_backbones_linear_layers(alexnet: Backbone) -> None:
    """Over a map of just their size, the convolutions give in one cell what the linear layers give."""
    net = Segmenter(alexnet, CLASSES).eval()
    redrawn = Segmenter(alexnet, CLASSES, redraw=True).eval()
    torch.manual_seed(0)
    image = torch.randn(1, 3, 127, 127)
    with torch.no_grad():
        cells = net.maps(image)[-1]
        assert cells.shape == (1, 256, 3, 3)
        heads: list[Any] = [net.head, redrawn.head]
        hidden, other = (head.fc7(F.relu(head.fc6(head.padding(cells)))) for head in heads)
        expected = alexnet(image)
    torch.testing.assert_close(hidden[..., 1, 1], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(other[..., 1, 1], expected, atol=1e-2)
    assert net.grid == Grid(32, 31.0)  # conv 15, the last pool adds 16, a side of 3 nothing
    assert hidden.shape[2:] == cells.shape[2:]


def test_scores_of_an_even_kernel_lie_between_cells(alexnet: Backbone) -> None:
    net = Segmenter(alexnet, CLASSES)
    head = net.head
    assert isinstance(head, FullyConvolutional)
    head.side = 6
    assert head.grid(Grid(32, 31.0)) == Grid(32, 47.0)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_finer_maps_add_their_scores(alexnet: Backbone, stride: int) -> None:
    torch.manual_seed(1)
    net = Segmenter(alexnet, CLASSES, stride=stride).eval()
    nn.init.normal_(net.head.get_parameter("score.weight"))
    image = torch.randn(1, 3, 100, 140)
    with torch.no_grad():
        begun = net(image)
        assert begun.shape == (1, 3, 100, 140)
        grids = [about.grid.stride for about in net.maps.maps]
        assert grids == {32: [32], 16: [16, 32], 8: [8, 16, 32]}[stride] and len(net.skips) == len(grids) - 1
        for skip in net.skips:
            assert not skip.get_parameter("weight").any()  # it starts as the coarser network
            nn.init.constant_(skip.get_parameter("bias"), 2.0)
        torch.testing.assert_close(net(image), begun + 2.0 * len(net.skips))


def test_resampling_reproduces_a_ramp() -> None:
    """A ramp sampled at the cells of any grid is the same ramp at the pixels between them."""
    grid = Grid(16, 15.0)
    place = 15.0 + 16 * torch.arange(6)
    scores = (place[:, None] + 3 * place[None]).expand(1, 1, 6, 6)
    pixels = resample(scores, grid, (90, 90), PIXELS)[0, 0]
    inside = torch.arange(15, 90).float()
    torch.testing.assert_close(pixels[15:, 15:], inside[:, None] + 3 * inside[None])


def test_other_networks_get_a_head_and_refuse_impossible_strides(tmp_path: object) -> None:
    convnet = build_backbone("convnet", image_size=32, widths=(8, 8, 16)).eval()
    net = Segmenter(convnet, CLASSES).eval()
    torch.manual_seed(0)
    image = torch.randint(0, 256, (37, 50, 3), dtype=torch.uint8).numpy()
    assert net.segment(image).shape == (37, 50)
    with pytest.raises(DeepClusterError, match="has stride 4, not 8"):
        Segmenter(convnet, CLASSES, stride=8)
    with pytest.raises(DeepClusterError, match="32, 16 or 8, not 4"):
        Segmenter(build_backbone("alexnet", image_size=63), CLASSES, stride=4)
    file = save_tensors(tmp_path / "net.safetensors", "segmenter", net.about, net.state_dict())  # type: ignore[operator]
    again = load_segmenter(file)
    np.testing.assert_array_equal(again.segment(image), net.segment(image))
    assert again.classes == CLASSES
    (tmp_path / "broken.safetensors").write_bytes(b"x")  # type: ignore[operator]
    with pytest.raises(DeepClusterError, match="as a segmenter"):
        load_segmenter(tmp_path / "broken.safetensors")  # type: ignore[operator]


def test_training_keeps_the_backbones_statistics() -> None:
    net = Segmenter(build_backbone("convnet", image_size=32, widths=(8, 16)), CLASSES).train()
    before = [value.clone() for value in net.maps.buffers()]
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, old) for value, old in zip(net.maps.buffers(), before, strict=True))
    assert any(part.training for part in net.head.modules())


@pytest.mark.parametrize("crop", [16, 80])
def test_image_and_mask_are_cropped_alike(crop: int) -> None:
    """An image whose brightness is its class: after any cut, color and class still agree."""
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[10:30, 20:45] = 3
    mask[:5] = VOID
    image = torch.where(mask == 3, 255, 0).to(torch.uint8).expand(3, 40, 60)
    pieces = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        half = (0.5,) * 3
        piece, truth = random_crop(image, mask, half, half, generator, crop=crop, scale=(1.0, 1.0), flip=True)
        assert piece.shape == (3, crop, crop) and truth.shape == (crop, crop)
        assert (piece[0][truth == 3] == 1).all() and (piece[0][truth == 0] == -1).all()
        beyond = truth == VOID
        assert set(truth.flatten().tolist()) <= {0, 3, VOID} and set(piece[0][beyond].tolist()) <= {0.0, -1.0}
        if crop == 80:
            assert int((truth != VOID).sum()) == int((mask != VOID).sum())
        pieces.add(truth.numpy().tobytes())
    assert len(pieces) > 6


def test_scaling_adds_no_classes_and_flips_both() -> None:
    mask = torch.zeros(30, 30, dtype=torch.uint8)
    mask[:, 15:] = 7
    image = torch.where(mask == 7, 255, 0).to(torch.uint8).expand(3, 30, 30)
    sizes, sides = set(), set()
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        mean, std = (0.0,) * 3, (1.0,) * 3
        piece, truth = random_crop(image, mask, mean, std, generator, crop=64, scale=(0.5, 2.0), flip=True)
        assert set(truth.flatten().tolist()) <= {0, 7, VOID}
        sizes.add(int((truth != VOID).sum()))
        assert float(piece[0][truth == 7].mean()) > 0.9 and float(piece[0][truth == 0].mean()) < 0.1
        rows = truth[(truth == 7).any(1)][0]
        sides.add(bool((rows == 7).nonzero()[0] < (rows == 0).nonzero()[0]))
    assert len(sizes) > 5 and sides == {True, False}

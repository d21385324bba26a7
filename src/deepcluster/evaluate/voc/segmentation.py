"""Protocol `voc-segmentation`: a fully convolutional network is trained on a backbone and scored by mean IoU.

The networks are in segmenter.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.options import check_choice, check_counts
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.voc.annotation import VOID
from deepcluster.evaluate.voc.dataset import open_voc
from deepcluster.evaluate.voc.segmenter import Segmenter
from deepcluster.evaluate.voc.training import Examples, SGDConfig, Trained, normalize, train_and_score
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.random import seeded

CROP = 5
"""Purpose of the key of random crops."""


def voc_segmentation(
    subject: Subject,
    data: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    test_split: str = "val",
    train: Trained = "all",
    stride: int | None = None,
    redraw: bool = False,
    crop: int = 480,
    scale: tuple[float, float] = (0.5, 1.5),
    flip: bool = True,
    iterations: int = 30_000,
    batch: int = 20,
    lr: float = 0.001,
    drops: tuple[int, ...] = (),
    momentum: float = 0.9,
    weight_decay: float = 0.0005,
    draws: int = 1,
    seed: int = 0,
    screen: Screen | None = None,
) -> Result:
    """Mean IoU of a fully convolutional network that is trained on the network, on a PASCAL VOC set.

    Args:
        subject, test, draws, seed, screen: see `evaluate.voc.detection.voc_detection`.
        redraw, flip, momentum, weight_decay: see `evaluate.voc.detection.voc_detection`.
        data: a VOC set: a folder such as VOCdevkit/VOC2012, or a .tar or .zip of it.
        split: images to train on: a list in ImageSets/Segmentation.
        test_split: images to score; VOC does not publish the masks of its test sets, so that the papers score val.
        train: train every weight, or keep the convolutions frozen: the papers' two columns.
        stride: pixels between two scores: 32, 16 or 8 (FCN-32s, -16s, -8s); None = 32 for AlexNet and VGG-16, else
            that of the network's last map, which ResNets can have finer.
        crop: side in pixels of the crops of training images; what lies outside the image is padding and not scored.
        scale: range of the factor that training images are scaled by (arXiv 1606.00915 §4.1.2).
        iterations: SGD steps (FCN-AlexNet names none).
        batch: images of each step, 20 as for FCN-AlexNet (arXiv 1411.4038 §4.3).
        lr: learning rate, fixed at 0.001 for FCN-AlexNet; biases have twice this.
        drops: steps at which it falls to a tenth.

    Raises:
        DeepClusterError: no such set or split, or settings that exclude each other.
        Interrupted: Ctrl-C; called again with the same settings, it continues to the bit.
    """
    check_choice("train", train, get_args(Trained))
    check_counts(draws=draws, crop=crop)
    if redraw and not isinstance(subject.backbone.trunk, ConvThenLinear):
        raise DeepClusterError(f"{subject.backbone.name} has no fc6 and fc7 to redraw: leave out --redraw.")
    if not 0 < scale[0] <= scale[1]:
        raise DeepClusterError(f"--scale takes two factors above 0, the smaller first, not {scale}.")
    crops: dict[str, Any] = {"crop": crop, "scale": scale, "flip": flip}
    sgd = SGDConfig(iterations, batch, lr, tuple(drops), momentum, weight_decay)
    screen = screen or Screen(quiet=True)
    voc = open_voc(data, split, "segmentation")
    test_voc = open_voc(test or data, test_split, "segmentation", voc.classes)
    with preserve_random_state():  # refuses now what it would refuse later
        finest = Segmenter(subject.backbone, voc.classes, stride=stride, redraw=redraw).maps.maps[0].grid.stride
    learned, tested = (Examples(part, subject, screen) for part in (voc, test_voc))
    with screen.bar("masks", len(voc)) as bar:
        images = []
        for index in range(len(voc)):
            if _with_mask(learned, index) is not None:
                images.append(index)
            bar()
    if not images:
        index, reason = next(iter(learned.bad.items()))
        raise DeepClusterError(
            f"No image of {voc.images.name} can be read with its mask ({voc.ids[index]}: {reason}): check that the set"
            " has its SegmentationClass."
        )
    settings = {"stride": finest, "redraw": redraw, **crops}
    weights = "every weight is trained" if train == "all" else "the convolutions are frozen"
    return train_and_score(
        "voc-segmentation",
        f"a fully convolutional network with scores of stride {finest}, {weights}, batch-norm frozen; IoU of each class"
        " over all pixels of all test images, void left out; classes nowhere present are left out of the mean",
        subject,
        learned,
        tested,
        images,
        sgd,
        settings,
        trained=train,
        draws=draws,
        seed=seed,
        screen=screen,
        build=lambda backbone: Segmenter(backbone, voc.classes, stride=stride, redraw=redraw),
        loss=lambda segmenter, seed, batch: _loss(segmenter, learned, crops, seed, batch),
        score=lambda segmenter: _score(segmenter, tested, screen),
    )


def _with_mask(examples: Examples, index: int) -> tuple[Tensor, Tensor] | None:
    """(3, H, W) and (H, W), both uint8; None, and a reason in `bad`, where one of them cannot be read."""
    image = examples.image(index)
    if image is None:
        return None
    try:
        mask = examples.voc.mask(index)
        if image.shape[1:] != mask.shape:
            raise BadImage(f"its mask has {mask.shape} pixels and not {tuple(image.shape[1:])}")
    except BadImage as error:
        examples.bad[index] = str(error)
        return None
    return image, torch.from_numpy(mask).to(image.device)


def _loss(
    segmenter: Segmenter, examples: Examples, crops: dict[str, Any], seed: int, batch: Sequence[tuple[int, int]]
) -> Tensor | None:
    """Mean cross-entropy of the pixels that are not void, of (image, epoch) pairs."""
    images, masks = [], []
    for index, epoch in batch:
        pair = _with_mask(examples, index)
        if pair is not None:
            generator = seeded(seed, CROP, index, epoch)
            image, mask = random_crop(*pair, segmenter.mean, segmenter.std, generator, **crops)
            images.append(image)
            masks.append(mask)
    if not images:
        return None
    scores, truth = segmenter(torch.stack(images)), torch.stack(masks).long()
    return F.cross_entropy(scores, truth, ignore_index=VOID, reduction="sum") / (truth != VOID).sum().clamp(min=1)


def random_crop(
    image: Tensor,
    mask: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
    *,
    crop: int,
    scale: tuple[float, float],
    flip: bool,
) -> tuple[Tensor, Tensor]:
    """A (3, S, S) normalized crop of a (3, H, W) uint8 image and the same crop of its (H, W) mask.

    The image is scaled bilinearly, the mask to the nearest pixel, so that no class appears that was not there.
    """
    low, high = scale
    factor = low + (high - low) * float(torch.rand((), generator=generator))
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    values = normalize(image[None], mean, std)
    classes = mask[None, None].float()
    if (height, width) != tuple(mask.shape):
        values = F.interpolate(values, (height, width), mode="bilinear", antialias=True)
        classes = F.interpolate(classes, (height, width), mode="nearest-exact")
    cropped = values.new_zeros(3, crop, crop)
    truth = mask.new_full((crop, crop), VOID)
    (rows, to_rows), (columns, to_columns) = (_window(side, crop, generator) for side in (height, width))
    cropped[:, to_rows, to_columns] = values[0, :, rows, columns]
    truth[to_rows, to_columns] = classes[0, 0, rows, columns].to(truth.dtype)
    if flip and int(torch.randint(2, (), generator=generator)):
        return cropped.flip(2), truth.flip(1)
    return cropped, truth


def _window(side: int, size: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Of a row of `side` pixels those that are cropped, and their place in a row of `size`."""
    start = int(torch.randint(abs(side - size) + 1, (), generator=generator))
    length = min(side, size)
    moved, full = slice(start, start + length), slice(0, length)
    return (moved, full) if side > size else (full, moved)


@torch.no_grad()
def _score(segmenter: Segmenter, examples: Examples, screen: Screen) -> dict[str, float]:
    """`miou`, `pixel_accuracy` and iou_CLASS over all pixels of a split, each image whole and at its own size."""
    names = ["background", *segmenter.classes]
    counts = np.zeros((len(names), len(names)), np.int64)
    with screen.bar("test images", len(examples.voc)) as bar:
        for index in range(len(examples.voc)):
            pair = _with_mask(examples, index)
            if pair is not None:
                image, mask = pair
                guess = segmenter(normalize(image[None], segmenter.mean, segmenter.std))[0].argmax(0)
                counts += confusion_matrix(mask.cpu().numpy(), guess.cpu().numpy(), len(names))
            bar()
    return iou_scores(counts, names)


def confusion_matrix(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64: pixels of true class i that were given class j, of integers of the same shape; where
    the truth is `VOID` they do not count."""
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * classes + guess[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou_scores(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """`miou`, `pixel_accuracy` and iou_NAME of each class, from a confusion matrix summed over all images. A class that
    no pixel has, neither in truth nor as guess, is left out of the mean; VOC's own test sets show all classes."""
    right = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - right
    iou = {name: float(r / u) for name, r, u in zip(names, right, union, strict=True) if u}
    scores = {
        "miou": float(np.mean(list(iou.values()))) if iou else float("nan"),
        "pixel_accuracy": float(right.sum() / counts.sum()) if iou else float("nan"),
    }
    return scores | {f"iou_{name}": value for name, value in iou.items()}

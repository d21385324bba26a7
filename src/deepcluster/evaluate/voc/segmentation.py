"""Protocol `voc-segmentation`: a fully convolutional network is trained on a backbone and scored by mean IoU.

The networks are in segmenter.py, the score in overlap.py; this file brings images and masks to them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.engine.checkpoint import undisturbed
from deepcluster.engine.log import Screen
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.voc.layout import VOC, open_voc
from deepcluster.evaluate.voc.maps import freeze_norms
from deepcluster.evaluate.voc.masks import VOID
from deepcluster.evaluate.voc.overlap import confusion, overlap_scores
from deepcluster.evaluate.voc.reading import Reader, measured, numbered
from deepcluster.evaluate.voc.segmenter import Plan, Segmenter, build_segmenter, normalized, save_segmenter
from deepcluster.evaluate.voc.steps import BUILD, Recipe, State, digest, learn, mean_and_spread, repeated
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.random import seed_of, seeded

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject
    from deepcluster.models.backbone import Backbone

NAME = "voc-segmentation"
CUT = 5
"""What the keys of random draws are for, beside those of steps.py."""
PAPER = Recipe(30_000, 20, 0.001, ())
"""20 images a step and a fixed rate of 10^-3 as FCN-AlexNet has (arXiv 1411.4038 §4.3); it names no number of steps."""


@dataclass(frozen=True)
class Cutting:
    """How training images and their masks are cut, jointly.

    Attributes:
        crop: side in pixels; what lies beyond the image has no color and is void.
        scale: images are first scaled by a factor drawn between these (arXiv 1606.00915 §4.1.2).
        flip: half of them are mirrored.
    """

    crop: int = 480
    scale: tuple[float, float] = (0.5, 1.5)
    flip: bool = True


class Pairs:
    """Images of a split with their masks.

    Args:
        voc: the split.
        device: where tensors go.
    """

    def __init__(self, voc: VOC, device: str) -> None:
        self.voc = voc
        self.reader = Reader(voc.images, device)

    def read(self, index: int) -> tuple[Tensor, Tensor] | None:
        """(3, H, W) and (H, W), both uint8; None and a note with the reader where one of them cannot be read."""
        image = self.reader.read(index)
        if image is None:
            return None
        try:
            mask = self.voc.mask(index)
            if image.shape[1:] != mask.shape:
                raise BadImage(f"its mask has {mask.shape} pixels and not {tuple(image.shape[1:])}")
        except BadImage as error:
            self.reader.bad[index] = str(error)
            return None
        return image, torch.from_numpy(mask).to(image.device)

    def readable(self, screen: Screen) -> list[int]:
        """The images that can be read with their masks.

        Raises:
            DeepClusterError: there is none.
        """
        found = []
        with screen.bar("images", len(self.voc)) as bar:
            for index in range(len(self.voc)):
                if self.read(index) is not None:
                    found.append(index)
                bar()
        if not found:
            index, reason = next(iter(self.reader.bad.items()))
            raise DeepClusterError(
                f"No image of {self.voc.images.name} can be read with its mask ({self.voc.ids[index]}: {reason}): check"
                " that the set has its SegmentationClass."
            )
        return found


def segmentation(
    subject: Subject,
    data: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    test_split: str = "val",
    train: Literal["all", "fc6-8"] = "all",
    plan: Plan | None = None,
    cutting: Cutting | None = None,
    recipe: Recipe | None = None,
    draws: int = 1,
    seed: int = 0,
    save_minutes: float = 5.0,
    screen: Screen | None = None,
) -> Result:
    """Protocol `voc-segmentation`: IoU of classes, void apart, summed over all pixels of `test_split`, and its mean.

    Args:
        subject: the network whose features are judged.
        data: a VOC set: a folder or .tar.
        test: the set of `test_split`; None = the same.
        split, test_split: names of lists in ImageSets/Segmentation; VOC keeps the masks of its tests to itself, so that
            the papers score val.
        train: "all" learns every weight, "fc6-8" leaves the convolutions as they are.
        plan: of what the segmenter is made.
        cutting: of training images.
        recipe: None = `PAPER`.
        draws: repetitions, with the seeds that follow.
        save_minutes: how often the state of the training is kept.
        screen: for bars; None = silence.

    Raises:
        DeepClusterError: no such set or split, or settings that exclude each other.
    """
    plan, cutting, recipe = plan or Plan(), cutting or Cutting(), recipe or PAPER
    screen = screen or Screen(quiet=True)
    _check(subject.backbone, plan, cutting, train, draws)
    voc = open_voc(data, split, "segmentation")
    tested = open_voc(test or data, test_split, "segmentation", voc.classes)
    with undisturbed():
        made = build_segmenter(subject.backbone, voc.classes, plan)  # refuses now what it would refuse later
    pairs, asked = Pairs(voc, subject.device), Pairs(tested, subject.device)
    images = pairs.readable(screen)
    settings = {
        "data": str(data),
        "split": split,
        "test": str(test or data),
        "test_split": test_split,
        "images_data": len(images),
        "images_test": len(tested),
        "classes": list(voc.classes),
        "stride": made.maps.maps[0].grid.stride,
        "redraw": plan.redraw,
        **dataclasses.asdict(cutting),
        **dataclasses.asdict(recipe),
        "train": train,
        "seed": seed,
        "draws": draws,
        "backbone": subject.backbone.config,
    }
    known = {"weights": digest(subject.backbone), "images": [voc.images.fingerprint(), tested.images.fingerprint()]}
    state = State(subject.results / f"{NAME}.state", settings | known, save_minutes)
    finished = repeated(
        draws,
        seed,
        state,
        prepare=lambda seed: prepared(subject, pairs, images, plan, seed, train),
        teach=lambda network, seed, done: learn(
            network,
            partial(loss_of, network, pairs, cutting, seed),
            images,
            recipe,
            seed=seed,
            state=state,
            done=done,
            screen=screen,
            what="segmenter",
        ),
        score=lambda network: scores_of(network, asked, screen),
        save=lambda network, draw: save_segmenter(network, subject.results / numbered(NAME, draw)),
    )
    settings["left_out"] = {
        part.voc.images.path(index): reason for part in (pairs, asked) for index, reason in part.reader.bad.items()
    }
    settings["protocol"] = _sentence(made, train)
    return Result(NAME, settings, mean_and_spread(finished), finished if draws > 1 else [])


def prepared(subject: Subject, pairs: Pairs, images: Sequence[int], plan: Plan, seed: int, train: str) -> Segmenter:
    """A segmenter at the beginning of its training."""
    with undisturbed():
        torch.manual_seed(seed_of(seed, BUILD))
        begun = measured(subject, pairs.reader, images, seed)
        segmenter = build_segmenter(begun, pairs.voc.classes, plan).to(subject.device)
    segmenter.maps.requires_grad_(train == "all")
    freeze_norms(segmenter.maps)
    return segmenter


def loss_of(
    segmenter: Segmenter, pairs: Pairs, cutting: Cutting, seed: int, chosen: Sequence[tuple[int, int]], step: int
) -> Tensor:
    """Mean cross-entropy of the pixels that are not void, of the chosen (image, epoch)."""
    images, masks = [], []
    for index, epoch in chosen:
        pair = pairs.read(index)
        if pair is not None:
            image, mask = cut(*pair, cutting, segmenter.mean, segmenter.std, seeded(seed, CUT, index, epoch))
            images.append(image)
            masks.append(mask)
    scores, truth = segmenter(torch.stack(images)), torch.stack(masks).long()
    return F.cross_entropy(scores, truth, ignore_index=VOID, reduction="sum") / (truth != VOID).sum().clamp(min=1)


def cut(
    image: Tensor,
    mask: Tensor,
    cutting: Cutting,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A (3, S, S) normalized piece of a (3, H, W) uint8 image and the same piece of its (H, W) mask.

    The image is scaled between its pixels, the mask to the nearest one, so that no class appears that was not there.
    """
    low, high = cutting.scale
    factor = low + (high - low) * float(torch.rand((), generator=generator))
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    values = normalized(image[None], mean, std)
    classes = mask[None, None].float()
    if (height, width) != tuple(mask.shape):
        values = F.interpolate(values, (height, width), mode="bilinear", antialias=True)
        classes = F.interpolate(classes, (height, width), mode="nearest-exact")
    size = cutting.crop
    piece = values.new_zeros(3, size, size)
    truth = mask.new_full((size, size), VOID)
    (rows, into_rows), (columns, into_columns) = (_window(side, size, generator) for side in (height, width))
    piece[:, into_rows, into_columns] = values[0, :, rows, columns]
    truth[into_rows, into_columns] = classes[0, 0, rows, columns].to(truth.dtype)
    if cutting.flip and int(torch.randint(2, (), generator=generator)):
        return piece.flip(2), truth.flip(1)
    return piece, truth


def _window(side: int, size: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Of a row of `side` pixels those that are cut out, and where they come to lie in a row of `size`."""
    start = int(torch.randint(abs(side - size) + 1, (), generator=generator))
    kept = min(side, size)
    inside, whole = slice(start, start + kept), slice(0, kept)
    return (inside, whole) if side > size else (whole, inside)


@torch.no_grad()
def scores_of(segmenter: Segmenter, pairs: Pairs, screen: Screen) -> dict[str, float]:
    """`miou`, `pixel_accuracy` and iou_CLASS over all pixels of a split, each image whole and at its own size."""
    names = ["background", *segmenter.classes]
    counts = np.zeros((len(names), len(names)), np.int64)
    with screen.bar("test images", len(pairs.voc)) as bar:
        for index in range(len(pairs.voc)):
            pair = pairs.read(index)
            if pair is not None:
                image, mask = pair
                guess = segmenter(normalized(image[None], segmenter.mean, segmenter.std))[0].argmax(0)
                counts += confusion(mask.cpu().numpy(), guess.cpu().numpy(), len(names))
            bar()
    return overlap_scores(counts, names)


def _check(backbone: Backbone, plan: Plan, cutting: Cutting, train: str, draws: int) -> None:
    if train not in ("all", "fc6-8"):
        raise DeepClusterError(f"There is nothing to train called {train!r}: use all or fc6-8.")
    if plan.redraw and not isinstance(backbone.trunk, ConvThenLinear):
        raise DeepClusterError(f"{backbone.name} has no fc6 and fc7 to redraw: leave out --redraw.")
    if draws < 1 or cutting.crop < 1:
        raise DeepClusterError("Draws and the side of a crop are counted from 1: raise the one that is less.")
    if not 0 < cutting.scale[0] <= cutting.scale[1]:
        raise DeepClusterError(f"--scale takes two factors above 0, the smaller first, not {cutting.scale}.")


def _sentence(segmenter: Segmenter, train: str) -> str:
    learned = "every weight is learned" if train == "all" else "the convolutions stay as they are"
    finest = segmenter.maps.maps[0].grid.stride
    return (
        f"a fully convolutional network with scores of stride {finest}, {learned}, batch-norm frozen; IoU of each class"
        " over all pixels of all test images, void apart; classes nowhere present are left out of the mean"
    )

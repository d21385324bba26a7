"""Protocol `voc-detection`: a detector is trained on a backbone and scored by VOC's average precision at IoU 1/2.

The networks are in detector.py, the score in average_precision.py; this file brings images to them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepcluster.engine.checkpoint import undisturbed
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.voc.average_precision import DETECTION_RULES, detection_aps, mean_ap
from deepcluster.evaluate.voc.detector import (
    Detector,
    Plan,
    build_detector,
    fully_connected_taken,
    save_detector,
)
from deepcluster.evaluate.voc.layout import VOC, open_voc
from deepcluster.evaluate.voc.maps import freeze_norms
from deepcluster.evaluate.voc.proposals import read_proposals
from deepcluster.evaluate.voc.reading import Reader, measured, numbered
from deepcluster.evaluate.voc.steps import BUILD, Recipe, State, digest, learn, mean_and_spread, repeated
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.random import seed_of, seeded

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject
    from deepcluster.models.backbone import Backbone

NAME = "voc-detection"
FLIP = 4
"""What the keys of random draws are for, beside those of steps.py."""
PAPER = {
    "faster": Recipe(
        70_000, 1, 0.001, (50_000,)
    ),  # arXiv 1506.01497 with its published end-to-end training of VOC 2007
    "fast": Recipe(40_000, 2, 0.001, (30_000,)),  # arXiv 1504.08083 §2.3 and §4.1
}


class Examples:
    """Images of a split with the objects and proposals on them, as a detector takes them.

    Args:
        voc: the split.
        proposals: (P, 4) of each image, or None.
        device: where tensors go.
    """

    def __init__(self, voc: VOC, proposals: list[np.ndarray] | None, device: str) -> None:
        self.voc, self.proposals, self.device = voc, proposals, device
        self.reader = Reader(voc.images, device)

    def regions(self, index: int) -> Tensor | None:
        """(P, 4) proposals, if there are any to be given."""
        return None if self.proposals is None else torch.from_numpy(self.proposals[index]).to(self.device)

    def learnable(self) -> list[int]:
        """Images with an object that is not difficult: a detector learns from those (arXiv 1504.08083, its code)."""
        return [index for index, objects in enumerate(self.voc.objects) if (~objects.difficult).any()]

    def target(self, index: int) -> dict[str, Tensor]:
        """The objects that are not difficult, labels from 1."""
        objects = self.voc.objects[index]
        clear = ~objects.difficult
        return {
            "boxes": torch.from_numpy(objects.boxes[clear]).to(self.device),
            "labels": torch.from_numpy(objects.labels[clear] + 1).to(self.device),
        }


def detection(
    subject: Subject,
    data: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    *,
    split: str = "trainval",
    test_split: str = "test",
    train: Literal["all", "fc6-8"] = "all",
    plan: Plan | None = None,
    proposals: Sequence[Path | str] = (),
    recipe: Recipe | None = None,
    flip: bool = True,
    ap: str = "11-point",
    draws: int = 1,
    seed: int = 0,
    save_minutes: float = 5.0,
    screen: Screen | None = None,
) -> Result:
    """Protocol `voc-detection`: mean over classes of the average precision (AP) of a detector trained on `split`.

    Args:
        subject: the network whose features are judged.
        data: a VOC set: a folder or .tar.
        test: the set of `test_split`; None = the same.
        split, test_split: names of lists in ImageSets/Main.
        train: "all" learns every weight, "fc6-8" leaves the map as it is and learns what stands on it.
        plan: of what the detector is made.
        proposals: files of regions, for the head "fast"; see `read_proposals`.
        recipe: None = that of the paper of the head, in `PAPER`.
        flip: half of the images are mirrored in training.
        ap: "11-point", VOC 2007's rule, or "all-point", that of 2010 and later; see `average_precision`.
        draws: repetitions, with the seeds that follow.
        save_minutes: how often the state of the training is kept.
        screen: for bars; None = silence.

    Raises:
        DeepClusterError: no such set or split, or settings that exclude each other.
    """
    plan = plan or Plan()
    recipe = recipe or PAPER[plan.head]
    screen = screen or Screen(quiet=True)
    _check(subject.backbone, plan, proposals, train, ap, draws)
    voc = open_voc(data, split, "detection")
    tested = open_voc(test or data, test_split, "detection", voc.classes)
    regions: list[list[np.ndarray] | None] = [None, None]
    if plan.head == "fast":
        regions = [read_proposals(proposals, part.ids) for part in (voc, tested)]
    examples, asked = (
        Examples(part, given, subject.device) for part, given in zip((voc, tested), regions, strict=True)
    )
    images = examples.learnable()
    if not images:
        raise DeepClusterError(f"No image of split {split} of {voc.name} has an object to learn from.")
    with undisturbed():
        build_detector(subject.backbone, voc.classes, plan)  # refuses now what it would refuse later
    images = examples.reader.readable(images, screen)
    settings = {
        "data": str(data),
        "split": split,
        "test": str(test or data),
        "test_split": test_split,
        "images_data": len(images),
        "images_test": len(tested),
        "classes": list(voc.classes),
        **dataclasses.asdict(plan),
        **dataclasses.asdict(recipe),
        "train": train,
        "flip": flip,
        "proposals": [str(file) for file in proposals],
        "ap": ap,
        "seed": seed,
        "draws": draws,
        "backbone": subject.backbone.config,
        "fc6_fc7": "begin as the backbone's" if fully_connected_taken(subject.backbone, plan) else "drawn",
    }
    known = {"weights": digest(subject.backbone), "images": [voc.images.fingerprint(), tested.images.fingerprint()]}
    state = State(subject.results / f"{NAME}.state", settings | known, save_minutes)
    finished = repeated(
        draws,
        seed,
        state,
        prepare=lambda seed: prepared(subject, examples, images, plan, seed, train),
        teach=lambda network, seed, done: learn(
            network,
            partial(loss_of, network, examples, seed, flip),
            images,
            recipe,
            seed=seed,
            state=state,
            done=done,
            screen=screen,
            what="detector",
        ),
        score=lambda network: scores_of(network, asked, ap, screen),
        save=lambda network, draw: save_detector(network, subject.results / numbered(NAME, draw)),
    )
    settings["left_out"] = {
        part.voc.images.path(index): reason for part in (examples, asked) for index, reason in part.reader.bad.items()
    }
    settings["protocol"] = _sentence(plan, train, ap)
    return Result(NAME, settings, mean_and_spread(finished), finished if draws > 1 else [])


def prepared(
    subject: Subject, examples: Examples, images: Sequence[int], plan: Plan, seed: int, train: str
) -> Detector:
    """A detector at the beginning of its training."""
    with undisturbed():
        torch.manual_seed(seed_of(seed, BUILD))
        begun = measured(subject, examples.reader, images, seed)
        detector = build_detector(begun, examples.voc.classes, plan).to(subject.device)
    detector.maps.requires_grad_(train == "all")
    freeze_norms(detector)
    return detector


def loss_of(
    detector: Detector, examples: Examples, seed: int, flip: bool, chosen: Sequence[tuple[int, int]], step: int
) -> Tensor:
    """The sum of the losses of the chosen (image, epoch)."""
    images, targets, regions = [], [], []
    for index, epoch in chosen:
        image = examples.reader.read(index)
        if image is None:
            continue
        image = image.float() / 255
        target, given = examples.target(index), examples.regions(index)
        if flip and int(torch.randint(2, (), generator=seeded(seed, FLIP, index, epoch))):
            width = image.shape[2]
            image = image.flip(2)
            target["boxes"] = mirrored(target["boxes"], width)
            given = None if given is None else mirrored(given, width)
        images.append(image)
        targets.append(target)
        regions.append(given)
    losses = detector(images, targets, None if examples.proposals is None else regions)
    return torch.stack(list(losses.values())).sum()


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """(P, 4) boxes on the image turned left to right."""
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], 1)


def recipe_of(
    head: str, *, iterations: int | None, batch: int | None, drops: tuple[int, ...] | None, **others: float
) -> Recipe:
    """The recipe of the paper of a head with other numbers: a training of another length drops its rate at the same
    share of it."""
    paper = PAPER[head]
    steps = iterations if iterations is not None else paper.iterations
    if drops is None:
        drops = tuple(round(steps * drop / paper.iterations) for drop in paper.drops)
    return Recipe(steps, paper.batch if batch is None else batch, drops=drops, **others)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """What was found on one image; see `average_precision.Predicted`."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def scores_of(detector: Detector, examples: Examples, rule: str, screen: Screen) -> dict[str, float]:
    """`map` and ap_CLASS on all images of a split; objects on images that cannot be decoded do not count."""
    found, truth = [], []
    with screen.bar("test images", len(examples.voc)) as bar:
        for index, objects in enumerate(examples.voc.objects):
            image, given = examples.reader.read(index), examples.regions(index)
            bar()
            if image is None:
                continue
            (one,) = detector([image.float() / 255], None, None if given is None else [given])
            boxes, labels, scores = (one[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
            found.append(Boxes(boxes, labels - 1, scores))
            truth.append(objects)
    values = detection_aps(found, truth, len(examples.voc.classes), rule=rule)
    named = {f"ap_{name}": float(value) for name, value in zip(examples.voc.classes, values, strict=True)}
    return {"map": mean_ap(values)} | {name: value for name, value in named.items() if np.isfinite(value)}


def _check(backbone: Backbone, plan: Plan, proposals: Sequence[Any], train: str, ap: str, draws: int) -> None:
    if plan.head == "fast" and not proposals:
        raise DeepClusterError(
            "Fast R-CNN is given its regions: name a file with --proposals, or take --head faster, which finds its own."
        )
    if plan.head == "faster" and proposals:
        raise DeepClusterError("Faster R-CNN proposes regions itself: leave out --proposals, or take --head fast.")
    if plan.redraw and (plan.pyramid or not isinstance(backbone.trunk, ConvThenLinear)):
        raise DeepClusterError("There are no fc6 and fc7 of the backbone's to redraw: leave out --redraw.")
    if plan.pyramid and plan.pool == "max":
        raise DeepClusterError("Regions of a pyramid are pooled at exact places: take --pool align.")
    if plan.anchors and plan.head == "fast":
        raise DeepClusterError("Anchors are for proposing regions, which --head fast does not: leave out --anchors.")
    if train not in ("all", "fc6-8"):
        raise DeepClusterError(f"There is nothing to train called {train!r}: use all or fc6-8.")
    if ap not in DETECTION_RULES:
        raise DeepClusterError(f"There is no rule {ap!r} for average precision: use {' or '.join(DETECTION_RULES)}.")
    if draws < 1 or min(plan.min_size, plan.max_size, plan.regions, *plan.train_sizes, *plan.anchors, 1) < 1:
        raise DeepClusterError("Draws, sizes, anchors and regions are counted from 1: raise the one that is less.")


def _sentence(plan: Plan, train: str, rule: str) -> str:
    name = "Fast R-CNN on given regions" if plan.head == "fast" else "Faster R-CNN"
    learned = "every weight is learned" if train == "all" else "the convolutions before the regions stay as they are"
    return f"{name}, {learned}, batch-norm frozen; AP by VOC's {rule} rule at IoU 1/2, difficult objects not counted"

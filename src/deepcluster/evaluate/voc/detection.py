"""Protocol `voc-detection`: a detector is trained on a backbone and scored by VOC's average precision at IoU 1/2.

The networks are in detector.py, the score in average_precision.py.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, counted
from deepcluster.evaluate.options import check_choice, check_counts
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.voc.average_precision import DetectionRule, Detections, detection_aps, mean_ap
from deepcluster.evaluate.voc.dataset import open_voc
from deepcluster.evaluate.voc.detector import Detector, DetectorConfig, keeps_fully_connected
from deepcluster.evaluate.voc.maps import freeze_batch_norms
from deepcluster.evaluate.voc.training import Examples, SGDConfig, Trained, train_and_score
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.random import seeded
from deepcluster.reading import judged, read_npz

FLIP = 4
"""Purpose of the key of random flips."""
Head = Literal["faster", "fast"]
PAPERS: dict[Head, SGDConfig] = {
    # arXiv 1506.01497 with its published end-to-end training of VOC 2007
    "faster": SGDConfig(70_000, 1, 0.001, (50_000,)),
    # arXiv 1504.08083 §2.3 and §4.1
    "fast": SGDConfig(40_000, 2, 0.001, (30_000,)),
}


def voc_detection(
    subject: Subject,
    data: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    *,
    split: str = "trainval",
    test_split: str = "test",
    train: Trained = "all",
    head: Head = "faster",
    proposals: Sequence[Path] = (),
    fpn: bool = False,
    pool: Literal["auto", "max", "align"] = "auto",
    min_size: int = 600,
    max_size: int | None = None,
    min_sizes: tuple[int, ...] = (),
    anchors: tuple[int, ...] = (),
    redraw: bool = False,
    regions: int = 128,
    iterations: int | None = None,
    batch: int | None = None,
    lr: float = 0.001,
    drops: tuple[int, ...] | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0005,
    flip: bool = True,
    ap: DetectionRule = "11-point",
    draws: int = 1,
    seed: int = 0,
    screen: Screen | None = None,
) -> Result:
    """Mean average precision of a Fast or Faster R-CNN that is trained on the network, on a PASCAL VOC set.

    Args:
        subject: the network to evaluate.
        data: a VOC set: a folder such as VOCdevkit/VOC2007, or a .tar or .zip of it.
        test: the VOC set of the test split; None = the same.
        split: images to train on: a list in ImageSets/Main.
        test_split: images to score.
        train: train every weight, or keep the convolutions before the regions frozen: the papers' two columns.
        head: Faster R-CNN proposes regions itself, Fast R-CNN takes them from `proposals`.
        proposals: files of regions for Fast R-CNN: a .npz with one (P, 4) array of x0, y0, x1, y1 per image, or
            Selective Search's .mat.
        fpn: build a feature pyramid on a ResNet.
        pool: how regions are pooled: max over rounded cells as in the papers of AlexNet and VGG-16, or read at exact
            places; auto = max for these two, align for others.
        min_size: the shorter side of an image is resized to this many pixels.
        max_size: unless the longer side would then exceed this; None = 5/3 of `min_size`, 1000 for 600.
        min_sizes: in training one of these is drawn in place of `min_size`: multi-scale training, single-scale test.
        anchors: sides of the anchor boxes in pixels of the resized image; none = 128, 256 and 512 for a `min_size` of
            600 and in proportion for others, or eight strides on each level of a pyramid.
        redraw: initialize fc6 and fc7 of AlexNet and VGG-16 at random.
        regions: regions of each image that the head is trained on in a step.
        iterations: SGD steps; None = 70,000 for Faster and 40,000 for Fast R-CNN.
        batch: images of each step; None = 1 for Faster and 2 for Fast R-CNN.
        lr: learning rate; biases have twice this.
        drops: steps at which it falls to a tenth; None = after 5/7 (Faster) or 3/4 (Fast) of all.
        momentum: of SGD.
        weight_decay: of SGD.
        flip: mirror half of the training images; --no-flip = none of them.
        ap: VOC 2007's rule, or that of 2010 and later.
        draws: repetitions, each with its own seed.
        seed: of the first draw.
        screen: for progress bars; None = none.

    Raises:
        DeepClusterError: no such set or split, or settings that exclude each other.
        Interrupted: Ctrl-C; called again with the same settings, it continues to the bit.
    """
    check_choice("train", train, get_args(Trained))
    check_choice("ap", ap, get_args(DetectionRule))
    check_choice("head", head, get_args(Head))
    check_counts(draws=draws, regions=regions, anchors=anchors)
    check_counts(min_size=min_size, max_size=max_size, min_sizes=min_sizes)
    paper_like = isinstance(subject.backbone.trunk, ConvThenLinear) and not fpn
    config = DetectorConfig(
        head=head,
        fpn=fpn,
        pool=pool if pool != "auto" else "max" if paper_like else "align",
        min_size=min_size,
        max_size=max_size or round(min_size * 5 / 3),
        min_sizes=tuple(min_sizes),
        anchors=tuple(anchors),
        redraw=redraw,
        regions=regions,
    )
    _check(subject.backbone, config, proposals)
    paper = PAPERS[head]
    steps = paper.iterations if iterations is None else iterations
    if drops is None:
        drops = tuple(round(steps * drop / paper.iterations) for drop in paper.drops)
    sgd = SGDConfig(steps, paper.batch if batch is None else batch, lr, tuple(drops), momentum, weight_decay)
    screen = screen or Screen(quiet=True)
    sets = [open_voc(data, split, "detection")]
    sets.append(open_voc(test or data, test_split, "detection", sets[0].classes))
    given = [read_proposals(proposals, voc.ids) if head == "fast" else [] for voc in sets]
    with preserve_random_state():
        Detector(subject.backbone, sets[0].classes, config)  # refuses now what it would refuse later
    learned, tested = (Examples(voc, subject, screen) for voc in sets)
    # a detector learns from images with an object that is not difficult (arXiv 1504.08083, its code)
    shown = [index for index, objects in enumerate(learned.voc.objects) if (~objects.difficult).any()]
    images = [index for index in shown if learned.image(index) is not None]
    if not images:
        raise DeepClusterError(f"No image of split {split} of {learned.voc.name} has an object to learn from.")
    name = "Fast R-CNN on given regions" if head == "fast" else "Faster R-CNN"
    weights = "every weight is trained" if train == "all" else "the convolutions before the regions are frozen"
    settings = {
        **dataclasses.asdict(config),
        "flip": flip,
        "proposals": [str(file) for file in proposals],
        "ap": ap,
        "fc6_fc7": "start as the backbone's" if keeps_fully_connected(subject.backbone, config) else "random",
    }

    def build(backbone: Backbone) -> Detector:
        detector = Detector(backbone, learned.voc.classes, config)
        freeze_batch_norms(detector)
        return detector

    return train_and_score(
        "voc-detection",
        f"{name}, {weights}, batch-norm frozen; AP by VOC's {ap} rule at IoU 1/2, difficult objects not counted",
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
        build=build,
        loss=lambda detector, seed, batch: _loss(detector, learned, given[0], seed if flip else None, batch),
        score=lambda detector: _score(detector, tested, given[1], ap, screen),
    )


def _check(backbone: Backbone, config: DetectorConfig, proposals: Sequence[Any]) -> None:
    if config.head == "fast" and not proposals:
        raise DeepClusterError(
            "Fast R-CNN is given its regions: name a file with --proposals, or use --head faster, which finds its own."
        )
    if config.head == "faster" and proposals:
        raise DeepClusterError("Faster R-CNN proposes regions itself: leave out --proposals, or use --head fast.")
    if config.redraw and (config.fpn or not isinstance(backbone.trunk, ConvThenLinear)):
        raise DeepClusterError(f"{backbone.name} has no fc6 and fc7 to redraw here: leave out --redraw.")
    if config.fpn and config.pool == "max":
        raise DeepClusterError("Regions of a pyramid are pooled at exact places: use --pool align.")
    if config.anchors and config.head == "fast":
        raise DeepClusterError("Anchors are for proposing regions, which --head fast does not: leave out --anchors.")


def _loss(
    detector: Detector,
    examples: Examples,
    proposals: Sequence[np.ndarray],
    flip_seed: int | None,
    batch: Sequence[tuple[int, int]],
) -> Tensor | None:
    """The sum of the losses of (image, epoch) pairs; with a seed half of the images are mirrored. Where the detector
    does not propose regions itself there are (P, 4) boxes of each image of the split."""
    images, targets, regions = [], [], []
    for index, epoch in batch:
        image = examples.image(index)
        if image is None:
            continue
        objects = examples.voc.objects[index]
        clear = ~objects.difficult
        labels = torch.from_numpy(objects.labels[clear] + 1)  # 0 is the background
        boxes = [torch.from_numpy(some) for some in (objects.boxes[clear], *proposals[index : index + 1])]
        if flip_seed is not None and int(torch.randint(2, (), generator=seeded(flip_seed, FLIP, index, epoch))):
            boxes = [mirror_boxes(some, image.shape[2]) for some in boxes]
            image = image.flip(2)
        images.append(image.float() / 255)
        targets.append({"boxes": boxes[0].to(image.device), "labels": labels.to(image.device)})
        regions += [some.to(image.device) for some in boxes[1:]]
    if not images:
        return None
    return torch.stack(list(detector(images, targets, regions).values())).sum()


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """(P, 4) boxes on the image flipped left to right."""
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], 1)


@torch.no_grad()
def _score(
    detector: Detector, examples: Examples, proposals: Sequence[np.ndarray], rule: DetectionRule, screen: Screen
) -> dict[str, float]:
    """`map` and ap_CLASS on all images of a split; objects on images that cannot be decoded do not count."""
    found, truth = [], []
    with screen.bar("test images", len(examples.voc)) as bar:
        for index, objects in enumerate(examples.voc.objects):
            image = examples.image(index)
            bar()
            if image is None:
                continue
            regions = [torch.from_numpy(some).to(image.device) for some in proposals[index : index + 1]]
            (output,) = detector([image.float() / 255], None, regions)
            boxes, labels, scores = (output[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
            found.append(Detections(boxes, labels - 1, scores))
            truth.append(objects)
    values = detection_aps(found, truth, len(examples.voc.classes), rule=rule)
    named = {f"ap_{name}": float(value) for name, value in zip(examples.voc.classes, values, strict=True)}
    return {"map": mean_ap(values)} | {name: value for name, value in named.items() if np.isfinite(value)}


def read_proposals(files: Sequence[Path | str], ids: Sequence[str]) -> list[np.ndarray]:
    """(P, 4) float32 boxes for each of the images named `ids`: x0, y0, x1, y1 in pixels from 0, x1 and y1 exclusive.

    Args:
        files: .npz with one (P, 4) array of such boxes under each image's name; or .mat (up to version 7) with
            `images`, a cell of names, and `boxes`, a cell of (P, 4) rows y0, x0, y1, x1 from 1, the last inclusive,
            the form in which the regions of Selective Search were published.

    Raises:
        DeepClusterError: a file is missing, damaged or of another form, or an image has no proposals.
    """
    found: dict[str, np.ndarray] = {}
    advice = "give a .npz with one (P, 4) array for each image, or a .mat with `images` and `boxes`."
    for path in map(Path, files):
        with judged(path, advice):
            boxes = _read_mat(path) if path.suffix.lower() == ".mat" else read_npz(path, advice=advice)
        for name, rows in boxes.items():
            if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf" or not np.isfinite(rows).all():
                raise DeepClusterError(
                    f"The proposals of {name} in {path} are not (P, 4) numbers: write x0, y0, x1, y1."
                )
            found[name] = np.ascontiguousarray(rows, np.float32)
    missing = [name for name in ids if name not in found or not len(found[name])]
    if missing:
        raise DeepClusterError(
            f"There are no proposals for {len(missing)} of {counted(len(ids), 'image')}, such as {missing[0]}: give"
            " --proposals files that hold those of the training and the test images."
        )
    return [found[name] for name in ids]


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    content = loadmat(path, variable_names=("images", "boxes"))
    names = [str(np.ravel(cell)[0]) for cell in content["images"].ravel()]
    rows = [np.asarray(cell, np.float64).reshape(-1, 4) for cell in content["boxes"].ravel()]
    # y0, x0, y1, x1 from 1, the last inclusive
    return {name: cell[:, [1, 0, 3, 2]] - (1, 1, 0, 0) for name, cell in zip(names, rows, strict=True)}

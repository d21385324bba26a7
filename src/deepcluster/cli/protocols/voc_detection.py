"""`deepcluster evaluate RUN voc-detection`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class VocDetection(Common):
    """Mean average precision of a Fast or Faster R-CNN that is trained on the network. --data names a VOC set."""

    test: str | None = None
    """The VOC set of the test split; by default the same."""
    split: str = "trainval"
    """Images to learn from: a list in ImageSets/Main."""
    test_split: str = "test"
    """Images to score."""
    train: Literal["all", "fc6-8"] = "all"
    """Learn every weight, or leave the convolutions before the regions as they are: the papers' two columns."""
    head: Literal["faster", "fast"] = "faster"
    """Faster R-CNN proposes regions itself, Fast R-CNN is given them in --proposals."""
    proposals: tuple[Path, ...] = ()
    """Files of regions for --head fast: a .npz with one (P, 4) array of x0, y0, x1, y1 per image, or Selective
    Search's .mat."""
    fpn: bool = False
    """Stand on a feature pyramid, for ResNets."""
    pool: Literal["auto", "max", "align"] = "auto"
    """How regions are pooled: max in rounded cells as in the papers of AlexNet and VGG-16, or read at exact places;
    auto = max for these two, align for others."""
    min_size: int = 600
    """The shorter side of an image is scaled to so many pixels,"""
    max_size: int | None = None
    """unless the longer one would have more than so many; by default 5/3 of it, 1000 for 600."""
    min_sizes: tuple[int, ...] = ()
    """In training one of these is drawn in place of --min-size: multi-scale training, single-scale test."""
    anchors: tuple[int, ...] = ()
    """Sides of the boxes regions are proposed from, in pixels of the scaled image; by default 128, 256 and 512 for
    --min-size 600 and in proportion for others, or eight strides on each level of a pyramid."""
    redraw: bool = False
    """AlexNet and VGG-16: draw fc6 and fc7 anew."""
    regions: int = 128
    """Regions of each image the head learns from at a step."""
    iterations: int | None = None
    """Steps; by default 70,000 for Faster and 40,000 for Fast R-CNN."""
    batch: int | None = None
    """Images of each step; by default 1 for Faster and 2 for Fast R-CNN."""
    lr: float = 0.001
    """Learning rate; biases have twice this."""
    drops: tuple[int, ...] | None = None
    """Steps at which it falls to a tenth; by default after 5/7 (Faster) or 3/4 (Fast) of all."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0005
    """Of SGD."""
    flip: bool = True
    """Mirror half of the training images."""
    ap: Literal["11-point", "all-point"] = "11-point"
    """VOC 2007's rule, or that of 2010 and later."""
    draws: int = 1
    """Repetitions, each with its own seed."""


def score(subject: Subject, chosen: VocDetection, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.errors import DeepClusterError
    from deepcluster.evaluate.voc.detection import voc_detection

    if chosen.source is None:
        raise DeepClusterError("voc-detection needs a PASCAL VOC set: give --data VOCdevkit/VOC2007 or a .tar of it.")
    common = {field.name for field in fields(Common)}
    options = {field.name: getattr(chosen, field.name) for field in fields(chosen) if field.name not in common}
    return voc_detection(subject, chosen.source, **options, seed=chosen.seed, screen=screen)

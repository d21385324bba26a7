"""`deepcluster evaluate RUN voc-segmentation`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class VocSegmentation(Common):
    """Mean IoU of a fully convolutional network that is trained on the network. --data names a VOC set."""

    test: str | None = None
    """The VOC set of the test split; by default the same."""
    split: str = "train"
    """Images to learn from: a list in ImageSets/Segmentation."""
    test_split: str = "val"
    """Images to score."""
    train: Literal["all", "fc6-8"] = "all"
    """Learn every weight, or leave the convolutions as they are: the papers' two columns."""
    stride: int | None = None
    """Pixels between two scores: 32, 16 or 8 (FCN-32s, -16s, -8s); by default 32 for AlexNet and VGG-16, else that of
    the network's last map, which ResNets can have finer."""
    redraw: bool = False
    """AlexNet and VGG-16: draw fc6 and fc7 anew."""
    crop: int = 480
    """Side in pixels of the pieces of training images."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Range of the factor that training images are scaled by."""
    flip: bool = True
    """Mirror half of the training images."""
    iterations: int = 30_000
    """Steps."""
    batch: int = 20
    """Images of each step."""
    lr: float = 0.001
    """Learning rate; biases have twice this."""
    drops: tuple[int, ...] = ()
    """Steps at which it falls to a tenth."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0005
    """Of SGD."""
    draws: int = 1
    """Repetitions, each with its own seed."""


def score(subject: Subject, chosen: VocSegmentation, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.errors import DeepClusterError
    from deepcluster.evaluate.voc.segmentation import voc_segmentation

    if chosen.source is None:
        raise DeepClusterError(
            "voc-segmentation needs a PASCAL VOC set: give --data VOCdevkit/VOC2012 or a .tar of it."
        )
    common = {field.name for field in fields(Common)}
    options = {field.name: getattr(chosen, field.name) for field in fields(chosen) if field.name not in common}
    return voc_segmentation(subject, chosen.source, **options, seed=chosen.seed, screen=screen)

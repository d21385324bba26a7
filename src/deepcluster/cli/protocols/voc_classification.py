"""`deepcluster evaluate RUN voc-classification`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class VOCClassification(Common):
    """Mean average precision of classifying a PASCAL VOC set, by SVMs on frozen features or by fine-tuning."""

    test: str | None = None
    """Another VOC set for the test; by default the same."""
    split: str = "trainval"
    """Images to train on: a list of ImageSets/Main, or `all` = every annotated image."""
    test_split: str = "test"
    """Images to score."""
    ap: Literal["11-point", "all-point", "sklearn"] = "11-point"
    """11-point (VOC 2007), all-point (VOC 2010 and later), or sklearn (DeepCluster's published code)."""
    mode: Literal["svm", "fc6-8", "all"] = "svm"
    """svm: linear SVMs on frozen features; fc6-8: new fully connected layers on frozen ones; all: train everything."""
    seeds: int = 1
    """Repetitions, for a mean and its deviation."""
    taps: tuple[str, ...] | None = None
    """svm: layers to read, `all` = every map; by default the output. Maps are pooled to about 9,000 numbers."""
    shots: tuple[int, ...] | None = None
    """svm: also with so many positives of each class, such as 1 2 4 8 16 32 64 96."""
    samples: int | None = None
    """svm: draws for each number of shots; by default 5."""
    recipe: Literal["deepcluster", "deepercluster"] | None = None
    """Fine-tuning: deepcluster (the default) or deepercluster."""
    iterations: int | None = None
    """Fine-tuning: batches, in place of the recipe's; so are the next ones."""
    batch_size: int | None = None
    """Images in a batch."""
    lr: float | None = None
    """Learning rate."""
    step: int | None = None
    """Iterations after which it is halved, again and again."""
    weight_decay: float | None = None
    """Weight decay."""
    crops: Literal["random", "ten", "center"] | None = None
    """Fine-tuning: crops of each test image; random = 10 draws (the default), ten = corners, center and mirrored,
    center = one."""
    train_batchnorm: bool = False
    """fc6-8: train the scales and shifts of batch-norm in the frozen layers."""
    hidden: int | None = None
    """fc6-8: width of the new layers behind a network without fc6 and fc7; by default 4096."""


def score(subject: Subject, chosen: VOCClassification, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.voc.classification import voc_classification

    if chosen.source is None:
        raise DeepClusterError("voc-classification needs a VOC set: give --data VOCdevkit/VOC2007, or a .tar of it.")
    common = {field.name for field in fields(Common)}
    options = {field.name: getattr(chosen, field.name) for field in fields(chosen) if field.name not in common}
    return voc_classification(subject, chosen.source, **options, seed=chosen.seed, screen=screen)

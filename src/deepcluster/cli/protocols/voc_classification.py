"""`deepcluster evaluate RUN voc-classification`."""

from __future__ import annotations

from dataclasses import dataclass
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
    mode: str = "svm"
    """svm: linear SVMs on frozen features; fc6-8: new fully connected layers on frozen ones; all: train everything."""
    seeds: int = 1
    """Repetitions, for a mean and its deviation."""
    taps: tuple[str, ...] | None = None
    """svm: layers to read, `all` = every map; by default the output. Maps are pooled to about 9,000 numbers."""
    shots: tuple[int, ...] | None = None
    """svm: also with so many positives of each class, such as 1 2 4 8 16 32 64 96."""
    samples: int | None = None
    """svm: draws for each number of shots; by default 5."""
    recipe: str | None = None
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
    crops: str | None = None
    """Fine-tuning: crops of each test image; random = 10 draws (the default), ten = corners, center and mirrored,
    center = one."""
    train_batchnorm: bool = False
    """fc6-8: train the scales and shifts of batch-norm in the frozen layers."""
    hidden: int | None = None
    """fc6-8: width of the new layers behind a network without fc6 and fc7; by default 4096."""


def score(subject: Subject, chosen: VOCClassification, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.voc.classification import FineTuning, SVMs, voc_classification

    if chosen.source is None:
        raise DeepClusterError("voc-classification needs a VOC set: give --data VOCdevkit/VOC2007, or a .tar of it.")
    changes = {
        "iterations": chosen.iterations,
        "batch": chosen.batch_size,
        "lr": chosen.lr,
        "step": chosen.step,
        "weight_decay": chosen.weight_decay,
    }
    of_svm = {"--taps": chosen.taps, "--shots": chosen.shots, "--samples": chosen.samples}
    of_tuning = {
        "--recipe": chosen.recipe,
        "--iterations": chosen.iterations,
        "--batch-size": chosen.batch_size,
        "--lr": chosen.lr,
        "--step": chosen.step,
        "--weight-decay": chosen.weight_decay,
        "--crops": chosen.crops,
        "--train-batchnorm": chosen.train_batchnorm or None,
        "--hidden": chosen.hidden,
    }
    strangers = of_tuning if chosen.mode == "svm" else of_svm
    given = [name for name, value in strangers.items() if value is not None]
    if given:
        raise DeepClusterError(f"{given[0]} means nothing with --mode {chosen.mode}: leave it out.")
    if chosen.samples is not None and not chosen.shots:
        raise DeepClusterError("--samples counts draws of few shots: give --shots, too.")
    how: SVMs | FineTuning
    if chosen.mode == "svm":
        how = SVMs(
            taps=chosen.taps or ("output",),
            shots=chosen.shots or (),
            samples=5 if chosen.samples is None else chosen.samples,
        )
    else:
        how = FineTuning(
            mode=chosen.mode,
            recipe=chosen.recipe or "deepcluster",
            changes=tuple(changes.items()),
            crops=chosen.crops or "random",
            train_batchnorm=chosen.train_batchnorm,
            hidden=chosen.hidden,
        )
    return voc_classification(
        subject,
        chosen.source,
        chosen.test,
        how=how,
        split=chosen.split,
        test_split=chosen.test_split,
        ap=chosen.ap,
        seeds=chosen.seeds,
        seed=chosen.seed,
        screen=screen,
    )

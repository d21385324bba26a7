"""`deepcluster evaluate RUN linear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class Linear(Common):
    """Accuracy of linear classifiers on frozen layers: the output, or all layers in one pass over the images."""

    test: str | None = None
    """Labelled test images."""
    holdout: float | None = None
    """In place of --test: share of the data that is held out, of each class alike."""
    taps: tuple[str, ...] = ("output",)
    """Layers to read; `all` = every one that is a map or a sequence."""
    recipe: (
        Literal["logistic", "deepcluster", "deepercluster", "deepercluster-places", "openselfsup", "quick"] | None
    ) = None
    """How to train; by default logistic regression on the output, and for layers what the papers have for this
    network (`quick`, our own, for small images)."""
    epochs: int | None = None
    """In place of the recipe's own, as are the following."""
    lr: tuple[float, ...] | None = None
    """Learning rates; several are chosen from by --cross-validate."""
    weight_decay: tuple[float, ...] | None = None
    """Weight decays; several are chosen from by --cross-validate (logistic: always)."""
    batch_size: int | None = None
    """Images a step."""
    schedule: Literal["bottou", "step", "cosine", "constant", "halving"] | None = None
    """How the learning rate falls."""
    crops: Literal[1, 10] = 1
    """Crops of a test image, over which softmax is averaged."""
    report: Literal["last", "best-epoch"] = "last"
    """best-epoch is the papers' habit: the test set chooses the epoch."""
    cross_validate: bool = False
    """Choose among several rates and decays by folds of the training images."""
    folds: int = 5
    """Their number."""
    seeds: int = 1
    """Repetitions."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Of the frozen network."""


def score(subject: Subject, chosen: Linear, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.linear.linear import linear

    return linear(
        subject,
        chosen.source,
        chosen.test,
        holdout=chosen.holdout,
        taps=chosen.taps,
        recipe=chosen.recipe,
        epochs=chosen.epochs,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        batch_size=chosen.batch_size,
        schedule=chosen.schedule,
        crops=chosen.crops,
        report=chosen.report,
        cross_validate=chosen.cross_validate,
        folds=chosen.folds,
        seeds=chosen.seeds,
        seed=chosen.seed,
        precision=chosen.precision,
        screen=screen,
    )

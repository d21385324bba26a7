"""`deepcluster evaluate RUN mlp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class Mlp(Common):
    """Accuracy of fully connected layers on frozen convolutions: fc6 and fc7 anew, or hidden layers on the output."""

    test: str | None = None
    """Labelled test images."""
    holdout: float | None = None
    """In place of --test: share of the data that is held out, of each class alike."""
    recipe: Literal["quick", "deepcluster"] = "quick"
    """How to train; deepcluster is the paper's on VOC, 80,000 steps of 16 images."""
    depth: int | None = None
    """Hidden layers, for networks without fully connected layers of their own; 2 by default."""
    hidden: int | None = None
    """Their width; 1024 by default."""
    epochs: int | None = None
    """In place of the recipe's own, as are the following."""
    lr: float | None = None
    """Learning rate."""
    weight_decay: float | None = None
    """Weight decay."""
    batch_size: int | None = None
    """Images a step."""
    schedule: Literal["bottou", "step", "cosine", "constant", "halving"] | None = None
    """How the learning rate falls."""
    crops: Literal[1, 10] = 1
    """Crops of a test image, over which softmax is averaged."""
    report: Literal["last", "best-epoch"] = "last"
    """best-epoch is the papers' habit: the test set chooses the epoch."""
    seeds: int = 1
    """Repetitions."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Of the frozen network."""


def score(subject: Subject, chosen: Mlp, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.linear.mlp import mlp

    return mlp(
        subject,
        chosen.source,
        chosen.test,
        holdout=chosen.holdout,
        recipe=chosen.recipe,
        depth=chosen.depth,
        hidden=chosen.hidden,
        epochs=chosen.epochs,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        batch_size=chosen.batch_size,
        schedule=chosen.schedule,
        crops=chosen.crops,
        report=chosen.report,
        seeds=chosen.seeds,
        seed=chosen.seed,
        precision=chosen.precision,
        screen=screen,
    )

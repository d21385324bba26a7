"""`deepcluster evaluate RUN low-shot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class LowShot(Common):
    """Accuracy with few labels: k images a class or a share of the labels, drawn several times."""

    test: str | None = None
    """Labelled test images."""
    holdout: float | None = None
    """In place of --test: share of the data that is held out, of each class alike."""
    shots: tuple[int, ...] | None = None
    """Images of each class; 1 2 4 8 16 where no --fraction is given."""
    fraction: tuple[float, ...] | None = None
    """Shares of the labels, such as 0.01 0.1."""
    draws: int = 5
    """How often each of these is drawn."""
    classifier: Literal["logistic", "svm"] = "logistic"
    """On features that are computed once."""
    c: float | None = None
    """scikit-learn's C of the classifier of --shots; 1 by default."""
    tap: str = "output"
    """The layer to read."""
    fine_tune: bool = False
    """Train the whole network on each --fraction, from the weights it has."""
    head_multiplier: float | None = None
    """Fine-tuning: how many times the network's learning rate the new layer has; 10 by default."""
    epochs: int | None = None
    """Fine-tuning: in place of the recipe's 20, as are the following."""
    lr: float | None = None
    """Learning rate."""
    weight_decay: float | None = None
    """Weight decay."""
    batch_size: int | None = None
    """Images a step."""
    schedule: Literal["bottou", "step", "cosine", "constant", "halving"] | None = None
    """How the learning rate falls."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Of the network."""


def score(subject: Subject, chosen: LowShot, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.linear.low_shot import low_shot

    return low_shot(
        subject,
        chosen.source,
        chosen.test,
        holdout=chosen.holdout,
        shots=chosen.shots,
        fraction=chosen.fraction,
        draws=chosen.draws,
        classifier=chosen.classifier,
        c=chosen.c,
        tap=chosen.tap,
        fine_tune=chosen.fine_tune,
        head_multiplier=chosen.head_multiplier,
        epochs=chosen.epochs,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        batch_size=chosen.batch_size,
        schedule=chosen.schedule,
        seed=chosen.seed,
        precision=chosen.precision,
        screen=screen,
    )

"""`deepcluster evaluate RUN knn`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class Knn(Common):
    """Top-1 accuracy of the nearest training images, by cosine of the backbone's output."""

    test: str | None = None
    """Labelled images to classify; none = each image of the data by all the others."""
    k: tuple[int, ...] = (20,)
    """Numbers of neighbors."""
    temperature: float = 0.07
    """Of the softmax of cosines that weighs the votes; the score with one vote each is given beside it."""
    tap: str | None = None
    """A layer to read in place of the output."""
    whitened: bool = False
    """Use the features after the run's whitening."""
    baseline: bool = False
    """Also score the same network as it was before training."""


def score(subject: Subject, chosen: Knn, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.knn import knn

    return knn(
        subject,
        chosen.source,
        chosen.test,
        k=chosen.k,
        tap=chosen.tap,
        whitened=chosen.whitened,
        temperature=chosen.temperature,
        baseline=chosen.baseline,
        screen=screen,
    )

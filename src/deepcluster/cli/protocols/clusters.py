"""`deepcluster evaluate RUN clusters`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    import numpy as np

    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class Clusters(Common):
    """NMI, AMI, ARI, matched accuracy and purity of a run's clusters against labels nobody showed it."""

    test: str | None = None
    """Labelled images that take no part in clustering or matching; none = all is compared on the same images."""
    k: str | None = None
    """Also cluster the features anew into so many clusters; `classes` = as many as there are classes."""
    draws: int = 1
    """Repetitions of that, each with its own seed."""


def score(subject: Subject, chosen: Clusters, screen: Screen) -> Result:
    """Runs the protocol, and draws what each cluster of a run is made of."""
    from deepcluster.evaluate.clusters import clusters

    k = int(chosen.k) if chosen.k and chosen.k.isdigit() else chosen.k
    from deepcluster.visualize import style
    from deepcluster.visualize.confusion import confusion_figure

    def draw(assignment: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
        if not subject.group.is_first:
            return
        file = style.save(confusion_figure(assignment, labels, names), subject.results / "clusters-confusion.png")
        screen.say(f"{file} shows which classes share clusters")

    return clusters(
        subject, chosen.source, chosen.test, k=k, draws=chosen.draws, seed=chosen.seed, screen=screen, seen=draw
    )

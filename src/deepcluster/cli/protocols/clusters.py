"""`deepcluster evaluate RUN clusters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepcluster.cli.protocols.common import Common

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class Clusters(Common):
    """NMI, AMI, ARI, matched accuracy and purity of a run's clusters against labels nobody showed it."""

    k: str | None = None
    """Also cluster the features anew into so many clusters; `classes` = as many as there are classes."""
    draws: int = 1
    """Repetitions of that, each with its own seed."""


def score(subject: Subject, chosen: Clusters, screen: Screen) -> Result:
    """Runs the protocol."""
    from deepcluster.evaluate.clusters import clusters

    k = int(chosen.k) if chosen.k and chosen.k.isdigit() else chosen.k
    return clusters(subject, chosen.source, k=k, draws=chosen.draws, seed=chosen.seed, screen=screen)

"""`deepcluster visualize RUN clusters`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.pictures.common import OfImages

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ClusterSheets(OfImages):
    """Clusters as contact sheets, the images nearest to the center first."""

    clusters: int = 24
    """How many, the largest first."""
    only: tuple[int, ...] = ()
    """These clusters in their place, each on a page of its own."""
    images: int = 12
    """Images of each that are nearest to its center."""
    farthest: int = 0
    """Images of each that are farthest from it."""


def draw(subject: Subject, chosen: ClusterSheets, screen: Screen) -> list[Path]:
    """Writes clusters.png, or cluster-0007.png and so on."""
    from deepcluster.visualize.contact_sheets import clusters_of
    from deepcluster.visualize.groups import groups_of, run_of

    run = run_of(subject, "clusters")
    groups = None
    if chosen.source is not None:
        pixels = run.pixels(chosen.source)
        with screen.bar("images", len(pixels)) as bar:
            groups = groups_of(run, chosen.source, pixels, bar)
    return clusters_of(
        run,
        clusters=chosen.clusters,
        images=chosen.images,
        farthest=chosen.farthest,
        only=chosen.only or None,
        groups=groups,
        folder=chosen.folder(run),
    )

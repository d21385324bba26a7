"""`deepcluster visualize RUN clusters`."""

from __future__ import annotations

from dataclasses import dataclass

from deepcluster.cli.pictures.common import OfImages


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

"""`deepcluster visualize RUN sizes`."""

from __future__ import annotations

from dataclasses import dataclass

from deepcluster.cli.pictures.common import OfImages


@dataclass(frozen=True, kw_only=True)
class Sizes(OfImages):
    """How many images each cluster has, and how many clusters have that size."""

"""`deepcluster visualize RUN purity`."""

from __future__ import annotations

from dataclasses import dataclass

from deepcluster.cli.pictures.common import OfImages


@dataclass(frozen=True, kw_only=True)
class Purity(OfImages):
    """The size of each cluster against the share of its main class; needs labels."""

"""`deepcluster visualize RUN confusion`."""

from __future__ import annotations

from dataclasses import dataclass

from deepcluster.cli.pictures.common import OfImages


@dataclass(frozen=True, kw_only=True)
class Confusion(OfImages):
    """What each cluster is made of, and which classes share clusters; needs labels."""

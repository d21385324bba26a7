"""`deepcluster visualize RUN history`."""

from __future__ import annotations

from dataclasses import dataclass

from deepcluster.cli.pictures.common import Picture


@dataclass(frozen=True, kw_only=True)
class History(Picture):
    """Curves over the epochs: loss, agreement, reassignment, sizes, learning rate, time."""

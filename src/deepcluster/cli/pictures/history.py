"""`deepcluster visualize RUN history`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.pictures.common import Picture

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class History(Picture):
    """Curves over the epochs: loss, agreement, reassignment, sizes, learning rate, time."""


def draw(subject: Subject, chosen: History, screen: Screen) -> list[Path]:
    """Writes history.png."""
    from deepcluster.visualize.groups import run_of
    from deepcluster.visualize.history import history_of

    run = run_of(subject, "history", clusters=False)
    return [history_of(run, chosen.folder(run))]

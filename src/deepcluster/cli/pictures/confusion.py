"""`deepcluster visualize RUN confusion`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.pictures.common import OfImages

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Confusion(OfImages):
    """What each cluster is made of, and which classes share clusters; needs labels."""


def draw(subject: Subject, chosen: Confusion, screen: Screen) -> list[Path]:
    """Writes confusion.png."""
    from deepcluster.cli.pictures.sizes import grouped
    from deepcluster.visualize import style
    from deepcluster.visualize.confusion import confusion_figure

    groups = grouped(subject, chosen, screen)
    labels = groups.labels
    names = groups.source.classes or [f"class {number}" for number in range(int(labels.max()) + 1)]
    page = confusion_figure(groups.cluster, labels, names)
    return [style.save(page, chosen.folder(subject) / "confusion.png")]

"""`deepcluster visualize RUN purity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.pictures.common import OfImages

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Purity(OfImages):
    """The size of each cluster against the share of its main class; needs labels."""


def draw(subject: Subject, chosen: Purity, screen: Screen) -> list[Path]:
    """Writes purity.png."""
    from deepcluster.cli.pictures.sizes import grouped
    from deepcluster.visualize import style
    from deepcluster.visualize.purity import purity_figure, size_and_purity

    groups = grouped(subject, chosen, screen)
    labels = groups.labels
    sizes, purity = size_and_purity(groups.cluster, labels)
    classes = len(groups.source.classes) or int(labels.max()) + 1
    return [style.save(purity_figure(sizes, purity, classes), chosen.folder(subject) / "purity.png")]

"""`deepcluster visualize RUN sizes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.pictures.common import OfImages

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.visualize.groups import Groups


@dataclass(frozen=True, kw_only=True)
class Sizes(OfImages):
    """How many images each cluster has, and how many clusters have that size."""


def draw(subject: Subject, chosen: Sizes, screen: Screen) -> list[Path]:
    """Writes sizes.png."""
    import numpy as np

    from deepcluster.visualize import style
    from deepcluster.visualize.groups import run_of
    from deepcluster.visualize.sizes import sizes_figure

    run = run_of(subject, "sizes")
    if chosen.source is None:  # the images themselves are not needed
        assignment = np.asarray(run.assignment)
        sizes = np.bincount(assignment[assignment >= 0], minlength=len(run.centroids))
    else:
        sizes = grouped(subject, chosen, screen).sizes
    return [style.save(sizes_figure(sizes), chosen.folder(run) / "sizes.png")]


def grouped(subject: Subject, chosen: OfImages, screen: Screen) -> Groups:
    """The images that were named, or those of the run, with their clusters."""
    from deepcluster.visualize.groups import groups_of, run_of

    run = run_of(subject, chosen.what)
    if chosen.source is None:
        return groups_of(run)
    pixels = run.pixels(chosen.source)
    with screen.bar("images", len(pixels)) as bar:
        return groups_of(run, chosen.source, pixels, bar)

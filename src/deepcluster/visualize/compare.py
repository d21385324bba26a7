"""Two runs in one picture: their curves over each other, and their pictures side by side.

This file knows the keys of metrics.jsonl and nothing else of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.history import curve
from deepcluster.visualize.page import below, beside, line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("Loss", "cross-entropy (nats)", "loss", None),
    ("NMI with labels", "NMI (0 to 1)", "nmi_labels", 1.0),
    ("Purity", "share of images", "purity", 1.0),
    ("NMI with the previous clusters", "NMI (0 to 1)", "nmi_previous", 1.0),
    ("Images that changed cluster", "share of images", "reassigned", 1.0),
    ("Clusters in use", "clusters", "clusters_used", None),
    ("Watched score", "score (0 to 1)", "watched", 1.0),
    ("Speed", "images / second", "images_per_second", None),
)
"""Title, unit, key of metrics.jsonl and upper end of the axis."""

Metrics = Sequence[dict[str, Any]]


def compare_figure(runs: dict[str, Metrics]) -> Figure:
    """The curves that at least one of the runs has, one panel a quantity, one color a run.

    Args:
        runs: name -> one mapping an epoch, as in metrics.jsonl; up to six.

    Raises:
        DeepClusterError: no epoch of any has ended yet.
    """
    shown = [panel for panel in PANELS if any(len(curve(metrics, panel[2])[0]) for metrics in runs.values())]
    if not shown:
        raise DeepClusterError("There is no curve to compare yet: no epoch has ended; train for longer first.")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    page = style.figure(4.9 * columns, 2.6 * rows + 0.5)
    for number, (title, unit, key, top) in enumerate(shown):
        axes = page.add_subplot(rows, columns, number + 1)
        style.quiet(axes, title, "epoch", unit)
        highest = 0.0
        for metrics, color in zip(runs.values(), style.SERIES, strict=False):
            x, y = curve(metrics, key)
            if len(x):
                axes.plot(x, y, color=color, linewidth=1.8, solid_capstyle="round", clip_on=False)
                axes.plot(x[-1:], y[-1:], "o", color=color, markersize=4, clip_on=False)
                highest = max(highest, float(y.max()))
        axes.set_ylim(0, top or highest * 1.08 or 1)
        _plain(axes)
    names = [(name, color) for name, color in zip(runs, style.SERIES, strict=False)]
    from matplotlib.lines import Line2D

    page.legend(
        [Line2D([], [], color=color, linewidth=2.5) for _, color in names],
        [name for name, _ in names],
        loc="outside upper left", ncols=1, frameon=False, fontsize=10, labelcolor=style.INK,
    )  # fmt: skip
    return page


def side_by_side(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """(H, W, 3) pictures next to each other, each below its name."""
    parts = [below([line(name, picture.shape[1], bold=True), picture], gap=2) for name, picture in pictures.items()]
    return beside(parts, gap=24)


def short_names(names: Sequence[str]) -> list[str]:
    """The same with the folders that all have in common left out; equal names are numbered."""
    from pathlib import PurePath

    parts = [PurePath(name).parts for name in names]
    common = 0
    while all(len(each) > common + 1 for each in parts) and len({each[common] for each in parts}) == 1:
        common += 1
    found = ["/".join(each[common:]) for each in parts]
    if len(set(found)) < len(found):
        found = [f"{name} ({number})" for number, name in enumerate(found, 1)]
    return found


def _plain(axes: Any) -> None:
    """Whole epochs below, and numbers with commas at the left."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:g}"))

"""How evenly the images are spread over the clusters: sizes from the largest to the smallest, and how often.

This file knows an array of sizes and nothing of images.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deepcluster.engine.run import Run


def effective(sizes: np.ndarray) -> float:
    """exp of the entropy of (K,) sizes: as many equal clusters would be as even; K at most."""
    share = sizes[sizes > 0] / max(sizes.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def draw_sorted(axes: Axes, sizes: np.ndarray) -> None:
    """Sizes of K clusters, largest first, against the mean."""
    order = np.sort(sizes)[::-1]
    mean = sizes.mean()
    wide = order[0] > 30 * max(1.0, float(np.median(order)))
    if wide:
        axes.set_yscale("symlog", linthresh=1)
    style.quiet(axes, "Clusters from large to small", "cluster, by size", "images")
    edges = np.arange(len(order) + 1) + 0.5
    axes.stairs(order, edges, fill=True, color=style.SERIES[0], alpha=0.85)
    axes.axhline(mean, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"mean {mean:,.3g}" if mean < 1000 else f"mean {mean:,.0f}",
        (1, mean), xycoords=("axes fraction", "data"), xytext=(-2, 4), textcoords="offset points",
        ha="right", color=style.INK, fontsize=9,
    )  # fmt: skip
    axes.set_xlim(0.5, len(order) + 0.5)
    axes.set_ylim(0, max(order[0], 1) * (2 if wide else 1.08))
    _whole(axes)


def draw_histogram(axes: Axes, sizes: np.ndarray) -> None:
    """How many clusters have how many images; on a logarithmic axis when sizes differ widely."""
    style.quiet(axes, "How many clusters have that size", "images in a cluster", "clusters")
    largest, bins = int(sizes.max()), int(np.clip(2 * math.sqrt(len(sizes)), 5, 40))
    smallest = int(sizes[sizes > 0].min(initial=max(largest, 1)))
    wide = largest > 50 * smallest
    if wide:
        edges = np.unique(np.geomspace(smallest, largest + 1, bins + 1).round())
        if (sizes == 0).any():
            edges = np.concatenate([[0], edges])
        axes.set_xscale("symlog", linthresh=1)
    else:
        step = max(1, math.ceil((largest + 1 - sizes.min()) / bins))
        edges = np.arange(sizes.min(), largest + step + 1, step)
    count, edges = np.histogram(sizes, edges)
    axes.stairs(count, edges, fill=True, color=style.SERIES[2], alpha=0.85)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(count.max(), 1) * 1.08)
    _whole(axes)


def sizes_figure(sizes: np.ndarray) -> Figure:
    """Both plots side by side below one sentence.

    Args:
        sizes: (K,) images in each cluster.
    """
    page = style.figure(10, 3.4)
    left, right = page.subplots(1, 2)
    draw_sorted(left, sizes)
    draw_histogram(right, sizes)
    page.suptitle(summary(sizes), x=0.012, ha="left", fontsize=11, color=style.QUIET)
    return page


def summary(sizes: np.ndarray) -> str:
    """The sizes in one line."""
    used, total, images = int((sizes > 0).sum()), len(sizes), int(sizes.sum())
    if total == 1:
        return f"{images:,} images in a single cluster"
    return (
        f"{images:,} images in {used:,} of {total:,} clusters, {int(sizes.min()):,} to {int(sizes.max()):,} each; "
        f"as even as {effective(sizes):,.1f} equal clusters"
    )


def sizes_of(run: Run) -> Path:
    """Draw `RUN/pictures/sizes.png` and return its path."""
    assignment = np.asarray(run.assignment)
    sizes = np.bincount(assignment[assignment >= 0], minlength=len(run.centroids))
    return style.save(sizes_figure(sizes), Path(run.folder) / "pictures" / "sizes.png")


def _whole(axes: Axes) -> None:
    """Both axes count things: whole numbers with commas."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "linear":
            axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())

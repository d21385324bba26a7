"""How evenly the images are spread over the clusters: sizes from the largest to the smallest, and their histogram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.errors import counted
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import SILENT, clustered_images, require_clusters
from deepcluster.visualize.style import Pictures


def draw_sizes(run: Run, *, data: Any = None, screen: Screen = SILENT) -> Pictures:
    """How many images each cluster has, and how many clusters have that size.

    Args:
        data: images to count, new ones too, which are assigned to the run's clusters; by default those it was trained
            on.
    """
    if data is not None:
        sizes = clustered_images(run, "sizes", data, screen).sizes
    else:  # the images themselves are not needed
        assignment = np.asarray(require_clusters(run, "sizes").assignment)
        sizes = np.bincount(assignment[assignment >= 0], minlength=len(run.centroids))
    return {"sizes": sizes_figure(sizes)}


def sizes_figure(sizes: np.ndarray) -> Figure:
    """Both plots of (K,) sizes side by side below one sentence."""
    page = style.figure(10, 3.4)
    left, right = page.subplots(1, 2)
    draw_sorted(left, sizes)
    draw_histogram(right, sizes)
    style.subtitle(page, summary(sizes))
    return page


def draw_sorted(axes: Axes, sizes: np.ndarray) -> None:
    """Sizes of K clusters, largest first, against the mean."""
    order, mean = np.sort(sizes)[::-1], float(sizes.mean())
    wide = order[0] > 30 * max(1.0, float(np.median(order)))
    if wide:
        axes.set_yscale("symlog", linthresh=1)
    style.quiet(axes, "Clusters from large to small", "cluster, by size", "images")
    axes.stairs(order, np.arange(len(order) + 1) + 0.5, fill=True, color=style.SERIES[0], alpha=0.85)
    style.level(axes, mean, f"mean {mean:,.3g}" if mean < 1000 else f"mean {mean:,.0f}", color=style.INK)
    _frame(axes, 0.5, len(order) + 0.5, max(order[0], 1) * (2 if wide else 1.08))


def draw_histogram(axes: Axes, sizes: np.ndarray) -> None:
    """How many clusters have how many images; on a logarithmic axis when sizes differ widely."""
    style.quiet(axes, "How many clusters have that size", "images in a cluster", "clusters")
    largest, bins = int(sizes.max()), int(np.clip(2 * math.sqrt(len(sizes)), 5, 40))
    smallest = int(sizes[sizes > 0].min(initial=max(largest, 1)))
    if largest > 50 * smallest:
        edges = np.unique(np.geomspace(smallest, largest + 1, bins + 1).round())
        if (sizes == 0).any():
            edges = np.concatenate([[0], edges])
        axes.set_xscale("symlog", linthresh=1)
    else:
        step = max(1, math.ceil((largest + 1 - sizes.min()) / bins))
        edges = np.arange(sizes.min(), largest + step + 1, step)
    count, edges = np.histogram(sizes, edges)
    axes.stairs(count, edges, fill=True, color=style.SERIES[2], alpha=0.85)
    _frame(axes, edges[0], edges[-1], max(count.max(), 1) * 1.08)


def _frame(axes: Axes, left: float, right: float, top: float) -> None:
    axes.set(xlim=(left, right), ylim=(0, top))
    for axis in (axes.xaxis, axes.yaxis):
        style.ticks(axis, integers=True)


def summary(sizes: np.ndarray) -> str:
    """The sizes in one line."""
    used, total, images = int((sizes > 0).sum()), len(sizes), int(sizes.sum())
    if total == 1:
        return f"{counted(images, 'image')} in a single cluster"
    many, half = f"{used:,} of " * (used < total) + f"{total:,}", int(np.median(sizes[sizes > 0])) if used else 0
    return (
        f"{counted(images, 'image')} in {many} clusters, {int(sizes.min()):,} to {int(sizes.max()):,} each;"
        f" half of them hold {half:,} or more"
    )

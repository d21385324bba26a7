"""The size of each cluster against its purity, as a cloud with the distribution of both beside it.

Pure functions of integer arrays; the paper remarks that a cluster's purity hardly depends on its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def size_and_purity(assignment: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) labelled images and (C,) share of the most frequent class, of each cluster that has labelled images.

    Args:
        assignment: (N,) cluster of each image; -1 = none.
        labels: (N,) class of each image; -1 = none.

    Raises:
        DeepClusterError: no image has both.
    """
    pair = (assignment >= 0) & (labels >= 0)
    if not pair.any():
        raise DeepClusterError("No image has both a cluster and a label: draw a source whose paths have class folders.")
    _, row = np.unique(assignment[pair], return_inverse=True)
    _, column = np.unique(labels[pair], return_inverse=True)
    table = np.zeros((row.max() + 1, column.max() + 1), np.int64)
    np.add.at(table, (row, column), 1)
    sizes = table.sum(1)
    return sizes, table.max(1) / sizes


def purity_figure(sizes: np.ndarray, purity: np.ndarray, classes: int) -> Figure:
    """A dot for each cluster, its size on a logarithmic axis; how often each is, above and at the right.

    Args:
        sizes: (C,) images of each cluster.
        purity: (C,) share of its most frequent class.
        classes: number of classes; one cluster of all images would have about one in so many.
    """
    page = style.figure(8, 5.6)
    axes = page.subplots(2, 2, width_ratios=(5, 1), height_ratios=(1, 4), sharex="col", sharey="row")
    cloud: Axes = axes[1, 0]
    axes[0, 1].set_axis_off()
    cloud.set_xscale("log")
    style.quiet(cloud, "", "images in the cluster (logarithmic)", "purity: share of the cluster's main class")
    # small clusters share a few places: a dot's area says how many
    place, times = np.unique(np.stack([sizes.astype(float), purity]), axis=1, return_counts=True)
    cloud.scatter(
        place[0], place[1], s=14 * np.minimum(times, 40), color=style.SERIES[0], alpha=0.55, linewidths=0,
        clip_on=False,
    )  # fmt: skip
    cloud.set_ylim(0, 1.02)
    low, high = sizes.min() / 1.15, sizes.max() * 1.15
    cloud.set_xlim(low, high)
    middle = _running(sizes, purity)
    if middle is not None:
        cloud.plot(*middle, color=style.SERIES[1], linewidth=2)
        cloud.annotate(
            "mean of clusters of about that size", (1, 1), xycoords="axes fraction", xytext=(0, 5),
            textcoords="offset points", ha="right", color=style.SERIES[1], fontsize=9, annotation_clip=False,
        )  # fmt: skip
    _mark(cloud, 1 / max(classes, 1), f"1 of {classes} classes")
    _ticks(cloud)
    for place, way, values, edges in (
        (axes[0, 0], "vertical", sizes, np.geomspace(low, high, 31)),
        (axes[1, 1], "horizontal", purity, np.linspace(0, 1, 21)),
    ):
        count, edges = np.histogram(values, edges)
        place.stairs(count, edges, fill=True, color=style.QUIET, alpha=0.45, orientation=way)
        place.set_axis_off()
    average = float((sizes * purity).sum() / sizes.sum())
    page.suptitle("Size and purity of clusters", x=0.012, ha="left", fontsize=12, fontweight="bold", color=style.INK)
    axes[0, 0].set_title(
        f"{len(sizes):,} clusters; mean purity {purity.mean():.2f} over clusters, {average:.2f} over images; a dot's"
        " area is the number of clusters there",
        loc="left", fontsize=9.5, color=style.QUIET,
    )  # fmt: skip
    return page


def _running(sizes: np.ndarray, purity: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean size and purity of clusters in groups of like size; None for too few clusters."""
    groups = min(8, len(sizes) // 5)
    if groups < 2:
        return None
    order = np.argsort(sizes, kind="stable")
    parts = np.array_split(order, groups)
    return np.array([np.exp(np.log(sizes[part]).mean()) for part in parts]), np.array(
        [purity[part].mean() for part in parts]
    )


def _mark(axes: Axes, height: float, name: str) -> None:
    axes.axhline(height, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        name, (0, height), xycoords=("axes fraction", "data"), xytext=(3, 3), textcoords="offset points",
        color=style.QUIET, fontsize=8.5,
    )  # fmt: skip


def _ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

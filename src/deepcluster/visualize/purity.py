"""The size of each cluster against its purity, as a scatter plot with both histograms.

The paper remarks that a cluster's purity hardly depends on its size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepcluster.clustering.metrics import contingency
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError, counted
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import SILENT, clustered_images, require_labels
from deepcluster.visualize.style import Pictures


def draw_purity(run: Run, *, data: Any = None, screen: Screen = SILENT) -> Pictures:
    """The size of each cluster against the share of its main class; needs labels.

    Args:
        data: labelled images, new ones too, which are assigned to the run's clusters; by default those it was trained
            on.
    """
    shown = clustered_images(run, "purity", data, screen)
    labels, names = require_labels(shown.source)
    sizes, purity = size_and_purity(shown.cluster, labels)
    return {"purity": purity_figure(sizes, purity, len(names))}


def size_and_purity(assignment: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) labelled images and (C,) share of the most frequent class, of each column of `class_table`."""
    table = class_table(assignment, labels)
    return table.sum(0), table.max(0) / table.sum(0)


def class_table(assignment: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(L, C) int64 images by class, of the L classes that occur, and by the C clusters that have labelled images.

    Args:
        assignment: (N,) cluster of each image; -1 = none.
        labels: (N,) class of each image; -1 = none.

    Raises:
        DeepClusterError: no image has both.
    """
    if not ((assignment >= 0) & (labels >= 0)).any():
        raise DeepClusterError("No image has both a cluster and a label: draw a source whose paths have class folders.")
    table: np.ndarray = contingency(labels, assignment).toarray()
    return table


def purity_figure(sizes: np.ndarray, purity: np.ndarray, classes: int) -> Figure:
    """A dot for each cluster, its (C,) size on a logarithmic axis; how often each is, above and at the right."""
    page = style.figure(8, 5.6)
    axes = page.subplots(2, 2, width_ratios=(5, 1), height_ratios=(1, 4), sharex="col", sharey="row")
    cloud: Axes = axes[1, 0]
    cloud.set_xscale("log")
    style.quiet(cloud, "", "images in the cluster (logarithmic)", "purity: share of the cluster's main class")
    # small clusters share few positions: a dot's area says how many
    position, times = np.unique(np.stack([sizes.astype(float), purity]), axis=1, return_counts=True)
    cloud.scatter(
        position[0], position[1], s=14 * np.minimum(times, 40), color=style.SERIES[0], alpha=0.55, linewidths=0,
        clip_on=False,
    )  # fmt: skip
    cloud.set_ylim(0, 1.02)
    low, high = sizes.min() / 1.15, sizes.max() * 1.15
    cloud.set_xlim(low, high)
    if len(sizes) >= 10:
        # means of clusters in groups of similar size
        parts = np.array_split(np.argsort(sizes, kind="stable"), min(8, len(sizes) // 5))
        means = [(np.exp(np.log(sizes[part]).mean()), purity[part].mean()) for part in parts]
        cloud.plot(*zip(*means, strict=True), color=style.SERIES[1], linewidth=2)
        cloud.annotate(
            "mean of clusters of about that size", (1, 1), xycoords="axes fraction", xytext=(0, 5),
            textcoords="offset points", ha="right", color=style.SERIES[1], fontsize=9, annotation_clip=False,
        )  # fmt: skip
    style.level(cloud, 1 / max(classes, 1), f"1 of {classes} classes", left=True)
    style.ticks(cloud.xaxis)
    axes[0, 0].stairs(*np.histogram(sizes, np.geomspace(low, high, 31)), fill=True, color=style.QUIET, alpha=0.45)
    axes[1, 1].stairs(
        *np.histogram(purity, np.linspace(0, 1, 21)), fill=True, color=style.QUIET, alpha=0.45, orientation="horizontal"
    )
    for other in (axes[0, 0], axes[0, 1], axes[1, 1]):
        other.set_axis_off()
    average = float((sizes * purity).sum() / sizes.sum())
    page.suptitle("Size and purity of clusters", x=0.012, ha="left", fontsize=12, fontweight="bold", color=style.INK)
    axes[0, 0].set_title(
        f"{counted(len(sizes), 'cluster')}; mean purity {purity.mean():.2f} over clusters, {average:.2f} over images;"
        " a dot's"
        " area is the number of clusters there",
        loc="left", fontsize=9.5, color=style.QUIET,
    )  # fmt: skip
    return page

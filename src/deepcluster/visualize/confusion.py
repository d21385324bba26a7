"""Which classes share clusters: what every cluster is made of, and which class is taken for which.

Pure functions of two integer arrays; this file knows nothing of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES = 40
"""Classes drawn at most, the largest ones; rows would be too thin to read."""


def counts(assignment: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes, K) images by class and cluster; clusters by the class they have most of, then from pure to mixed.

    Args:
        assignment: (N,) cluster of each image; -1 = none.
        labels: (N,) class of each image; -1 = none.

    Raises:
        DeepClusterError: no image has both.
    """
    pair = (assignment >= 0) & (labels >= 0)
    if not pair.any():
        raise DeepClusterError("No image has both a cluster and a label: draw a source whose paths have class folders.")
    used, column = np.unique(assignment[pair], return_inverse=True)
    table = np.zeros((classes, len(used)), np.int64)
    np.add.at(table, (labels[pair], column), 1)
    purity = table.max(0) / table.sum(0)
    return table[:, np.lexsort((-purity, table.argmax(0)))]


def taken_for(table: np.ndarray) -> np.ndarray:
    """(C, C) share of the images of each class (row) in clusters that have most of each class (column)."""
    told = np.zeros((len(table), len(table)))
    np.add.at(told.T, table.argmax(0), table.T)
    return told / np.maximum(told.sum(1, keepdims=True), 1)


def confusion_figure(assignment: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Left, what each cluster is made of; right, the share of each class in the clusters of each.

    Args:
        assignment: (N,) cluster of each image; -1 = none.
        labels: (N,) class of each image, -1 = none.
        names: of the classes.
    """
    known = labels[(assignment >= 0) & (labels >= 0)]
    largest = np.argsort(-np.bincount(known, minlength=len(names)), kind="stable")[:CLASSES]
    shown = np.sort(largest)
    renumber = np.full(len(names), -1, np.int64)
    renumber[shown] = np.arange(len(shown))
    table = counts(assignment, np.where(labels >= 0, renumber[labels], -1), len(shown))
    height = 1.7 + 0.26 * len(shown)
    page = style.figure(11, max(3.2, height))
    left, right = page.subplots(1, 2, width_ratios=(1.25, 1))
    said = [names[number] for number in shown]
    few = table.shape[1]
    _heat(left, table / table.sum(0), said, "What each cluster is made of")
    left.set_xlabel(f"{few:,} clusters, by the class they have most of", color=style.QUIET, fontsize=9)
    left.set_xticks([])
    told = taken_for(table)
    _heat(right, told, said, "In whose clusters each class lies (%)")
    right.set_xticks(range(len(said)), said, rotation=45, ha="right", rotation_mode="anchor")
    right.set_xlabel("class that the cluster has most of", color=style.QUIET, fontsize=9)
    if len(said) <= 20:
        for row, column in np.argwhere(told >= 0.005):
            right.text(
                column, row, f"{100 * told[row, column]:.0f}", ha="center", va="center", fontsize=8,
                color=style.PAPER if told[row, column] > 0.42 else style.INK,
            )  # fmt: skip
    if len(shown) < len(names):
        page.suptitle(f"The {len(shown)} largest of {len(names):,} classes", x=0.012, ha="left", color=style.QUIET)
    return page


def _heat(axes: Axes, table: np.ndarray, names: Sequence[str], title: str) -> None:
    """A table of shares, white for 0 and dark for 1, one row a class."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("share", [style.PAPER, style.SERIES[0], "#00263f"])
    axes.imshow(table, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=style.INK, pad=10)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(colors=style.QUIET, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_color(style.LINE)

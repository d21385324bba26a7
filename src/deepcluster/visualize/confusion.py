"""Which classes share clusters: what every cluster consists of, and which class is confused with which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.errors import counted
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import SILENT, clustered_images, require_labels
from deepcluster.visualize.letters import verbatim
from deepcluster.visualize.purity import class_table
from deepcluster.visualize.style import Pictures

MOST_CLASSES = 40
"""Classes drawn at most, the largest ones; rows would be too thin to read."""


def draw_confusion(run: Run, *, data: Any = None, screen: Screen = SILENT) -> Pictures:
    """What each cluster consists of, and which classes share clusters; needs labels.

    Args:
        data: labelled images, new ones too, which are assigned to the run's clusters; by default those it was trained
            on.
    """
    shown = clustered_images(run, "confusion", data, screen)
    return {"confusion": confusion_figure(shown.cluster, *require_labels(shown.source))}


def by_main_class(table: np.ndarray) -> np.ndarray:
    """The (classes, C) contingency table with clusters ordered by their main class, then from pure to mixed."""
    purity = table.max(0) / table.sum(0)
    return table[:, np.lexsort((-purity, table.argmax(0)))]


def confusion_shares(table: np.ndarray) -> np.ndarray:
    """(classes, classes) share of the images of each class (row) in clusters whose main class is each (column)."""
    found: np.ndarray = table @ np.eye(len(table))[table.argmax(0)]
    found /= np.maximum(found.sum(1, keepdims=True), 1)
    return found


def confusion_figure(assignment: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Left, what each cluster consists of; right, the share of each class in the clusters of each.

    Arguments and errors as of `class_table`; `names` are of the classes.
    """
    table, occurring = class_table(assignment, labels), np.unique(labels[(assignment >= 0) & (labels >= 0)])
    largest = np.sort(np.argsort(-table.sum(1), kind="stable")[:MOST_CLASSES])
    table, shown = table[largest], occurring[largest]
    table = by_main_class(table[:, table.any(0)])
    page = style.figure(11, max(3.2, 1.7 + 0.26 * len(shown)))
    left, right = page.subplots(1, 2, width_ratios=(1.25, 1))
    classes = [verbatim(names[number], 24) for number in shown]
    _heat(left, table / table.sum(0), classes, "What each cluster consists of")
    left.set_xlabel(f"{counted(table.shape[1], 'cluster')}, by their main class", color=style.QUIET, fontsize=9)
    left.set_xticks([])
    shares = confusion_shares(table)
    _heat(right, shares, classes, "Where each class lies (%)")
    right.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    if len(classes) > 20:  # slanted names would lie on each other
        right.tick_params(axis="x", labelrotation=90, labelsize=6.5)
        for name in right.get_xticklabels():
            name.set(ha="center", va="top", rotation_mode="default")
    right.set_xlabel("main class of the cluster", color=style.QUIET, fontsize=9)
    if len(classes) <= 20:
        for row, column in np.argwhere(shares >= 0.005):
            right.text(
                column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=8,
                color=style.PAPER if shares[row, column] > 0.42 else style.INK,
            )  # fmt: skip
    if len(shown) < len(names):
        style.subtitle(page, f"The {len(shown)} largest of {len(names):,} classes")
    return page


def _heat(axes: Axes, table: np.ndarray, names: Sequence[str], title: str) -> None:
    """A table of shares, white for 0 and dark for 1, one row a class."""
    shades = LinearSegmentedColormap.from_list("share", [style.PAPER, style.SERIES[0], "#00263f"])
    axes.imshow(table, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    style.title(axes, title)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(colors=style.QUIET, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_color(style.LINE)

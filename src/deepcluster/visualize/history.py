"""The curves of a run: loss, agreement, cluster sizes, learning rate and where the time goes, by epoch.

This file knows the keys of metrics.jsonl and nothing else of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.engine.health import turns_of
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deepcluster.engine.run import Run


ROW = 2.6
"""Inches from one row of panels to the next."""
Ending = tuple[float, str, str]
"""Height of a line's end in data, its name, its color."""

Curves = dict[str, tuple[np.ndarray, np.ndarray, str]]
"""Name -> epochs, values, color."""


OF_CLUSTERS = ("Agreement", "Images that changed cluster", "Cluster sizes", "Clusters in use")
"""Panels that say nothing of a run that tells turns alone."""


@dataclass(frozen=True)
class Panel:
    """One small plot over epochs.

    Attributes:
        title: what it shows, in a few words.
        unit: name and unit of the vertical axis.
        series: name -> key in metrics.jsonl.
        levels: name -> a height to compare with, drawn as a dashed line.
        scale: "linear", "log" or "stacked" (areas on top of each other).
        ends: fixed lower and upper end of the vertical axis; None = as the data want it.
    """

    title: str
    unit: str
    series: dict[str, str]
    levels: dict[str, float]
    scale: str = "linear"
    ends: tuple[float | None, float | None] = (None, None)


def panels(metrics: Sequence[dict[str, Any]], clusters: int, images: int | None = None, turns: int = 1) -> list[Panel]:
    """The panels for which `metrics` has at least one number, in reading order.

    Args:
        metrics: one mapping an epoch, as in metrics.jsonl.
        clusters: K; a network that guesses has loss ln K.
        images: N; with K it gives the mean cluster size.
        turns: that are told apart too; guessing then has loss ln(turns x K).
    """
    choices, alone = max(clusters, 1) * turns, clusters <= 1 < turns
    guess = {"ln K" if turns == 1 else f"ln {choices}": math.log(choices)}
    mean = {} if not images else {"mean": images / clusters}
    wanted = [
        Panel("Loss", "cross-entropy (nats)", {"loss": "loss"}, guess, ends=(0, None)),
        Panel(
            "Agreement",
            "NMI, purity (0 to 1)" if len(curve(metrics, "purity")[0]) else "NMI (0 to 1)",
            {"NMI with previous": "nmi_previous", "NMI with labels": "nmi_labels", "purity": "purity"},
            {},
            ends=(0, 1),
        ),
        Panel("Images that changed cluster", "share of images", {"reassigned": "reassigned"}, {}, ends=(0, 1)),
        Panel("Cluster sizes", "images", {"largest": "size_max", "smallest": "size_min"}, mean, "log"),
        Panel("Clusters in use", "clusters", {"in use": "clusters_used"}, {"K": clusters}, ends=(0, None)),
        Panel("Learning rate", "learning rate", {"backbone": "lr"}, {}, ends=(0, None)),
        Panel(
            "Time of an epoch",
            "seconds",
            {"train": "seconds_train", "features": "seconds_features", "cluster": "seconds_cluster"},
            {},
            "stacked",
        ),
        Panel("Speed", "images / second", {"images": "images_per_second"}, {}, ends=(0, None)),
    ]
    wanted = [panel for panel in wanted if not (alone and panel.title in OF_CLUSTERS)]
    return [panel for panel in wanted if any(len(curve(metrics, key)[0]) for key in panel.series.values())]


def curve(metrics: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, counted from 1, and values of one key, without the epochs that have no number for it."""
    pairs = [(line.get("epoch", number) + 1, line.get(key)) for number, line in enumerate(metrics)]
    known = [(x, y) for x, y in pairs if isinstance(y, (int, float)) and math.isfinite(y)]
    return np.array([x for x, _ in known], float), np.array([y for _, y in known], float)


def draw(axes: Axes, panel: Panel, metrics: Sequence[dict[str, Any]]) -> list[Ending]:
    """Draw one panel, and return the names for the ends of its lines."""
    # a name keeps its color when another has no numbers
    colored = zip(panel.series.items(), style.SERIES, strict=False)
    curves = {name: (*curve(metrics, key), color) for (name, key), color in colored}
    curves = {name: each for name, each in curves.items() if len(each[0])}
    first = min(x[0] for x, _, _ in curves.values())
    last = max(x[-1] for x, _, _ in curves.values())
    if panel.scale == "log" and min(min(y) for _, y, _ in curves.values()) > 0:
        axes.set_yscale("log")
    style.quiet(axes, panel.title, "epoch", panel.unit)
    ends = _stack(axes, curves) if panel.scale == "stacked" else _lines(axes, curves)
    for name, level in panel.levels.items():
        axes.axhline(level, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)))
        number = f"{level:.3g}" if level < 1000 else f"{level:,.0f}"
        ends.append((level, f"{name} = {number}", style.QUIET))
    if axes.get_yscale() == "linear":
        low, high = panel.ends
        top = max([max(y) for _, y, _ in curves.values()] + list(panel.levels.values()))
        if panel.scale != "stacked":
            # a plot of nothing but zeros still has a height
            axes.set_ylim(low or 0, (high if high is not None else top * 1.08) or 1)
    _plain_ticks(axes)
    alone = 0.5 * (first == last)  # a single epoch stands in the middle
    axes.set_xlim(first - alone, last + alone)
    return ends if len(ends) > 1 else []


def figure(shown: Sequence[Panel], metrics: Sequence[dict[str, Any]], columns: int = 2) -> Figure:
    """Some panels, side by side in rows."""
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    page = style.figure(4.7 * columns, ROW * rows)
    for number, panel in enumerate(shown):
        axes = page.add_subplot(rows, columns, number + 1)
        style.label(axes, draw(axes, panel, metrics), height=0.65 * ROW)
    return page


def history(metrics: Sequence[dict[str, Any]], clusters: int, images: int | None = None, turns: int = 1) -> Figure:
    """All panels of a run in one figure.

    Raises:
        DeepClusterError: no epoch has ended yet.
    """
    shown = panels(metrics, clusters, images, turns)
    if not shown:
        raise DeepClusterError("There is no curve to draw yet: no epoch has ended; train for longer first.")
    return figure(shown, metrics)


def history_of(run: Run, folder: Path | None = None) -> Path:
    """Draw `RUN/pictures/history.png`, or history.png in `folder`, and return its path."""
    assignment = np.asarray(run.assignment)
    page = history(run.metrics, len(run.centroids), int((assignment >= 0).sum()), turns_of(run.config))
    return style.save(page, (folder or Path(run.folder) / "pictures") / "history.png")


def _lines(axes: Axes, curves: Curves) -> list[Ending]:
    ends = []
    for name, (x, y, color) in curves.items():
        axes.plot(x, y, color=color, linewidth=1.8, solid_capstyle="round", clip_on=False)
        axes.plot(x[-1:], y[-1:], "o", color=color, markersize=4, clip_on=False)
        ends.append((float(y[-1]), name, color))
    return ends


def _stack(axes: Axes, curves: Curves) -> list[Ending]:
    epochs = np.unique(np.concatenate([x for x, _, _ in curves.values()]))
    floor, ends = np.zeros(len(epochs)), []
    for name, (x, y, color) in curves.items():
        height = np.zeros(len(epochs))
        height[np.searchsorted(epochs, x)] = y
        if len(epochs) > 1:
            axes.fill_between(epochs, floor, floor + height, color=color, linewidth=0, alpha=0.85, step="mid")
        else:
            axes.bar(epochs, height, 0.4, floor, color=color, alpha=0.85)
        ends.append((float(floor[-1] + height[-1] / 2), name, color))
        floor = floor + height
    axes.set_ylim(0, floor.max() * 1.08 or 1)
    return ends


def _plain_ticks(axes: Axes) -> None:
    """Whole epochs below; thousands with a comma, no powers of ten, at the left."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())

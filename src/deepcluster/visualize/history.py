"""The curves of a run: loss, agreement, cluster sizes, learning rate and where the time goes, by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import require_run
from deepcluster.visualize.style import Pictures

ROW = 2.6
"""Inches from one row of panels to the next."""

Metrics = Sequence[dict[str, Any]]
"""One mapping an epoch, as in metrics.jsonl."""
Curves = Mapping[str, tuple[np.ndarray, np.ndarray, str]]
"""Name -> epochs, values, color."""


def draw_history(run: Run) -> Pictures:
    """Curves over the epochs: loss, agreement, reassignment, sizes, learning rate, time."""
    run = require_run(run, "history")
    if not run.params.trains:
        raise DeepClusterError(
            f"{run.folder} was grouped and not trained, so it has no curves: try `visualize clusters`."
        )
    images = int((np.asarray(run.assignment) >= 0).sum())
    rotations = run.params.rotations_predicted
    return {"history": history_figure(run.metrics, len(run.centroids), images, rotations)}


@dataclass(frozen=True)
class Panel:
    """One small plot over epochs.

    Attributes:
        unit: name and unit of the vertical axis.
        series: name -> key in metrics.jsonl.
        levels: name -> a height to compare with, drawn as a dashed line.
        scale: "linear", "log" or "stacked" (areas on top of each other).
        top: upper end of the vertical axis; None = as the data need it.
        of_clusters: it says nothing of a run that only predicts rotations.
    """

    title: str
    unit: str
    series: dict[str, str]
    levels: dict[str, float] = field(default_factory=dict)
    scale: str = "linear"
    top: float | None = None
    of_clusters: bool = False

    def curves(self, metrics: Metrics) -> Curves:
        """The series that have numbers; a name keeps its color when another has none."""
        found = {
            name: (*curve(metrics, key), color)
            for (name, key), color in zip(self.series.items(), style.SERIES, strict=False)
        }
        return {name: each for name, each in found.items() if len(each[0])}


def panels(metrics: Metrics, clusters: int, images: int | None = None, rotations: int = 1) -> list[Panel]:
    """The panels for which `metrics` has at least one number, in reading order.

    Args:
        clusters: K; a network that guesses has loss ln K.
        images: N; with K it gives the mean cluster size.
        rotations: that are predicted too; guessing then has loss ln(rotations x K).
    """
    choices = max(clusters, 1) * rotations
    guessing = {"ln K" if rotations == 1 else f"ln {choices}": math.log(choices)}
    mean = {"mean": images / clusters} if images else {}
    agreement = {"NMI with previous": "nmi_previous", "NMI with labels": "nmi_labels", "purity": "purity"}
    unit = "NMI, purity (0 to 1)" if len(curve(metrics, "purity")[0]) else "NMI (0 to 1)"
    time = {"train": "seconds_train", "features": "seconds_features", "cluster": "seconds_cluster"}
    wanted = [
        Panel("Loss", "cross-entropy (nats)", {"loss": "loss"}, guessing),
        Panel("Agreement", unit, agreement, top=1, of_clusters=True),
        Panel("Images that changed cluster", "share of images", {"reassigned": "reassigned"}, top=1, of_clusters=True),
        Panel(
            "Cluster sizes", "images", {"largest": "size_max", "smallest": "size_min"}, mean, "log", of_clusters=True
        ),
        Panel("Clusters in use", "clusters", {"in use": "clusters_used"}, {"K": clusters}, of_clusters=True),
        Panel("Learning rate", "learning rate", {"backbone": "lr"}),
        Panel("Time of an epoch", "seconds", time, scale="stacked"),
        Panel("Speed", "images / second", {"images": "images_per_second"}),
    ]
    without_clusters = clusters <= 1 < rotations
    return [each for each in wanted if each.curves(metrics) and not (without_clusters and each.of_clusters)]


def curve(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, counted from 1, and values of one key, without the epochs that have no number for it."""
    pairs = [(row.get("epoch", number) + 1, row.get(key)) for number, row in enumerate(metrics)]
    known = [(x, y) for x, y in pairs if isinstance(y, (int, float)) and math.isfinite(y)]
    return np.array([x for x, _ in known], float), np.array([y for _, y in known], float)


def history_figure(metrics: Metrics, clusters: int, images: int | None = None, rotations: int = 1) -> Figure:
    """All panels of a run in one figure; as `panels`, and a DeepClusterError where no epoch has ended yet."""
    shown = panels(metrics, clusters, images, rotations)
    if not shown:
        raise DeepClusterError("There is no curve to draw yet: no epoch has ended; train for longer first.")
    return panel_figure([(panel, panel.curves(metrics)) for panel in shown])


def panel_figure(shown: Sequence[tuple[Panel, Curves]], *, labels: bool = True) -> Figure:
    """Panels with their curves, two in a row, with `labels` at the ends of the lines."""
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    page = style.figure(4.7 * columns, ROW * rows)
    for number, (panel, curves) in enumerate(shown):
        axes = page.add_subplot(rows, columns, number + 1)
        endings = draw_panel(axes, panel, curves)
        if labels and len(endings) > 1:
            style.label(axes, endings, height=0.65 * ROW)
    return page


def draw_panel(axes: Axes, panel: Panel, curves: Curves) -> list[tuple[float, str, str]]:
    """Draw one panel, and return height, name and color of the ends of its lines."""
    first = min(x[0] for x, _, _ in curves.values())
    last = max(x[-1] for x, _, _ in curves.values())
    highest = max([*(float(y.max()) for _, y, _ in curves.values()), *panel.levels.values()])
    if panel.scale == "log" and min(y.min() for _, y, _ in curves.values()) > 0:
        axes.set_yscale("log")
    style.quiet(axes, panel.title, "epoch", panel.unit)
    if panel.scale == "stacked":
        endings = _stack(axes, curves)
    else:
        endings = []
        for name, (x, y, color) in curves.items():
            axes.plot(x, y, color=color, linewidth=1.8, solid_capstyle="round", clip_on=False)
            axes.plot(x[-1:], y[-1:], "o", color=color, markersize=4, clip_on=False)
            endings.append((float(y[-1]), name, color))
        if axes.get_yscale() == "linear":
            axes.set_ylim(0, (highest * 1.08 if panel.top is None else panel.top) or 1)  # zeros alone have a height too
    for name, height in panel.levels.items():
        style.level(axes, height)
        value = f"{height:.3g}" if height < 1000 else f"{height:,.0f}"
        endings.append((height, f"{name} = {value}", style.QUIET))
    single = 0.5 * (first == last)  # a single epoch stands in the middle
    axes.set_xlim(first - single, last + single)
    style.ticks(axes.xaxis, integers=True)
    style.ticks(axes.yaxis, most=5)
    return endings


def _stack(axes: Axes, curves: Curves) -> list[tuple[float, str, str]]:
    epochs = np.unique(np.concatenate([x for x, _, _ in curves.values()]))
    floor, endings = np.zeros(len(epochs)), []
    for name, (x, y, color) in curves.items():
        height = np.zeros(len(epochs))
        height[np.searchsorted(epochs, x)] = y
        if len(epochs) > 1:
            axes.fill_between(epochs, floor, floor + height, color=color, linewidth=0, alpha=0.85, step="mid")
        else:
            axes.bar(epochs, height, 0.4, floor, color=color, alpha=0.85)
        endings.append((float(floor[-1] + height[-1] / 2), name, color))
        floor = floor + height
    axes.set_ylim(0, floor.max() * 1.08 or 1)
    return endings

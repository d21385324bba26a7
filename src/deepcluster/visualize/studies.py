"""Pictures of studies: a score against a setting, curves of several runs, sizes side by side, purity over a tree.

This file knows rows of numbers and nothing of runs or how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name -> (T,) epochs and (T,) values."""
BACKED = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
"""Behind words that a line may cross."""
LETTER = 0.0135
"""Width of a bold letter of 9 points as a share of the axes of a figure alone."""
HEIGHT = 3.6
"""Inches of a figure with one row of panels."""


def draw_series(
    axes: Axes, rows: Sequence[Row], setting: str, title: str, unit: str, classes: int | None = None
) -> None:
    """`score` against a setting on a logarithmic axis, the best marked, and the number of classes where k is meant.

    Args:
        rows: each with `setting`, `score` in [0, 1], and perhaps `error`, one standard error.
        classes: drawn as a dashed line; None = no line.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    x = np.array([row[setting] for row in rows], float)
    y = np.array([100 * row["score"] for row in rows], float)
    error = np.array([200 * row.get("error", 0.0) for row in rows], float)
    best, tied = int(y.argmax()), np.flatnonzero(y == y.max())
    axes.set_xscale("log")
    style.quiet(axes, title, f"{setting} (logarithmic)", unit)
    if error.any():
        if len(x) > 1:
            axes.fill_between(x, y - error, y + error, color=style.SERIES[0], alpha=0.15, linewidth=0)
        else:  # a band of one point has no width
            axes.errorbar(x, y, error, color=style.SERIES[0], capsize=4, linewidth=1.2)
        axes.annotate(
            f"{'band' if len(x) > 1 else 'bar'}: two standard errors", (1, 0.02), xycoords="axes fraction",
            xytext=(-4, 2), textcoords="offset points", ha="right", bbox=BACKED, color=style.SERIES[0], fontsize=9,
        )  # fmt: skip
    axes.plot(x, y, "o-", color=style.SERIES[0], linewidth=1.8, markersize=4.5)
    axes.plot(x[tied], y[tied], "o", color=style.SERIES[1], markersize=9, zorder=3)
    low, high = float((y - error).min()), float((y + error).max())
    room = max(high - low, 1.0)
    axes.set_ylim(max(0.0, low - 0.22 * room), high + 0.22 * room)
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= min(axes.get_ylim()[1], 100)])
    span = [*x, classes] if classes else list(x)
    axes.set_xlim(min(span) / 1.35, max(span) * 1.35)
    word = "best" if len(tied) == 1 else "equally good"
    numbers = " and ".join(_count(value) for value in x[tied]) if len(tied) < 4 else f"{len(tied)} values"
    said = f"{setting} = {_count(x[0])}" if len(x) == 1 else f"{word}: {setting} = {numbers}"
    said += f", {y[best]:.1f}"
    if classes:
        axes.axvline(classes, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
    at, side = _beside(axes, x[best], classes, LETTER * len(said))
    axes.annotate(
        said, (at, y[best] + error[best]),
        xytext=({"left": 3, "right": -3, "center": 0}[side], 7), textcoords="offset points", ha=side, bbox=BACKED,
        color=style.SERIES[1], fontsize=9, fontweight="bold",
    )  # fmt: skip
    if classes:
        late = classes > np.prod(np.array(axes.get_xlim()) ** [0.2, 0.8])
        axes.annotate(
            f"{classes:,} classes", (classes, 0.02), xycoords=("data", "axes fraction"), ha="right" if late else "left",
            xytext=(-4 if late else 4, 16 if error.any() else 2), textcoords="offset points", color=style.QUIET,
            fontsize=9,
        )  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(_apart(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))


def _beside(axes: Axes, x: float, line: float | None, width: float) -> tuple[float, str]:
    """Where words about `x` stand on a logarithmic axis, and on which side of that: within the axes, and not across
    the vertical line; where that cannot be, beside the line.

    Args:
        width: of the words, as a share of the axes.
    """
    low, high = np.log(axes.get_xlim())
    place, marked = ((np.log(value) - low) / (high - low) if value else None for value in (x, line))
    assert place is not None
    for side, left in (("center", place - width / 2), ("left", place), ("right", place - width)):
        crossed = marked is not None and left - 0.02 < marked < left + width + 0.02
        if left >= 0 and left + width <= 1 and not crossed:
            return x, side
    if line is None or marked is None:
        return x, "center"
    return line, "left" if marked + width <= 1 else "right"


def draw_curves(
    axes: Axes, lines: Lines, title: str, unit: str, ends: tuple[float, float] | None = (0, 1), points: bool = False
) -> None:
    """One line per name over epochs, named at its end when there are several.

    Args:
        ends: of the vertical axis; None = around the values.
        points: mark every value.
    """
    from matplotlib.ticker import MaxNLocator

    style.quiet(axes, title, "epoch", unit)
    endings = []
    for number, (name, (x, y)) in enumerate(lines.items()):
        color = style.SERIES[number % len(style.SERIES)]
        dashes = "-" if number < len(style.SERIES) else (0, (4, 2))
        axes.plot(x, y, color=color, linewidth=1.8, linestyle=dashes, marker="o" if points else None, markersize=3.5)
        axes.plot(x[-1:], y[-1:], "o", color=color, markersize=4.5)
        endings.append((float(y[-1]), name, color))
    first, last = min(x[0] for x, _ in lines.values()), max(x[-1] for x, _ in lines.values())
    for (_, _, color), (x, y) in zip(endings, lines.values(), strict=True):
        if x[-1] < last:  # lead the eye from where it ends to its name
            axes.plot([x[-1], last], [y[-1], y[-1]], color=color, linewidth=0.8, linestyle=(0, (1, 3)))
    room = 0.5 * (first == last) + 0.02 * (last - first)  # for whole dots at both ends
    axes.set_xlim(first - room, last + room)
    if ends is not None:
        axes.set_ylim(*ends)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if len(endings) > 1:
        style.label(axes, endings, height=0.65 * HEIGHT)


def curves_figure(lines: Lines, title: str, unit: str) -> Figure:
    """`draw_curves` alone."""
    page = style.figure(6.4, HEIGHT)
    draw_curves(page.add_subplot(), lines, title, unit)
    return page


def series_figure(rows: Sequence[Row], setting: str, title: str, unit: str, classes: int | None = None) -> Figure:
    """`draw_series` alone."""
    page = style.figure(6.4, HEIGHT)
    draw_series(page.add_subplot(), rows, setting, title, unit, classes)
    return page


def stopping_figure(rows: Sequence[Row], measure: str) -> Figure:
    """A watched score by epoch; the best is marked, and what came after it is grayed.

    Args:
        rows: each with `epoch`, `watched` in [0, 1] and `best`.
    """
    page = style.figure(6.4, HEIGHT)
    axes = page.add_subplot()
    x, y = np.array([row["epoch"] for row in rows]), np.array([100 * row["watched"] for row in rows])
    best = next(number for number, row in enumerate(rows) if row["best"])
    draw_curves(axes, {measure: (x, y)}, f"The {measure} while training", f"{measure} (%)", None, points=True)
    low, high = float(y.min()), float(y.max())
    room = max(high - low, 1.0)
    axes.set_ylim(max(0.0, low - 0.12 * room), high + 0.25 * room)
    if x[best] < x[-1]:
        axes.axvspan(x[best], axes.get_xlim()[1], color=style.LINE, alpha=0.5, linewidth=0, zorder=0)
    axes.plot(x[best], y[best], "o", color=style.SERIES[1], markersize=9, zorder=3)
    late = len(x) > 1 and x[best] > (x[0] + x[-1]) / 2
    axes.annotate(
        f"best: {y[best]:.1f} after epoch {x[best]}", (x[best], y[best]), xytext=(0, 10),
        textcoords="offset points", ha="right" if late else "left", color=style.SERIES[1], fontsize=9,
        fontweight="bold",
    )  # fmt: skip
    return page


def sizes_figure(sizes: Mapping[str, np.ndarray]) -> Figure:
    """Cluster sizes of several runs: from large to small, and how many clusters have which size.

    Args:
        sizes: name -> (K,) images in each cluster; empty clusters are left out.
    """
    page = style.figure(11, HEIGHT)
    left, right = page.subplots(1, 2)
    draw_ranked(left, sizes)
    draw_shares(right, sizes)
    return page


def draw_ranked(axes: Axes, sizes: Mapping[str, np.ndarray]) -> None:
    """Images against rank, both logarithmic."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    style.quiet(axes, "Clusters from large to small", "rank of the cluster (logarithmic)", "images (logarithmic)")
    for number, (name, each) in enumerate(sizes.items()):
        order = np.sort(each[each > 0])[::-1]
        axes.plot(
            np.arange(len(order)) + 1, order, color=style.SERIES[number % len(style.SERIES)], linewidth=1.8,
            label=f"{name}: {len(order):,} clusters", marker="o" if len(order) == 1 else None,
        )  # fmt: skip
    legend = axes.legend(frameon=False, fontsize=9, loc="lower left", labelcolor="linecolor", handlelength=1.2)
    legend.set_zorder(5)
    low, _ = axes.get_ylim()
    axes.set_ylim(min(low, 0.8 * min(each[each > 0].min() for each in sizes.values())), None)
    _whole(axes)


def draw_shares(axes: Axes, sizes: Mapping[str, np.ndarray], bins: int = 24) -> None:
    """Share of each run's clusters by size, in the same bins of equal ratio for all."""
    used = [each[each > 0] for each in sizes.values()]
    low, high = min(each.min() for each in used), max(each.max() for each in used)
    edges = np.unique(np.geomspace(low, high + 1, bins + 1).round())
    if len(edges) < 2:
        edges = np.array([low, low + 1.0])
    axes.set_xscale("log")
    style.quiet(axes, "How many clusters have which size", "images in a cluster (logarithmic)", "clusters (%)")
    for number, each in enumerate(used):
        count, _ = np.histogram(each, edges)
        color = style.SERIES[number % len(style.SERIES)]
        axes.stairs(100 * count / len(each), edges, color=color, linewidth=1.6)
        axes.stairs(100 * count / len(each), edges, color=color, fill=True, alpha=0.15)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, None)
    _whole(axes)


def tree_figure(depths: Sequence[Row], threshold: float, clusters: int) -> Figure:
    """Purity by depth above chance, and how many clusters are pure at each depth."""
    page = style.figure(10, HEIGHT)
    left, right = page.subplots(1, 2)
    x = np.array([row["depth"] for row in depths])
    purity, chance = (np.array([row[name] for row in depths]) for name in ("purity", "chance"))
    style.quiet(left, "Purity over the tree", "depth in the tree (right: the labels)", "share of images")
    left.plot(x, purity, "o-", color=style.SERIES[0], linewidth=1.8, markersize=4.5)
    left.plot(x, chance, "o--", color=style.QUIET, linewidth=1.2, markersize=3)
    left.set_ylim(0, 1.04)
    left.set_xticks(x)
    ends = [(purity[-1], "clusters", style.SERIES[0]), (chance[-1], "all in one", style.QUIET)]
    style.label(left, ends, height=0.65 * HEIGHT)
    pure = np.array([row["pure"] for row in depths])
    style.quiet(right, f"Clusters that are over {100 * threshold:g} % one node", "depth in the tree", "clusters")
    right.bar(x, pure, 0.6, color=style.SERIES[2], alpha=0.85)
    for depth, number in zip(x, pure, strict=True):
        right.annotate(
            f"{number:,}", (depth, number), xytext=(0, 4), textcoords="offset points", ha="center",
            color=style.INK, fontsize=9, bbox=BACKED,
        )  # fmt: skip
    right.axhline(clusters, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)))
    right.annotate(
        f"all {clusters:,}", (1, clusters), xycoords=("axes fraction", "data"), xytext=(7, 0),
        textcoords="offset points", va="center", color=style.QUIET, fontsize=9, annotation_clip=False,
    )  # fmt: skip
    right.set_ylim(0, 1.15 * clusters)
    right.set_xticks(x)
    return page


def three_panels(panels: Sequence[tuple[str, str, Callable[[Axes], None] | None]]) -> Figure:
    """Panels a, b, c side by side.

    Args:
        panels: title, sentence for a panel without data, and what draws it; None = there are no data.
    """
    page = style.figure(4.9 * len(panels), HEIGHT)
    for axes, (title, missing, draw) in zip(page.subplots(1, len(panels)), panels, strict=True):
        if draw is not None:
            draw(axes)
            continue
        style.quiet(axes, title, "", "")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", va="center", color=style.QUIET, fontsize=10)
    return page


def _apart(x: np.ndarray, ratio: float = 1.25) -> list[float]:
    """Values for ticks, without those that would lie on the one before."""
    kept: list[float] = []
    for value in np.sort(x):
        if not kept or value >= ratio * kept[-1]:
            kept.append(float(value))
    return kept


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _whole(axes: Axes) -> None:
    """Plain numbers, not powers of ten, on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, scale, (low, high) in (
        (axes.xaxis, axes.get_xscale(), axes.get_xlim()),
        (axes.yaxis, axes.get_yscale(), axes.get_ylim()),
    ):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))

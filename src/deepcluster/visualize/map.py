"""Features laid out on a plane, as dots colored by group or as small images side by side.

Pure functions of tables; this file knows nothing of networks or runs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.grid import thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYOUTS = ("pca", "tsne", "umap")
LEGEND = 12
"""Groups that a legend names at most; more could not be told apart by color."""
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b5a2b", "#444444", "#b2182b", "#7b68c8",
    "#a3b000", "#00b3b3",
)  # fmt: skip


def lay_out(features: np.ndarray, how: str, *, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """(N, 2) float32 places of (N, D) features, which are scaled to unit length first, as neighbors by cosine want it.

    Args:
        how: "pca": the two directions in which the features vary most; distances are true as far as two directions
            go. "tsne": neighbors stay neighbors (van der Maaten and Hinton 2008); far distances
            and sizes of groups mean little. "umap": McInnes, Healy and Melville 2018, likewise.
        perplexity: of t-SNE: about how many neighbors count.

    Raises:
        DeepClusterError: no such layout, too few images, or UMAP is not installed.
    """
    if how not in LAYOUTS:
        raise DeepClusterError(f"how={how!r} is no layout: choose {', '.join(LAYOUTS)}.")
    if len(features) < 4:
        raise DeepClusterError(f"{len(features)} images are too few for a map: give 4 or more.")
    rows = np.asarray(features, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if how == "pca":
        return _pca(rows, 2)
    if how == "umap":
        return _umap(rows, seed)
    from sklearn.manifold import TSNE

    start = _pca(rows, 2)
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    near = min(perplexity, (len(rows) - 1) / 3)
    # fifty directions hold what neighborhoods need, and distances in them cost little
    return TSNE(perplexity=near, init=start, random_state=seed).fit_transform(_pca(rows, 50)).astype(np.float32)


def _pca(rows: np.ndarray, count: int) -> np.ndarray:
    """(N, P) float32 along the main directions; the largest number of each direction is positive."""
    centered = rows - rows.mean(0)
    if len(rows) < rows.shape[1]:
        directions = np.linalg.svd(centered, full_matrices=False)[2][:count]
    else:
        directions = np.linalg.eigh(centered.T @ centered)[1].T[::-1][:count]
    peak = directions[np.arange(len(directions)), np.abs(directions).argmax(1)]
    places = centered @ (directions * np.where(peak < 0, -1, 1)[:, None]).T
    if places.shape[1] < 2:  # features of one number
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    return places.astype(np.float32)


def can_lay_out(how: str) -> None:
    """
    Raises:
        DeepClusterError: the layout needs a package that is not installed.
    """
    if how == "umap" and importlib.util.find_spec("umap") is None:
        raise DeepClusterError("UMAP is not installed: `pip install umap-learn`, or take the layout tsne or pca.")


def _umap(rows: np.ndarray, seed: int) -> np.ndarray:
    can_lay_out("umap")
    from umap import UMAP

    return UMAP(metric="cosine", random_state=seed).fit_transform(rows).astype(np.float32)


def map_figure(
    places: np.ndarray,
    groups: np.ndarray | None,
    names: Sequence[str],
    title: str,
    text: str = "",
    axes_names: tuple[str, str] = ("", ""),
) -> Figure:
    """A dot for each image.

    Args:
        places: (N, 2).
        groups: (N,) group of each image, -1 = none, drawn in gray below the others; None = all of one color.
        names: of the groups; up to `LEGEND` groups that occur are named in a legend, more share the colors.
        axes_names: what lies along both axes; without them they have no ticks.
    """
    used = np.array([], np.int64) if groups is None else np.unique(groups[groups >= 0])
    legend = 1 < len(used) <= LEGEND
    page = style.figure(9.2 if legend else 7.6, 7.2)
    axes = page.add_subplot()
    style.quiet(axes, title, *axes_names)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    size = float(np.clip(36000 / len(places), 6, 40))
    rest = np.ones(len(places), bool) if groups is None else groups < 0
    lone = style.SERIES[0] if groups is None else style.LINE
    axes.scatter(places[rest, 0], places[rest, 1], s=size, color=lone, linewidths=0, alpha=0.7)
    if groups is not None:
        # groups in turn, not one above all others
        order = np.random.default_rng(0).permutation(np.flatnonzero(~rest))
        colors = np.array(_palette(len(used)))
        axes.scatter(
            places[order, 0],
            places[order, 1],
            s=size,
            c=colors[np.searchsorted(used, groups[order])],
            linewidths=0,
            alpha=0.75,
        )
        if legend:
            for number, group in enumerate(used):
                axes.scatter([], [], s=40, color=colors[number], label=names[group])
            axes.legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=style.INK,
                handletextpad=0.2,
            )  # fmt: skip
    axes.margins(0.02)
    axes.set_aspect("equal", adjustable="datalim")
    if text:
        page.supxlabel(text, x=0.012, ha="left", fontsize=9, color=style.QUIET)
    return page


def _palette(count: int) -> list[str]:
    """Colors of so many groups; many groups share hues in turn, at three lightnesses."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    from matplotlib.colors import to_hex, to_rgb

    shades = []
    for number in range(count):
        base = np.array(to_rgb(COLORS[number % len(COLORS)]))
        lighter = (0.0, 0.35, -0.3)[(number // len(COLORS)) % 3]
        shade = base + (1 - base) * lighter if lighter >= 0 else base * (1 + lighter)
        shades.append(to_hex((float(shade[0]), float(shade[1]), float(shade[2]))))
    return shades


def thumbnail_map(
    places: np.ndarray, read: Callable[[int], np.ndarray | None], *, cells: int = 30, side: int = 40
) -> np.ndarray:
    """Small images where they lie, on a grid of cells so that none hides another, (cells * side, ..., 3) uint8.

    Args:
        places: (N, 2).
        read: gives the pixels of image 0 ... N - 1, or None.
        cells: along each axis; a cell shows the image nearest to its middle.
        side: of a thumbnail, in pixels.
    """
    page = np.full((cells * side, cells * side, 3), 255, np.uint8)
    for (row, column), number in on_grid(places, cells).items():
        image = read(number)
        if image is not None:
            page[row * side : (row + 1) * side, column * side : (column + 1) * side] = thumbnail(image, side)
    return page


def on_grid(places: np.ndarray, cells: int) -> dict[tuple[int, int], int]:
    """(row from the top, column) -> the place nearest to the cell's middle, for every cell that has one."""
    low, high = places.min(0), places.max(0)
    unit = (places - low) / np.where(high > low, high - low, 1) * cells
    cell = np.minimum(unit.astype(np.int64), cells - 1)
    off = np.square(unit - cell - 0.5).sum(1)
    found: dict[tuple[int, int], int] = {}
    for number in np.argsort(-off, kind="stable").tolist():  # the nearest come last and stay
        found[cells - 1 - int(cell[number, 1]), int(cell[number, 0])] = number
    return found

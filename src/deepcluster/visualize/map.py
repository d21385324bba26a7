"""Features laid out on a plane, as dots colored by group or as small images side by side."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

from deepcluster.data.naming import short_name
from deepcluster.data.source import known_labels
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, counted
from deepcluster.features.extract import extract
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import SILENT, open_pixels, reader, require_clusters, require_labels
from deepcluster.visualize.images import WHITE, thumbnail, titled
from deepcluster.visualize.letters import verbatim
from deepcluster.visualize.style import Picture, Pictures

Layout = Literal["pca", "tsne", "umap"]
MOST_NAMED = 12
"""Groups that a legend names at most; more could not be told apart by color."""
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b5a2b", "#444444", "#b2182b", "#7b68c8",
    "#a3b000", "#00b3b3",
)  # fmt: skip


def draw_map(
    subject: Subject,
    *,
    data: Any = None,
    layout: tuple[Layout, ...] = ("pca", "tsne"),
    points: int = 5000,
    color: Literal["auto", "cluster", "label", "none"] = "auto",
    thumbnails: bool = False,
    tap: str | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
    screen: Screen = SILENT,
) -> Pictures:
    """The features of images on a plane, a dot each, colored by cluster or class; or the images themselves.

    Args:
        data: images to lay out; by default those the run was trained on.
        layout: pca, tsne, umap (needs the package umap-learn); a picture each.
        points: images at most, drawn at random.
        color: auto = by cluster for a run, by label for another network that is given labelled images.
        thumbnails: small images in place of dots, none over another.
        tap: layer whose features are laid out; by default the network's output.
        perplexity: of t-SNE: about how many neighbors count.
        seed: of the images that are drawn, and of the layout.
    """
    if points < 4:
        raise DeepClusterError(f"--points {points} are too few for a map: give 4 or more.")
    if "umap" in layout and importlib.util.find_spec("umap") is None:
        raise DeepClusterError("UMAP is not installed: `pip install umap-learn`, or take the layout tsne or pca.")
    pixels = open_pixels(subject, data)
    index = pixels.good
    if len(pixels) > points:
        index = np.sort(np.random.default_rng(seed).permutation(index)[:points])
    backbone = subject.backbone.to(subject.device)
    with screen.bar("images", len(index)) as bar:
        index, features = extract(backbone, pixels, device=subject.device, tap=tap, only=index, check=bar)
    if color == "auto":
        labelled = known_labels(pixels.source) is not None
        color = "cluster" if subject.clustered else "label" if labelled else "none"
    groups: np.ndarray | None = None
    names: list[str] = []
    if color == "label":
        labels, names = require_labels(pixels.source)
        groups = labels[index]
    elif color == "cluster":
        run = require_clusters(subject, "map --color cluster")
        names = [f"cluster {number}" for number in range(len(run.centroids))]
        if data is None:
            groups = np.asarray(run.assignment)[index]
        elif tap is None:
            groups = run.model.nearest(features)[0]
        else:
            groups = run.model.nearest(extract(backbone, pixels, device=subject.device, only=index)[1])[0]
    pictures: dict[str, Picture] = {}
    for how in layout:
        screen.print(f"laying out {len(features):,} images by {how}")
        positions = lay_out(features, how, seed=seed, perplexity=perplexity)
        what = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[how]
        title = f"{what} of the features of {short_name(subject.name)}"
        text = f"{len(index):,} images of {short_name(pixels.source.name)}"
        file = f"map-{how}"
        if thumbnails:
            text += "; each cell of a grid shows the image that lies nearest to its middle."
            images = thumbnail_map(positions, index, reader(pixels.source, 48))
            pictures[f"{file}-thumbnails"] = titled(images, title, text)
        else:
            by = {"none": "", "label": ", colored by class", "cluster": ", colored by cluster"}[color]
            text += f", a dot each{by}"
            axes = ("first principal component", "second principal component") if how == "pca" else ("", "")
            pictures[file] = map_figure(positions, groups, names, title, text, axes)
    return pictures


def lay_out(features: np.ndarray, how: Layout, *, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """(N, 2) float32 positions of (N, D) features, which are scaled to unit length first, so that cosines count.

    Args:
        how: "pca", "tsne" (van der Maaten and Hinton 2008) or "umap" (McInnes, Healy and Melville 2018).
    """
    if len(features) < 4:
        raise DeepClusterError(
            f"{counted(len(features), 'image')} {'is' if len(features) == 1 else 'are'} too few for a map: give 4 or"
            " more."
        )
    rows = normalize(np.asarray(features, np.float64))
    if how == "umap":
        from umap import UMAP

        return np.asarray(UMAP(metric="cosine", random_state=seed).fit_transform(rows), np.float32)
    # fifty directions hold what neighborhoods need, and distances in them cost little
    directions = min(50, *rows.shape)
    solver = "covariance_eigh" if len(rows) >= rows.shape[1] else "full"
    rows = PCA(directions, svd_solver=solver).fit_transform(rows).astype(np.float32)
    positions = np.pad(rows[:, :2], ((0, 0), (0, max(2 - directions, 0))))  # features may be single numbers
    if how == "pca":
        return positions
    start = positions * (1e-4 / max(float(positions[:, 0].std()), 1e-12))
    tsne = TSNE(perplexity=min(perplexity, (len(rows) - 1) / 3), init=start, random_state=seed)
    return np.asarray(tsne.fit_transform(rows), np.float32)


def map_figure(
    positions: np.ndarray,
    groups: np.ndarray | None,
    names: Sequence[str],
    title: str,
    text: str = "",
    axes_names: tuple[str, str] = ("", ""),
) -> Figure:
    """A dot for each image.

    Args:
        positions: (N, 2).
        groups: (N,) group of each image, -1 = none, drawn in gray below the others; None = all of one color.
        names: of the groups; up to `MOST_NAMED` groups that occur are named in a legend, more share the colors.
    """
    used = np.array([], np.int64) if groups is None else np.unique(groups[groups >= 0])
    legend = 1 < len(used) <= MOST_NAMED
    page = style.figure(9.2 if legend else 7.6, 7.2)
    axes = page.add_subplot()
    style.quiet(axes, verbatim(title, 90, bold=True), *axes_names)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set(xticks=[], yticks=[])
    size = float(np.clip(36000 / len(positions), 6, 40))
    rest = np.ones(len(positions), bool) if groups is None else groups < 0
    plain = style.SERIES[0] if groups is None else style.LINE
    axes.scatter(positions[rest, 0], positions[rest, 1], s=size, color=plain, linewidths=0, alpha=0.7)
    if groups is not None:
        order = np.random.default_rng(0).permutation(np.flatnonzero(~rest))  # no group above all others
        colors = np.array(palette(len(used)))
        shades = colors[np.searchsorted(used, groups[order])]
        axes.scatter(positions[order, 0], positions[order, 1], s=size, c=shades, linewidths=0, alpha=0.75)
        if legend:
            for number, group in enumerate(used):
                axes.scatter([], [], s=40, color=colors[number], label=verbatim(names[group]))
            axes.legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=style.INK,
                handletextpad=0.2,
            )  # fmt: skip
    axes.margins(0.02)
    axes.set_aspect("equal", adjustable="datalim")
    if text:
        page.supxlabel(verbatim(text, 140), x=0.012, ha="left", fontsize=9, color=style.QUIET)
    return page


def palette(count: int) -> list[str]:
    """Colors of so many groups; many groups share hues in turn, at three lightnesses."""
    base = np.array([to_rgb(color) for color in COLORS])
    shades = [to_hex(tuple(color)) for color in np.concatenate([base, base + 0.35 * (1 - base), 0.7 * base])]
    return [shades[number % len(shades)] for number in range(count)]


def thumbnail_map(
    positions: np.ndarray,
    index: np.ndarray,
    read: Callable[[int], np.ndarray | None],
    *,
    cells: int = 30,
    side: int = 40,
) -> np.ndarray:
    """Small images where they lie, on a grid of cells so that none hides another, (cells * side, ..., 3) uint8.

    Args:
        positions: (N, 2).
        index: (N,) the images there.
        cells: along each axis; a cell shows the image nearest to its middle.
    """
    page = np.full((cells * side, cells * side, 3), WHITE, np.uint8)
    for (row, column), number in nearest_to_cells(positions, cells).items():
        if (image := read(int(index[number]))) is not None:
            page[row * side : (row + 1) * side, column * side : (column + 1) * side] = thumbnail(image, side)
    return page


def nearest_to_cells(positions: np.ndarray, cells: int) -> dict[tuple[int, int], int]:
    """(row from the top, column) -> the position nearest to the cell's middle, for every cell that has one."""
    low, high = positions.min(0), positions.max(0)
    unit = (positions - low) / np.where(high > low, high - low, 1) * cells
    cell = np.minimum(unit.astype(np.int64), cells - 1)
    off = np.square(unit - cell - 0.5).sum(1)
    found: dict[tuple[int, int], int] = {}
    for number in np.argsort(-off, kind="stable").tolist():  # the nearest come last and stay
        found[cells - 1 - int(cell[number, 1]), int(cell[number, 0])] = number
    return found

"""Query images with their nearest neighbors, by the trained network and, below, by the untrained one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from deepcluster.data.cache import Pixels
from deepcluster.data.naming import short_name
from deepcluster.data.source import known_labels
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.features import knn
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import SILENT, class_name, open_pixels, reader
from deepcluster.visualize.images import WHITE, framed, padded, side_by_side, stacked, text_line, thumbnail, titled
from deepcluster.visualize.style import Pictures

SAME, OTHER = style.SERIES[2], style.SERIES[1]
"""Frames of neighbors of the query's class, and of another."""
BAND = 150
"""Pixels at the left for the name of a row."""


def draw_neighbors(
    subject: Subject,
    *,
    data: Any = None,
    queries: int = 8,
    index: tuple[int, ...] = (),
    k: int = 10,
    tap: str | None = None,
    seed: int = 0,
    screen: Screen = SILENT,
) -> Pictures:
    """The nearest images of some queries, by the trained network and by the same one before training.

    Args:
        data: images to search; by default those the run was trained on.
        queries: how many queries, drawn at random, of different classes where there are labels.
        index: positions of the queries in the source, in place of drawing them.
        k: neighbors of each.
        tap: layer whose features are compared; by default the network's output.
        seed: of the queries, and of the untrained network where it is not that of a run.
    """
    networks = {"trained": subject, "untrained": subject.untrained(seed)}
    sheet, text = neighbor_sheet(
        networks, open_pixels(subject, data), queries=queries, index=index, k=k, tap=tap, seed=seed, screen=screen
    )
    title = f"The {k} nearest images of each query"
    return {"neighbors": titled(sheet, title, f"{short_name(subject.name)}: {text}")}


def neighbor_sheet(
    networks: dict[str, Subject],
    pixels: Pixels,
    *,
    queries: int,
    index: Sequence[int] = (),
    k: int,
    tap: str | None = None,
    seed: int = 0,
    screen: Screen = SILENT,
) -> tuple[np.ndarray, str]:
    """Rows of neighbors by each network, and the sentences that explain them; options as in `draw_neighbors`."""
    labels, chosen = known_labels(pixels.source), np.array(index, np.int64)
    rows = {}
    for name, network in networks.items():
        with screen.bar(name, len(pixels)) as bar:
            features = network.features(pixels, tap, bar)
        good = np.flatnonzero(np.isfinite(features).all(axis=1))
        for query in chosen[~np.isin(chosen, good)]:
            raise DeepClusterError(
                f"Image {query} cannot be a query: {pixels.source.name} has no image that can be decoded there."
            )
        if not len(chosen):
            chosen = draw_queries(good, queries, seed, None if labels is None else labels[good])
        # half a million rows are many for a CPU
        rows[name] = nearest_rows(features, chosen, k, network.device if network.device.startswith("cuda") else "cpu")
    text = f"neighbors by cosine among {len(pixels):,} images of {short_name(pixels.source.name)}, nearest first."
    if labels is not None:
        shares = [f"{agreement(chosen, found, labels) or 0:.0%} by {name}" for name, found in rows.items()]
        text += f" Green frames: of the query's class; orange: of another. Of the query's class: {', '.join(shares)}."
    read = reader(pixels.source, 96)
    return neighbor_rows(chosen, rows, read, labels=labels, classes=pixels.source.classes), text


def draw_queries(good: np.ndarray, count: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """(count,) int64 of the (M,) images `good`, drawn at random, of as many of their classes as there are."""
    if not 1 <= count <= len(good):
        raise DeepClusterError(f"{count} queries cannot be drawn from {len(good)} images: ask for fewer.")
    shuffled = np.random.default_rng(seed).permutation(len(good))
    if labels is None:
        return good[shuffled[:count]]
    # the first of each class, then the second of each, ...
    drawn: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)
    rank = [next(drawn[label]) for label in labels[shuffled].tolist()]
    return good[shuffled[np.argsort(rank, kind="stable")[:count]]]


def nearest_rows(features: np.ndarray, queries: np.ndarray, count: int, device: str = "cpu") -> np.ndarray:
    """(Q, count) int64 images nearest by cosine to each query (a row of the (N, D) features), without itself.

    Bad images, whose rows are NaN, are nobody's neighbor.
    """
    good = np.flatnonzero(np.isfinite(features).all(axis=1))
    if count >= len(good):
        raise DeepClusterError(f"{count} neighbors need more than {len(good)} images: ask for fewer.")
    rows, _ = knn.nearest_rows(features[good], count + 1, queries=features[queries], metric="cosine", device=device)
    # a copy of the query may stand before it
    return np.stack([others[others != query][:count] for query, others in zip(queries, good[rows], strict=True)])


def agreement(queries: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of the neighbors that are of their query's class; None where no query or no neighbor has a label."""
    known = (labels[queries][:, None] >= 0) & (labels[rows] >= 0)
    same = labels[rows] == labels[queries][:, None]
    return float(same[known].mean()) if known.any() else None


def neighbor_rows(
    queries: np.ndarray,
    rows: dict[str, np.ndarray],
    read: Callable[[int], np.ndarray | None],
    *,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    side: int = 84,
) -> np.ndarray:
    """For each query one row of neighbors by each network, the query in front, (H, W, 3) uint8.

    Args:
        queries: (Q,) int64.
        rows: name of the network -> (Q, k) int64, nearest first.
        labels: (N,) classes, -1 = none: neighbors of the query's class have a green frame, others an orange one.
    """

    def tile(other: int, own: int) -> np.ndarray:
        image = thumbnail(read(other), side)
        if labels is None or own < 0 or labels[other] < 0:
            return image
        return framed(image, SAME if labels[other] == own else OTHER)

    parts = []
    for place, query in enumerate(queries.tolist()):
        own = -1 if labels is None else int(labels[query])
        heading = class_name(classes, own) if own >= 0 else f"image {query}"
        blocks = []
        for number, (name, found) in enumerate(rows.items()):
            tiles = [tile(other, own) for other in found[place].tolist()]
            first = np.full((side, side, 3), WHITE, np.uint8) if number else thumbnail(read(query), side)
            lines = [] if number else [text_line(heading, BAND, size=13)]
            words = stacked([*lines, text_line(name, BAND, size=12, color=style.QUIET)], gap=0)
            words = padded(words, top=max(side - len(words), 0) // 2)
            blocks.append(side_by_side([words, first, side_by_side(tiles, gap=4)], gap=12))
        parts.append(stacked(blocks, gap=4))
    return stacked(parts, gap=16)

"""Query images with their nearest neighbors, by the trained network and, below, by the one nothing was taught.

Pure functions of tables and images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.grid import thumbnail
from deepcluster.visualize.page import below, beside, framed, line

Read = Callable[[int], "np.ndarray | None"]
SAME, OTHER = style.SERIES[2], style.SERIES[1]
"""Frames of neighbors of the query's class, and of another."""
BAND = 150
"""Pixels at the left for the name of a row."""


def draw_queries(good: np.ndarray, count: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """(count,) int64 of the (M,) images `good`, drawn at random.

    Args:
        labels: (M,) classes of these images: then from as many classes as there are.

    Raises:
        DeepClusterError: there are not so many.
    """
    if not 1 <= count <= len(good):
        raise DeepClusterError(f"{count} queries cannot be drawn from {len(good)} images: ask for fewer.")
    mixed = np.random.default_rng(seed).permutation(len(good))
    if labels is None:
        return good[mixed[:count]]
    # the first of each class, then the second of each, ...
    _, own = np.unique(labels[mixed], return_inverse=True)
    seen = np.zeros(own.max() + 1, np.int64)
    turn = np.empty(len(mixed), np.int64)
    for place, group in enumerate(own):
        turn[place] = seen[group]
        seen[group] += 1
    return good[mixed[np.argsort(turn, kind="stable")[:count]]]


def nearest_rows(features: np.ndarray, queries: np.ndarray, count: int, device: str = "cpu") -> np.ndarray:
    """(Q, count) int64 images nearest to each query by cosine, without itself; bad images are nobody's neighbor.

    Args:
        features: (N, D), NaN rows = bad.
        queries: (Q,) int64 rows of it.
    """
    import torch

    from deepcluster.features.neighbors import nearest

    good = np.flatnonzero(np.isfinite(features).all(axis=1))
    if count >= len(good):
        raise DeepClusterError(f"{count} neighbors need more than {len(good)} images: ask for fewer.")
    bank = torch.from_numpy(np.ascontiguousarray(features[good], np.float32))
    asked = torch.from_numpy(np.ascontiguousarray(features[queries], np.float32))
    _, rows = nearest(bank, asked, count + 1, device=device)
    found = np.empty((len(queries), count), np.int64)
    for place, query in enumerate(queries):
        others = good[rows[place].numpy()]
        found[place] = others[others != query][:count]  # a copy of the query may stand before it
    return found


def agreement(queries: np.ndarray, rows: np.ndarray, labels: np.ndarray | None) -> float | None:
    """Share of the neighbors that are of their query's class; None without labels."""
    if labels is None:
        return None
    known = (labels[queries][:, None] >= 0) & (labels[rows] >= 0)
    same = labels[rows] == labels[queries][:, None]
    return float(same[known].mean()) if known.any() else None


def neighbor_sheet(
    queries: np.ndarray,
    rows: dict[str, np.ndarray],
    read: Read,
    *,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    side: int = 84,
) -> np.ndarray:
    """For each query one row of neighbors by each network, the query in front, (H, W, 3) uint8.

    Args:
        queries: (Q,) int64.
        rows: name of the network -> (Q, k) int64, nearest first.
        labels: (N,) classes, -1 = none: neighbors of the query's class have a green frame, others an orange one.
        classes: names of the labels.
    """
    parts = []
    for place, query in enumerate(queries.tolist()):
        own = -1 if labels is None else int(labels[query])
        called = classes[own] if 0 <= own < len(classes) else f"class {own}" if own >= 0 else f"image {query}"
        blocks = []
        for number, (name, found) in enumerate(rows.items()):
            first = _tile(read(query), side) if number == 0 else np.full((side, side, 3), 255, np.uint8)
            tiles = []
            for other in found[place].tolist():
                tile = _tile(read(other), side)
                if own >= 0 and labels is not None and labels[other] >= 0:
                    tile = framed(tile, SAME if labels[other] == own else OTHER)
                tiles.append(tile)
            lines = [line(called, BAND, size=13)] if number == 0 else []
            lines.append(line(name, BAND, size=12, color=style.QUIET))
            words = below(lines, gap=0)
            words = np.pad(words, ((max(side - len(words), 0) // 2, 0), (0, 0), (0, 0)), constant_values=255)
            blocks.append(beside([words, first, beside(tiles, gap=4)], gap=12))
        parts.append(below(blocks, gap=4))
    return below(parts, gap=16)


def _tile(image: np.ndarray | None, side: int) -> np.ndarray:
    return np.full((side, side, 3), 232, np.uint8) if image is None else thumbnail(image, side)

"""What a person may want to do next: clusters that look like one, and clusters that look like two.

Both are rules of thumb about centers and spreads; docs/explore.md says what they are worth.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np

from deepcluster.clustering.kmeans import KMeans
from deepcluster.explore.catalog import Catalog
from deepcluster.explore.vectors import Vectors

ALIKE, NEARER = 1 / 3, 0.7
"""Two clusters are one where their centers explain less of their spread than this, as Ward's criterion counts it, and
less than this share of what is usual between a cluster of the run and its nearest: else all may run into each other."""
APART = 2.0
"""A cluster is two where the centers of its halves are so many times as far apart as images are from them."""
LEAST, SAMPLE = 3, 500
"""Images that the smaller half has at least, and images of a cluster that are looked at."""
SHOWN = 8
SEED = 0
MOST = 100
"""Clusters that are looked at for halves, those with the largest spread in all."""


def merges(catalog: Catalog) -> list[tuple[int, int]]:
    """Pairs of visible clusters that look like one, the most alike first; no cluster is in two pairs."""
    table = catalog.table()
    rows = zip(table.number.tolist(), table.size.tolist(), table.distance.tolist(), strict=True)
    known = {number: (size, size * distance**2) for number, size, distance in rows if number >= 0}
    found = []
    for one, others in catalog.nearest([*known.keys() - catalog.groups.hidden], 3).items():
        for other, apart in others:
            (n, spread), (m, other_spread) = known[one], known[other]
            within, between = spread + other_spread, n * m / (n + m) * apart**2
            if within > 0:
                found.append((between / within, min(one, other), max(one, other)))
    nearest: dict[int, float] = {}
    pairs: list[tuple[int, int]] = []
    for ratio, *pair in (found := sorted(set(found))):
        for cluster in pair:
            nearest.setdefault(cluster, ratio)
    usual, taken = np.median([*nearest.values()] or [0.0]), set[int]()
    for ratio, one, other in found:
        if ratio <= min(ALIKE, NEARER * usual) and not {one, other} & taken:
            pairs.append((one, other))
            taken |= {one, other}
    return pairs


def suggest(catalog: Catalog, vectors: Vectors, lock: AbstractContextManager[Any]) -> list[dict[str, Any]]:
    """What may be edited next, merges before splits, as `{"op", "clusters": [{"id", "name"}], "parts": [{"size",
    "images"}]}` with a few images of each cluster, or of each half of one.

    Args:
        lock: held while the clusters are looked at, and not while they are cut in halves.
    """
    with lock:
        named = {one: catalog.name(one) for one in catalog.table().number.tolist()}
        found: list[tuple[str, tuple[int, ...], list[list[int]]]] = [
            ("merge", pair, [catalog.members(one).tolist() for one in pair]) for pair in merges(catalog)
        ]
        maybe = {one: _sample(catalog.groups.members(one), vectors) for one in _spread(catalog)}
    cut = [(halves(vectors, members), one) for one, members in maybe.items()]
    found += [
        ("split", (one,), parts) for (far, parts), one in sorted(cut, key=lambda each: -each[0][0]) if far >= APART
    ]
    return [
        {
            "op": op,
            "clusters": [{"id": one, "name": named[one]} for one in clusters],
            "parts": [{"size": len(part), "images": part[:SHOWN]} for part in parts],
        }
        for op, clusters, parts in found
    ]


@lru_cache(1024)  # an edit changes a cluster or two, and the others are asked for again
def halves(vectors: Vectors, members: tuple[int, ...]) -> tuple[float, list[list[int]]]:
    """How far apart the halves of a cluster are, `APART` or more where it looks like two, and for each half its images,
    those nearest to its center first."""
    rows, index = np.asarray(vectors.rows[list(members)]), np.asarray(members)
    part = np.zeros(len(rows), np.int64)
    if len(rows) >= 2 * LEAST and np.ptp(rows, axis=0).any():
        part = np.asarray(KMeans(n_clusters=2, random_state=SEED, max_iter=50).fit_predict(rows))
    if np.bincount(part, minlength=2).min() < LEAST:
        return 0.0, []
    centers = np.stack([rows[part == half].mean(0) for half in (0, 1)])
    own = np.linalg.norm(rows - centers[part], axis=1)
    order = np.argsort(own, kind="stable")
    inside = np.mean([own[part == half].mean() for half in (0, 1)])
    apart = float(np.linalg.norm(centers[0] - centers[1]) / max(inside, 1e-9))
    return apart, [index[order][part[order] == half].tolist() for half in (0, 1)]


def _spread(catalog: Catalog) -> list[int]:
    """The visible clusters that may be two, the most spread first."""
    table = catalog.table()
    usable = (table.number >= 0) & (table.distance > 0) & ~catalog.groups.is_hidden(table.number)
    spread = np.where(usable, table.size * table.distance, 0)
    return [int(table.number[row]) for row in np.argsort(-spread, kind="stable")[: min(MOST, usable.sum())]]


def _sample(members: np.ndarray, vectors: Vectors) -> tuple[int, ...]:
    good = np.setdiff1d(members, vectors.bad)
    return tuple(good[:: max(1, -(-len(good) // SAMPLE))].tolist())

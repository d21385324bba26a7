"""Near-duplicates: images with nearly equal vectors. They share a cluster, so pairs are searched within clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deepcluster.clustering.curation import members_of
from deepcluster.features.parallel import over_calls

AT_ONCE = 1 << 22
"""Similarities held at a time."""
SHARE = 1 << 16
"""Rows of clusters that are looked at together."""


def similarities(rows: Any, label: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """The cosine of all pairs within clusters, some rows at a time.

    Args:
        rows: (N, P) unit rows.
        label: (N,) clusters, -1 = none.

    Yields:
        (n,) ascending members of a cluster, the first b, and (B, n) cosines of its members b to b + B - 1 to all.
    """
    for _, members in members_of(label):
        own = rows[members]
        step = max(1, AT_ONCE // len(own))
        for start in range(0, len(own), step):
            yield members, start, own[start : start + step] @ own.T


def repeats(rows: Any, label: np.ndarray, least: float) -> np.ndarray:
    """(N,) bool: which images have a cosine of at least `least` to an earlier one of their cluster that is none itself.

    Args:
        rows: (N, P) unit rows.
        label: (N,) clusters, -1 = none.
        least: above 1 = there are none.
    """
    found = np.zeros(len(label), bool)
    if least > 1:
        return found
    least = min(least, 1 - 1e-6)  # rounding takes so much of the cosine of equal rows
    for repeated in over_calls(_repeats, _shares(label), rows, least):
        found[repeated] = True
    return found


def _shares(label: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole clusters, at least `SHARE` rows together: ascending places of their members, and the clusters of these."""
    order = np.argsort(label, kind="stable")
    order, first = order[label[order] >= 0], 0
    for last in np.flatnonzero(np.diff(label[order], append=-1)).tolist():
        if last + 1 - first >= SHARE or last + 1 == len(order):
            places, first = np.sort(order[first : last + 1]), last + 1
            yield places, label[places]


def _repeats(places: np.ndarray, label: np.ndarray, rows: Any, least: float) -> np.ndarray:
    """Those of the rows at `places` (n,), of clusters `label` (n,), that repeat an earlier one."""
    found = np.zeros(len(label), bool)
    for members, start, near in similarities(rows[places], label):
        close = np.tril(near >= least, start - 1)  # to earlier ones only
        for row in np.flatnonzero(close.any(1)):
            found[members[start + row]] = (close[row] & ~found[members]).any()
    return places[found]

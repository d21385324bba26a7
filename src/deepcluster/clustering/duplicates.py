"""Near-duplicates: images with nearly equal vectors. They share a cluster, so pairs are searched within clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deepcluster.clustering.curation import members_of

AT_ONCE = 1 << 22
"""Similarities held at a time."""


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
    for members, start, near in similarities(rows, label):
        close = np.tril(near >= least, start - 1)  # to earlier ones only
        for row in np.flatnonzero(close.any(1)):
            found[members[start + row]] = (close[row] & ~found[members]).any()
    return found

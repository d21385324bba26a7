"""Who is in which cluster, kept up to date image by image.

An online method changes a few hundred of perhaps a million labels in a step. Lists that are linked both ways take a
row out of one cluster and put it into another in constant time, so that neither sizes nor members ever need a pass
over all labels.
"""

from __future__ import annotations

import numpy as np


class Members:
    """Rows 0..N-1 in clusters 0..K-1.

    Args:
        labels: (N,) int64 cluster of each row; negative = in none.
        k: clusters.

    Attributes:
        sizes: (K,) int64, rows in each cluster.
    """

    def __init__(self, labels: np.ndarray, k: int) -> None:
        self.sizes = np.bincount(labels[labels >= 0], minlength=k).astype(np.int64)
        self._first = np.full(k, -1, np.int64)
        self._next = np.full(len(labels), -1, np.int64)
        self._before = np.full(len(labels), -1, np.int64)
        rows = np.flatnonzero(labels >= 0)
        rows = rows[np.argsort(labels[rows], kind="stable")]
        cluster = labels[rows]
        starts = np.flatnonzero(np.diff(cluster, prepend=-1))
        self._first[cluster[starts]] = rows[starts]
        same = cluster[1:] == cluster[:-1]
        self._next[rows[:-1][same]] = rows[1:][same]
        self._before[rows[1:][same]] = rows[:-1][same]

    def move(self, rows: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        """Puts each of `rows` (M,), all different, from cluster `old` (M,) into `new` (M,)."""
        # memory views read and write single numbers several times as fast as arrays do
        first, following, before = self._first.data, self._next.data, self._before.data
        for row, source, target in zip(rows.tolist(), old.tolist(), new.tolist(), strict=True):
            ahead, behind = before[row], following[row]
            if ahead < 0:
                first[source] = behind
            else:
                following[ahead] = behind
            if behind >= 0:
                before[behind] = ahead
            top = first[target]
            before[row], following[row], first[target] = -1, top, row
            if top >= 0:
                before[top] = row
        np.subtract.at(self.sizes, old, 1)
        np.add.at(self.sizes, new, 1)

    def of(self, cluster: int) -> np.ndarray:
        """(size,) int64, the rows of one cluster, ascending: their order does not tell how they came here."""
        following = self._next.data
        found, row = [], int(self._first[cluster])
        while row >= 0:
            found.append(row)
            row = following[row]
        return np.sort(np.array(found, np.int64))

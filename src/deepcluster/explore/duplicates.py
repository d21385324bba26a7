"""Near-duplicates: images with nearly equal vectors. They share a cluster, so pairs are searched within clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepcluster.clustering.duplicates import similarities
from deepcluster.explore.vectors import Vectors

ALIKE = 0.98
"""The cosine from which on images are called near-duplicates, unless another is asked for."""


@dataclass(frozen=True)
class Twins:
    """The most similar image of the same cluster, for each image.

    Attributes:
        partner: (N,) int64; -1 = none.
        similarity: (N,) float32 cosine to it; -inf where there is none.
    """

    partner: np.ndarray
    similarity: np.ndarray

    def groups(self, least: float) -> list[np.ndarray]:
        """Images that are linked by a similarity of at least `least`, in groups of two or more, the most similar
        first."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        linked = np.flatnonzero((self.similarity >= least) & (self.partner >= 0))
        if not len(linked):
            return []
        links = coo_matrix(
            (np.ones(len(linked), np.int8), (linked, self.partner[linked])), shape=(len(self.partner),) * 2
        )
        part = connected_components(links, directed=False)[1]
        ends = np.union1d(linked, self.partner[linked])
        ends = ends[np.argsort(part[ends], kind="stable")]
        pieces = np.split(ends, np.flatnonzero(np.diff(part[ends])) + 1)
        return sorted(pieces, key=lambda piece: -self.similarity[piece].max())


def twins(
    vectors: Vectors, assignment: np.ndarray, tell: Callable[[int, int], None] = lambda done, total: None
) -> Twins:
    """The most similar image of the same cluster, exactly, for each of N images."""
    partner = np.full(len(vectors), -1, np.int64)
    similarity = np.full(len(vectors), -np.inf, np.float32)
    label = assignment.copy()
    label[vectors.bad] = -1
    done, total = 0, int((label >= 0).sum())
    for members, start, near in similarities(vectors.rows, label):
        own = np.arange(len(near))
        near[own, start + own] = -np.inf
        rows = members[start : start + len(near)]
        if len(members) > 1:
            best = near.argmax(1)
            partner[rows], similarity[rows] = members[best], near[own, best]
        done += len(rows)
        tell(done, total)
    return Twins(partner, similarity)

"""Normalized spectral embedding of a nearest-neighbor graph: rows of one group come to lie in one direction.

As in Ng, Jordan and Weiss 2001: with A the graph and D its degrees, the K leading eigenvectors of
D^-1/2 A D^-1/2 side by side, each row scaled to unit length. Two things differ. Instead of a Gaussian of all distances
there is an edge from each row to each of its nearest rows by cosine, A = (G + G^T) / 2. And each eigenvector counts by
its eigenvalue to the power 6, as where random walks of 6 steps end (diffusion maps, Coifman and Lafon 2006): the last
of K directions are mostly noise where groups are of unlike size.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

from deepcluster.random import seed_of

STEPS = 6  # of the random walks
LEAST = 0.5  # for which smaller eigenvalues are taken, so that rows in a dense part are still told apart
DENSE_ROWS = 512  # up to which all eigenvectors are as quick as a few of them


def neighbor_graph(near: np.ndarray) -> sparse.csr_array:
    """(N, N) float64 graph of the neighbors (N, M) of each row: 1 where two are each other's, 1/2 where one is."""
    n, m = near.shape
    graph = sparse.csr_array((np.ones(n * m), near.ravel(), np.arange(0, n * m + 1, m)), shape=(n, n))
    both: sparse.csr_array = (graph + graph.T) / 2
    return both


def spectral_embedding(near: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """(N, P) float32 rows of unit length, P = `dimensions` or N where that is smaller.

    Args:
        near: (N, M) int64, M neighbors of each row.
        seed: of the vector that the iteration starts from.
    """
    graph = neighbor_graph(near)
    n = graph.shape[0]
    count = min(dimensions, n)
    scale = 1 / np.sqrt(graph.sum(1))
    normalized = graph * scale[:, None] * scale[None, :]
    if n <= DENSE_ROWS or count > n // 4:
        values, vectors = (found[..., -count:] for found in np.linalg.eigh(normalized.toarray()))
    else:
        start = np.random.default_rng(seed_of(seed)).standard_normal(n)
        values, vectors = eigsh(normalized.tocsr(), k=count, which="LA", v0=start)
    vectors = vectors * np.maximum(values, LEAST) ** STEPS
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: np.ndarray = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
    return rows

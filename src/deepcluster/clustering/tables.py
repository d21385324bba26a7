"""Clustering a table that lies on disk: whitened in pieces into a second file, grouped from there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepcluster.clustering.kmeans import KMeans, nearest_centroids
from deepcluster.clustering.whitening import Whitening
from deepcluster.records import DeepClusterError


def cluster_table(
    table: np.ndarray,
    kmeans: KMeans,
    *,
    whiten: int,
    scratch: Path,
    bad: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster (N,) int64 and distance (N,) float32 of the rows of an (N, D) table, memory-mapped or not.

    Args:
        kmeans: is fitted.
        whiten: width to whiten to, with L2 normalization; 0 = rows as they are.
        scratch: a folder for the whitened table.
        bad: rows to leave out, cluster -1; None = look for rows that are not finite.

    Raises:
        DeepClusterError: fewer rows than clusters.
    """
    keep = _finite_rows(table) if bad is None else np.setdiff1d(np.arange(len(table)), np.asarray(bad, np.int64))
    if len(keep) < kmeans.n_clusters:
        raise DeepClusterError(
            f"{len(keep)} rows cannot make {kmeans.n_clusters} clusters: lower --k to {len(keep)} at most."
        )
    rows = table
    if len(keep) < len(table):
        rows = np.lib.format.open_memmap(scratch / "kept.npy", "w+", np.float32, (len(keep), table.shape[1]))
        for start in range(0, len(keep), 65536):
            rows[start : start + 65536] = table[keep[start : start + 65536]]
    if whiten:
        whitening = Whitening(whiten).fit(rows)
        width = len(whitening.components)
        z = np.lib.format.open_memmap(scratch / "whitened.npy", "w+", np.float32, (len(keep), width))
        whitening.transform(rows, out=z)
        rows = z
    kmeans.fit(rows)
    cluster, distance = np.full(len(table), -1, np.int64), np.full(len(table), np.nan, np.float32)
    cluster[keep], distance[keep] = nearest_centroids(rows, kmeans.cluster_centers_)
    return cluster, distance


def _finite_rows(table: np.ndarray) -> np.ndarray:
    good = np.ones(len(table), bool)
    for start in range(0, len(table), 65536):
        good[start : start + 65536] = np.isfinite(table[start : start + 65536]).all(1)
    return np.flatnonzero(good)

"""Clustering a table that lies on disk: whitened in pieces into a second file, grouped from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.assign import group_means, squared_distances
from deepcluster.clustering.points import Points
from deepcluster.clustering.validation import fitted_labels
from deepcluster.clustering.whitening import Whitening
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError, counted
from deepcluster.features.block_reader import Rows, find_origin, write_rows
from deepcluster.features.parallel import over_rows, rows_of
from deepcluster.io import scratch_table

TOGETHER = 1 << 16
"""Rows that are looked at or copied at a time."""


@dataclass(frozen=True)
class TableClusters:
    """The clusters of N rows.

    Attributes:
        assignment: (N,) int64, -1 = none (a row that is not finite).
        distance: (N,) float32, Euclidean distance to the row's centroid; NaN where there is none.
        centroids: (K, P) float32 in the embedded space: the clusterer's `cluster_centers_`, or else the mean rows.
        clusterer: as fitted.
    """

    assignment: np.ndarray
    distance: np.ndarray
    centroids: Tensor
    clusterer: Any


def cluster_table(
    table: Any,
    make_clusterer: Callable[[np.ndarray], Any],
    *,
    embedding: Whitening | None,
    scratch: Path,
    bad: Sequence[int] | None = None,
    group: ProcessGroup = SINGLE,
) -> TableClusters:
    """The clusters of the rows of an (N, D) table.

    Args:
        table: an array, memory-mapped or not, or a `features.table_in_parts.TableInParts`.
        make_clusterer: gives the clusterer, anything with scikit-learn's `fit_predict`, for the embedded rows, from
            which it may choose the number of clusters.
        embedding: fitted to the rows and applied to them first; None = cluster the rows as they are.
        scratch: a folder for the embedded table.
        bad: rows to leave out, cluster -1; None = those that are not finite.
        group: the processes that cluster together, each of which sees the whole table, reads its share of it and gets
            the whole result; clusterer and embedding must be of the same group.

    Raises:
        DeepClusterError: fewer rows than clusters; a row to be grouped that is not finite as float32; labels that are
            not one integer per row.
    """
    infinite, too_large = _odd_rows(table, group)
    keep = np.setdiff1d(np.arange(len(table)), infinite if bad is None else np.asarray(bad, np.int64))
    if not len(keep):
        raise DeepClusterError("No row of the features is finite; make the table again from images that decode.")
    # Said here, because the clusterer counts only the rows that are left.
    if len(wrong := np.intersect1d(keep, np.concatenate([infinite, too_large]))):
        what = "NaN or infinity" if wrong[0] in infinite else "numbers beyond float32"
        raise DeepClusterError(f"Row {wrong[0]} of the features holds {what}; leave it out, or make the table again.")
    first, last = group.row_range(len(keep))
    own = keep[first:last]
    rows: Any
    if len(keep) < len(table):
        rows = scratch_table(scratch / "kept.npy", len(own), table.shape[1])
        over_rows(_copy, [own, rows], table)
    else:
        rows = rows_of(table, first, last)
    if embedding is not None:
        embedding.fit(rows)
        z = scratch_table(scratch / "embedded.npy", len(own), len(embedding.components_))
        embedding.transform(rows, out=z)
        rows = z
    clusterer = make_clusterer(rows)
    wanted = getattr(clusterer, "n_clusters", None)
    if isinstance(wanted, int) and len(keep) < wanted:
        raise DeepClusterError(
            f"{counted(len(keep), 'row')} cannot make {wanted} clusters: lower --k to {len(keep)} at most."
        )
    cluster, distance = np.full(len(table), -1, np.int64), np.full(len(table), np.nan, np.float32)
    label = fitted_labels(clusterer, rows)
    own_distance, centroids = _distances(rows, label, getattr(clusterer, "cluster_centers_", None))
    cluster[keep], distance[keep] = group.gather_array(label), group.gather_array(own_distance)
    return TableClusters(cluster, distance, centroids, clusterer)


def _distances(rows: np.ndarray, label: np.ndarray, centers: Any) -> tuple[np.ndarray, Tensor]:
    """Distance (n,) of each row to its centroid, and the (K, P) centroids."""
    if not len(rows):
        return np.empty(0, np.float32), torch.empty(0, 0) if centers is None else torch.as_tensor(centers).float()
    table, own, k = Rows(rows), torch.from_numpy(label), int(label.max()) + 1
    if np.ndim(centers) == 2 and len(centers) >= k and np.shape(centers)[1] == table.dim:
        given = Rows(centers, "cpu", name="cluster_centers_")
        if given.is_wide:
            table.origin = given.origin = find_origin(torch.as_tensor(given.x))
        middle = given.block(0, given.n)
    else:
        middle = group_means(table, own, k)
    return squared_distances(Points(table), own, middle).sqrt_().numpy(), middle


def _copy(index: np.ndarray, into: Any, table: Any) -> None:
    for start in range(0, len(index), TOGETHER):
        write_rows(into, start, torch.from_numpy(np.asarray(table[index[start : start + TOGETHER]], np.float32)))


def _odd_rows(table: Any, group: ProcessGroup) -> tuple[np.ndarray, np.ndarray]:
    """Places of rows with NaN or infinity, and of others that have them as float32; each process looks at its share."""
    first, last = group.row_range(len(table))
    parts = over_rows(_odd, [np.arange(first, last), rows_of(table, first, last)])
    found = [group.gather_array(np.concatenate(places)) for places in zip(*parts, strict=True)]
    return found[0], found[1]


def _odd(places: np.ndarray, table: Any) -> tuple[np.ndarray, np.ndarray]:
    infinite, odd = np.zeros(len(places), bool), np.zeros(len(places), bool)
    for start in range(0, len(places), TOGETHER):
        rows = np.asarray(table[start : start + TOGETHER])
        infinite[start : start + len(rows)] = ~np.isfinite(rows).all(1)
        if rows.dtype.itemsize > 4:
            with np.errstate(over="ignore"):
                rows = rows.astype(np.float32)
            odd[start : start + len(rows)] = ~np.isfinite(rows).all(1)
    return places[infinite], places[odd & ~infinite]

"""Any clusterer in place of k-means: PIC, or what the user passed in Python."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch

from deepcluster.clustering.pic import PIC
from deepcluster.clustering.validation import fitted_labels
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.methods.params import DeepClusterParams


class Clusterer(Protocol):
    """Anything with scikit-learn's `fit_predict`."""

    def fit_predict(self, x: Any, y: None = None) -> Any:
        """(N, P) whitened rows -> (N,) integer labels; negative ones mean "none", as in HDBSCAN."""


def choose_clusterer(p: DeepClusterParams, given: Clusterer | None) -> Clusterer | None:
    """What clusters the features in place of k-means; None for k-means.

    Raises:
        DeepClusterError: settings that only k-means has.
    """
    clusterer = PIC(p.neighbors, p.sigma, p.alpha, version=p.pic_version) if p.algorithm == "pic" else given
    wrong = [f"--method.k 0, not {p.k}"] * bool(p.k)
    wrong += [f"--method.clusterings 1, not {p.clusterings}"] * (p.clusterings > 1)
    if clusterer is not None and wrong:
        raise DeepClusterError(
            f"{type(clusterer).__name__} finds the number of clusters itself and makes one clustering: set"
            f" {', and '.join(wrong)}."
        )
    return clusterer


def fit_predict(clusterer: Clusterer, z: np.ndarray, group: ProcessGroup) -> np.ndarray:
    """(M,) int64 labels of this process's (M, P) rows, numbered without gaps; -1 = none.

    The clusterer must see all rows, so the first process fits a copy of it and sends the labels to the others.

    Raises:
        DeepClusterError: it gives no labels, or no image a cluster.
    """
    count, before = sum(lengths := group.row_counts(len(z))), sum(lengths[: group.rank])
    rows: torch.Tensor | None = torch.as_tensor(z)
    if not group.is_single:
        rows = group.gather_to_first(before + torch.arange(len(z)), torch.as_tensor(z), count)
    labels = np.full(count, -1, np.int64)
    with group.collective_section():
        if rows is not None:
            found = fitted_labels(copy.deepcopy(clusterer), rows.numpy())
            if not (found >= 0).any():
                raise DeepClusterError(
                    f"{type(clusterer).__name__} put none of {count} images into a cluster: loosen its settings (such"
                    " as HDBSCAN's min_cluster_size)."
                )
            labels[found >= 0] = np.unique(found[found >= 0], return_inverse=True)[1]
    return group.broadcast_(torch.from_numpy(labels)).numpy()[before : before + len(z)]

"""What passes between the packages: batches and clusterings. Loads torch only for type checkers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B images on their way through one training step: this process's decodable ones of the whole batch."""

    index: Tensor  # (B,) int64 on the CPU, the position of each image in its source
    views: tuple[Tensor, ...]  # one (B, 3, S, S) float tensor per view, normalized, on the training device
    position: Tensor  # (B,) int64 on the CPU, the position of each image in the whole batch
    whole: int  # number of images in the whole batch, undecodable ones included
    first: int = 0  # position of the whole batch's first image in the order that batches are cut from

    @property
    def large_views(self) -> int:
        """Number of views of the first one's size; those after them are smaller (multi-crop, arXiv 2006.09882 §3.2)."""
        return sum(view.shape[-1] == self.views[0].shape[-1] for view in self.views)


@dataclass(frozen=True)
class TrainStep:
    """Where in the run an optimizer step is."""

    step: int  # optimizer steps done before this one
    steps_per_epoch: int
    total: int  # steps of the run

    @property
    def epoch(self) -> float:
        """Epochs done, with a fraction."""
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class Clustering:
    """N images in K groups."""

    assignment: np.ndarray  # (N,) int64, the cluster of each image; -1 = none (an image that cannot be decoded)
    centroids: Tensor  # (K, D) float32, in the space the clustering saw
    distance: np.ndarray  # (N,) float32, Euclidean distance of each image to its centroid; NaN where there is none
    objective: float  # sum of squared distances of the images to their centroids

    @property
    def k(self) -> int:
        """Number of clusters, empty ones included."""
        return len(self.centroids)

    @property
    def sizes(self) -> np.ndarray:
        """(K,) int64, images in each cluster."""
        return np.bincount(self.assignment[self.assignment >= 0], minlength=self.k)


class Embedding(Protocol):
    """A step from a network's features towards the space of the centroids."""

    def transform(self, x: Any) -> Any:
        """(M, D) float32 rows to (M, P)."""

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that define the step."""


@dataclass(frozen=True)
class ClusterTree:
    """The level above the centroids of a two-level clustering."""

    upper: Tensor  # (M, D) centroids of the super-clusters; each has K / M of the K centroids, one after another
    used: Tensor  # (K,) bool, false for centroids that no image had

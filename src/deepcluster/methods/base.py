"""What every method of deep clustering is: images with an index in, a loss out, clusters now and then.

A method is an ordinary `nn.Module`. It knows nothing of files, loaders or devices: the engine gives it features and
batches, saves its state, and steps the optimizers it asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.tree import nearest_in_tree
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.methods.checks import check_enough_images, check_ranges
from deepcluster.methods.rows import ImageRows
from deepcluster.models.backbone import Backbone
from deepcluster.models.ema import Averaged
from deepcluster.models.heads import ProjectionHead
from deepcluster.random import seed_of
from deepcluster.types import Batch, Clustering, ClusterTree, Embedding, TrainStep


@dataclass(frozen=True)
class Features:
    """Features of every image that can be decoded, or of this process's share of them.

    Attributes:
        index: (M,) int64, ascending positions in the source; each decodable image exactly once, on one process. The
            shares follow each other in the order of the processes.
        features: (M, D) float32, in memory or memory-mapped.
    """

    index: np.ndarray
    features: np.ndarray


ExtractFeatures = Callable[[], Features]
"""Runs the backbone once over all images. Passed to `refresh` by the engine."""


class MakeOptimizer(Protocol):
    """Makes the run's optimizer for some parameters; `lr` and `momentum` replace the run's where they are given."""

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float | None = None, momentum: float | None = None
    ) -> torch.optim.Optimizer: ...


class Method(ImageRows, Averaged, ABC):
    """A way to train a backbone from clusters. Subclasses are final.

    `backbone` and everything a subclass keeps per image are created at construction, as parameters or buffers,
    so that a checkpoint holds them from the first step on.

    Args:
        backbone: the network to train; its features are read before the last ReLU.
        params: the method's parameters, an instance of its class in `methods/params.py`.
        n: number of images in the source, undecodable ones included.
        make_optimizer: for the parameters that the method owns besides the backbone's.
        clusterer: what groups the features in place of k-means, for methods that allow one.
        group: the processes that train together, of which each keeps its rows of the tables.
        whole_batches: each process computes the loss of whole batches; otherwise of its part of them, and those that
            share a batch are `batch_group`.

    Raises:
        DeepClusterError: a parameter is out of its range.
    """

    backbone: Backbone
    neck: ProjectionHead  # of methods that have one
    assignment: Tensor
    online: ClassVar[bool] = False
    """Whether clusters change in every step, so that each `refresh` but the first one only reports them."""

    def __init__(
        self,
        backbone: Backbone,
        params: Any,
        *,
        n: int,
        make_optimizer: MakeOptimizer,
        clusterer: Any = None,
        group: ProcessGroup = SINGLE,
        whole_batches: bool = False,
    ) -> None:
        super().__init__()
        check_ranges(params)
        self.backbone, self.params, self.n, self.group = backbone, params, n, group
        self.batch_group = SINGLE if whole_batches else group
        self.make_optimizer, self.clusterer = make_optimizer, clusterer
        self.own_optimizers: dict[str, torch.optim.Optimizer] = {}
        self.take_own_rows_on_load()
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Makes what the method keeps: heads, buffers, averages, `own_optimizers`."""

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """(length,) int64, the images to train on, in order; by default every image equally often."""
        return epoch_order(self.assignment.cpu(), length, "images", generator)

    @abstractmethod
    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """Scalar losses of one batch; `loss` is the one that is minimized. The losses of all processes of `batch_group`
        add up to the loss of the whole batch."""

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers the method owns besides the backbone's, such as the head's; stepped and saved with it."""
        return self.own_optimizers

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the clusters are to be recomputed before optimizer step `step`, counted from 0; by default every
        `reassign` epochs."""
        return interval_due(self.params.reassign, step, steps_per_epoch)

    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering | None:
        """Recomputes the clusters and takes them as targets. `key` seeds every random draw."""
        return None

    def finish(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering | None:
        """The last `refresh`, whose clustering the finished run reports and assigns by."""
        return self.refresh(extract_features, key)

    def nearest_clusters(self, extracted: Features, centroids: Tensor) -> Clustering:
        """The clustering that has each image at the nearest of the (K, P) centroids, as the saved model assigns."""
        z = extracted.features
        for each in self.embedding:
            z = each.transform(z)
        labels, _ = nearest_in_tree(z, [centroids.cpu()])
        return self.scatter_to_dataset(extracted.index, z, labels, centroids.cpu())

    def k_means(self, rows: Any, key: tuple[int, ...], **parameters: Any) -> KMeans:
        """k-means of the (M, P) rows of all processes, with the method's `k` and `iterations`."""
        p, seed = self.params, seed_of(*key) % 2**31
        device = None if parameters.get("backend") == "faiss" else self.assignment.device
        parameters = {"max_iter": p.iterations, "random_state": seed, "device": device, **parameters}
        return KMeans(p.k, group=self.group, **parameters).fit(rows)

    def first_embeddings(self, extracted: Features) -> Tensor:
        """(M, P) embeddings by a new projection head `neck`, and by its average from now on: its batch-norm has no
        statistics yet, and with others than those of these features, the first epoch would change every label."""
        self.neck.fit_running_stats(extracted.features, self.group)
        neck = self.averaged("neck")
        neck.load_state_dict(self.neck.state_dict())
        return torch.from_numpy(neck.transform(extracted.features)).to(self.assignment.device)

    def scatter_to_dataset(self, index: np.ndarray, z: np.ndarray, labels: np.ndarray, centroids: Tensor) -> Clustering:
        """The clustering of all images, of which this process has M: their positions `index` (M,), rows `z` (M, P) in
        the space of the (K, P) centroids, and labels (M,)."""
        own = np.full(len(index), np.nan, np.float32)
        for start in range(0, len(index), 65536):
            part = slice(start, start + 65536)
            near = torch.as_tensor(labels[part])
            offset = (torch.as_tensor(z[part]).float() - centroids[near]).norm(dim=1)
            own[part] = torch.where(near >= 0, offset, torch.nan).numpy()
        assignment, distance = np.full(self.n, -1, np.int64), np.full(self.n, np.nan, np.float32)
        index = self.group.gather_array(index)
        assignment[index], distance[index] = self.group.gather_array(labels), self.group.gather_array(own)
        return Clustering(assignment, centroids, distance, float(np.nansum(distance.astype(np.float64) ** 2)))

    def after_step(self, batch: Batch) -> None:
        """Called after each optimizer step: updates moving averages, and in some methods memories."""
        self.update_averages()

    def epoch_stats(self) -> dict[str, float]:
        """Figures of the method's own for the epoch that ends, for metrics.jsonl; resets their counters."""
        return {}

    # What is saved, so that new images can be assigned without the method.

    @property
    def feature_network(self) -> Backbone:
        """The network whose features are clustered, and that users get: the backbone, or its moving average."""
        network: Backbone = self.averaged("backbone")
        return network

    @property
    def embedding(self) -> list[Embedding]:
        """The steps from the features of `feature_network` to the space of the centroids, in order."""
        return []

    @property
    def cluster_tree(self) -> ClusterTree | None:
        """The levels above the centroids, where those were found level by level."""
        return None

    @staticmethod
    def saved_clusters(state: Mapping[str, Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """What the state in a checkpoint holds of the clusters: (T, N) assignments of T clusterings, and weight (K, D)
        and bias (K,) of the classifier of each; no bias = a cosine classifier. No classifiers where they are not one
        for each clustering."""
        return state["assignment"][None], []

    @property
    def last_assignment(self) -> Tensor:
        """(N,) int64, the assignment of the last `refresh`, to compare the next one with."""
        return self.assignment

    @property
    def kept_embeddings(self) -> Tensor | None:
        """(M, D), of the images in `local_range`, where the method remembers them from step to step."""
        return None

    @property
    def local_parameters(self) -> list[nn.Parameter] | None:
        """Parameters that only this process has, perhaps none; all others are the same on each, their gradients to be
        summed. None where no process has any of its own."""
        return None

    def full_state_dict(self) -> dict[str, Any]:
        """`state_dict` of what all processes hold together; every process must call it, the first one gets it. Loading
        it gives each process its part, however many there are."""
        state = self.state_dict()
        state.update(self.gathered_rows())
        return state

    def full_optimizer_states(self) -> dict[str, dict[str, Any]]:
        """The states of `optimizers()` likewise."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()}

    def bytes_per_step(self, batch_size: int) -> int:
        """Bytes that each process sends in a training step, gradients and batch-norm apart."""
        return 0


class WhitenedMethod(Method):
    """A method that clusters PCA-whitened, L2-normalized features (arXiv 1807.05520 §3.3)."""

    whitening: Whitening

    def whiten(self, features: Features, k: int, multiple: int = 1) -> tuple[np.ndarray, int]:
        """(M, P) whitened rows of this process, with a whitening fitted to those of all, and the number of all rows.

        Args:
            multiple: what `k` must be a multiple of.

        Raises:
            DeepClusterError: fewer images than `k`, or images that all have the same features.
        """
        count = sum(self.group.row_counts(len(features.index)))
        check_enough_images(count, k, max(1, count // 10 // multiple) * multiple)
        self.whitening.device, self.whitening.group = self.assignment.device, self.group
        z = self.whitening.fit(features.features).transform(features.features)
        if not self.group.any(bool(np.any(z))):
            raise DeepClusterError(
                f"All {count} images give the same features, so there is nothing to cluster: check that the"
                " images differ and are not blank."
            )
        return z, count

    @property
    def embedding(self) -> list[Embedding]:
        return [self.whitening]

    def get_extra_state(self) -> dict[str, Tensor]:
        """The whitening, which is not a module; nothing before the first clustering."""
        return self.whitening.state_dict() if (self.assignment >= 0).any() else {}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `get_extra_state`."""
        if state:
            self.whitening.load_state_dict(state)


def interval_due(epochs: float, step: int, steps_per_epoch: int) -> bool:
    """Whether `step` is the first, or the nearest to a multiple of `epochs`: fractional intervals do not drift."""
    interval = max(1.0, epochs * steps_per_epoch)
    return step == 0 or int(step / interval) > int((step - 1) / interval)

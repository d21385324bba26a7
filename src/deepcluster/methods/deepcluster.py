"""DeepCluster (Caron, Bojanowski, Joulin, Douze 2018, arXiv 1807.05520), in the order of its section 3.

ExtractFeatures every image, whiten and group the descriptions (with k-means, or whatever else groups rows), take the
groups as pseudo-labels, draw a new classifier, and train backbone and classifier to predict them; then describe
again. The file knows nothing of files, loaders, devices or checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.methods.cosine import CosineHead, cluster_means
from deepcluster.methods.method import ExtractFeatures, Method, check_ranges, scatter_to_dataset
from deepcluster.models.backbone import Backbone
from deepcluster.models.heads import ClusterHead
from deepcluster.random import seed_of, seeded
from deepcluster.types import Batch, Clustering

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Clusterer(Protocol):
    """What may take the place of k-means: anything with scikit-learn's `fit_predict`."""

    def fit_predict(self, x: Any, y: None = None) -> Any:
        """(N, P) whitened rows -> (N,) integer labels; negative ones mean "none", as in HDBSCAN."""


class DeepCluster(Method):
    """Alternates k-means on the backbone's features with the prediction of its clusters.

    Args:
        backbone: the network to train; its features are read before the last ReLU (§3.3).
        n: images in the source, undecodable ones included.
        k: clusters; 0 where a `clusterer` finds their number itself, anew each time.
        clusterer: groups the whitened features in place of k-means; a copy is fitted at each clustering.
        head_optimizer: makes the classifiers' optimizer, each time they are made anew.
        reassign, whiten, iterations, init, spherical, backend, balance, head, temperature, clusterings,
            averaging: see `DeepClusterParams`.
    """

    assignments: Tensor
    centroids: Tensor
    weights: Tensor
    steps: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        n: int,
        k: int,
        head_optimizer: MakeOptimizer,
        reassign: float = 1.0,
        whiten: int = 256,
        iterations: int = 20,
        init: str = "random",
        spherical: bool = False,
        backend: str = "torch",
        balance: str = "uniform",
        head: str = "redraw",
        temperature: float = 0.1,
        clusterings: int = 1,
        ema_decay: float = 0.0,
        clusterer: Clusterer | None = None,
    ) -> None:
        super().__init__()
        if clusterer is None and k < 1:
            raise DeepClusterError(f"k-means needs at least one cluster, not {k}: set --method.k.")
        if clusterer is not None and (k or clusterings > 1):
            wrong = [f"--method.k 0, not {k}"] * bool(k) + [f"--method.clusterings 1, not {clusterings}"] * (
                clusterings > 1
            )
            raise DeepClusterError(
                f"{type(clusterer).__name__} finds the number of clusters itself and makes one clustering: set"
                f" {', and '.join(wrong)}."
            )
        check_ranges(
            ("reassign", reassign, reassign > 0, "a number of epochs above 0"),
            ("whiten", whiten, whiten >= 0, "a width, or 0 for features as they are"),
            ("iterations", iterations, iterations >= 1, "1 or more"),
            ("clusterings", clusterings, clusterings >= 1, "1 or more"),
            ("temperature", temperature, temperature > 0, "a number above 0"),
            ("ema_decay", ema_decay, 0 <= ema_decay < 1, "a decay from 0 to below 1"),
        )
        self.clusterer, self.k, self.reassign, self.iterations, self.init = clusterer, k, reassign, iterations, init
        self.spherical, self.backend, self.balance, self.ema_decay = spherical, backend, balance, ema_decay
        self.backbone = backbone
        self.ema_backbone = copy.deepcopy(backbone).requires_grad_(False) if ema_decay else None
        width = min(whiten or backbone.dim, backbone.dim)
        self.whitening = Whitening(whiten or backbone.dim, whiten=whiten > 0)
        k = k or 1  # until a clusterer has found its number
        heads: list[nn.Module] = [
            ClusterHead(backbone.dim, k, relu=backbone.head_relu)
            if head == "redraw"
            else CosineHead(backbone.dim, k, backbone.head_relu, temperature)
            for _ in range(clusterings)
        ]
        self.heads = nn.ModuleList(heads)
        self.make_head_optimizer = head_optimizer
        self.head_optimizer = self._optimizer()
        self.register_buffer("assignments", torch.full((clusterings, n), -1, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(clusterings, k, width))
        self.register_buffer("weights", torch.ones(clusterings, k))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_take_saved_k)

    @property
    def assignment(self) -> Tensor:  # type: ignore[override]
        """(N,) int64, the first clustering: the one that is reported and saved."""
        return self.assignments[0]

    @property
    def feature_network(self) -> Backbone:
        """The network whose features are clustered: the backbone, or its running average."""
        return self.backbone if self.ema_backbone is None else self.ema_backbone

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Every `reassign` epochs, to the nearest step: fractional intervals do not drift."""
        interval = max(1.0, self.reassign * steps_per_epoch)
        return step == 0 or int(step / interval) > int((step - 1) / interval)

    def refresh(self, describe: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Whitening, k-means, new classifier and optimizer (§3.2, §3.3).

        Raises:
            DeepClusterError: fewer images than clusters, or images that all look the same to the backbone.
        """
        described = describe()
        index, features = described.index, described.features
        count = sum(self.group.row_counts(len(index)))
        if count < self.k:
            raise DeepClusterError(
                f"There are {count} images for {self.k} clusters: ask for fewer, such as --method.k"
                f" {max(1, count // 10)}."
            )
        self.whitening.device, self.whitening.group = self.assignments.device, self.group
        self.whitening.fit(features)
        z = self.whitening.transform(features)
        if not self.group.any(bool(np.any(z))):
            raise DeepClusterError(
                f"All {count} images give the same features, so there is nothing to cluster: check that the"
                " images differ and are not blank."
            )
        found = [self._cluster(number, index, z, (*key, number)) for number in range(len(self.heads))]
        self._resize(found[0].k)
        for number, clustering in enumerate(found):
            self.assignments[number] = torch.from_numpy(clustering.assignment)
            self.centroids[number] = clustering.centroids
            sizes = torch.from_numpy(clustering.sizes).to(self.weights)
            used = (sizes > 0).sum()
            self.weights[number] = torch.where(sizes > 0, count / (used * sizes.clamp(min=1)), 0)
            head = self.heads[number]
            if isinstance(head, CosineHead):
                labels = torch.from_numpy(clustering.assignment[index])
                head.set_(torch.as_tensor(features), labels, seeded(*key, number, 1), self.group)
            elif isinstance(head, ClusterHead):
                head.reset_(seeded(*key, number, 1))
        self.head_optimizer = self._optimizer()
        return found[0]

    def _cluster(self, number: int, index: np.ndarray, z: np.ndarray, key: tuple[int, ...]) -> Clustering:
        """One k-means, or the clusterer's own grouping, of the whitened rows (M, P)."""
        if self.clusterer is not None:
            labels = _group(self.clusterer, z, self.group)
            return scatter_to_dataset(
                self.assignments.shape[1], index, z, labels, _means(z, labels, self.group), self.group
            )
        kmeans = KMeans(
            self.k,
            max_iter=self.iterations,
            init=self._first_centroids(number, index, z, key),
            spherical=self.spherical,
            random_state=seed_of(*key) % 2**31,
            backend=self.backend,
            device=self.assignments.device if self.backend == "torch" else None,
            group=self.group,
        ).fit(z)
        labels, centroids = np.asarray(kmeans.labels_), torch.as_tensor(kmeans.cluster_centers_).float().cpu()
        return scatter_to_dataset(self.assignments.shape[1], index, z, labels, centroids, self.group)

    def _resize(self, k: int) -> None:
        """Classifiers and state per cluster for `k` clusters; the classifiers' values are to be set afterwards."""
        if k == self.centroids.shape[1]:
            return
        for head in self.heads:
            assert isinstance(head, (ClusterHead, CosineHead))
            head.reset_(seeded(0), k)
        self.centroids = self.centroids.new_zeros(len(self.heads), k, self.centroids.shape[2])
        self.weights = self.weights.new_ones(len(self.heads), k)
        self.head_optimizer = self._optimizer()

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Uniform over clusters (§3.2), or as `balance` says; several clusterings take equal parts."""
        policy = {"uniform": "uniform", "published": "published"}.get(self.balance, "images")
        if policy == "images" or len(self.assignments) == 1:
            return epoch_order(self.assignment.cpu(), length, policy, generator)
        parts = len(self.assignments)
        lengths = [length // parts + (number < length % parts) for number in range(parts)]
        orders = [
            epoch_order(assignment.cpu(), part, policy, generator)
            for assignment, part in zip(self.assignments, lengths, strict=True)
        ]
        mixed = torch.cat(orders)
        return mixed[torch.randperm(length, generator=generator)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the pseudo-labels, equation (1); averaged over views and clusterings."""
        pseudo_labels = self.assignments[:, batch.index.to(self.assignments.device)]
        terms = []
        for view in batch.views:
            features = self.backbone(view)
            for head, label, weight in zip(self.heads, pseudo_labels, self.weights, strict=True):
                each = F.cross_entropy(head(features).float(), label, reduction="none")
                terms.append(self.group.mean(weight[label] * each if self.balance == "weight" else each))
        return {"loss": torch.stack(terms).mean()}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Moves the running average of the weights (and of batch-norm's statistics) on."""
        if self.ema_backbone is None:
            return
        # Young averages forget faster, or the drawn weights would linger.
        self.steps += 1
        decay = min(self.ema_decay, (1 + self.steps.item()) / (10 + self.steps.item()))
        now = self.backbone.state_dict()
        for name, average in self.ema_backbone.state_dict().items():
            if average.is_floating_point():
                average.lerp_(now[name], 1 - decay)
            else:
                average.copy_(now[name])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The classifiers' own: it is made anew with them (§3.3)."""
        return {} if self.head_optimizer is None else {"head": self.head_optimizer}

    def _optimizer(self) -> torch.optim.Optimizer | None:
        trained = [parameter for parameter in self.heads.parameters() if parameter.requires_grad]
        if not trained:
            return None
        optimizer = self.make_head_optimizer(trained)
        for settings in optimizer.param_groups:
            # A classifier drawn anew has everything to learn each time, at the end of a run as at its beginning.
            settings["scheduled"] = isinstance(self.heads[0], CosineHead)
        return optimizer

    def get_extra_state(self) -> dict[str, Tensor]:
        """The whitening, which is not a module; nothing before the first clustering."""
        return self.whitening.state_dict() if (self.assignment >= 0).any() else {}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `get_extra_state`."""
        if state:
            self.whitening.load_state_dict(state)

    def _first_centroids(self, number: int, index: np.ndarray, z: np.ndarray, key: tuple[int, ...]) -> str | Tensor:
        """`init` for k-means; "previous" takes the mean of each last cluster, in today's features."""
        if self.init != "previous":
            return self.init
        last = self.assignments[number].cpu()[torch.from_numpy(index)]
        if not (self.assignments[number] >= 0).any():
            return "k-means++"
        return cluster_means(torch.as_tensor(z), last, self.k, seeded(*key, 2), self.group)


def _group(clusterer: Clusterer, z: np.ndarray, group: ProcessGroup) -> np.ndarray:
    """(M,) int64 labels of this process's rows, without gaps, by a clusterer that must see all rows: the first process
    fits a copy of it and tells the others."""
    count, before = sum(lengths := group.row_counts(len(z))), sum(lengths[: group.rank])
    whole = (
        torch.as_tensor(z)
        if group.is_single
        else group.gather_to_first(before + torch.arange(len(z)), torch.as_tensor(z), count)
    )
    labels = np.full(count, -1, np.int64)
    with group.collective_section():
        if whole is not None:
            labels = _dense(np.asarray(copy.deepcopy(clusterer).fit_predict(whole.numpy())), count, clusterer)
    return group.broadcast_(torch.from_numpy(labels)).numpy()[before : before + len(z)]


def _dense(labels: np.ndarray, count: int, clusterer: Clusterer) -> np.ndarray:
    """A clusterer's labels, renumbered without gaps."""
    name = type(clusterer).__name__
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DeepClusterError(
            f"{name}.fit_predict gave {labels.dtype} of shape {labels.shape} for {count} images: it must give one"
            " whole number per image."
        )
    if not (labels >= 0).any():
        raise DeepClusterError(
            f"{name} put none of {count} images into a cluster: loosen its settings (such as HDBSCAN's"
            " min_cluster_size)."
        )
    kept = labels >= 0
    dense = np.full(len(labels), -1, np.int64)
    dense[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return dense


def _means(z: np.ndarray, labels: np.ndarray, group: ProcessGroup) -> Tensor:
    """(K, P) means of the clusters, of which none is empty; K is the same on all processes."""
    k = int(group.max_(torch.tensor([labels.max(initial=-1)])).item()) + 1
    return cluster_means(torch.as_tensor(z), torch.from_numpy(labels), k, seeded(0), group)


def _take_saved_k(method: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a checkpoint is loaded: as many clusters as it holds, where their number is an outcome."""
    assert isinstance(method, DeepCluster)
    saved = state.get(prefix + "centroids")
    if method.clusterer is not None and isinstance(saved, Tensor) and saved.ndim == 3:
        method._resize(saved.shape[1])

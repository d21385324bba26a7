"""DeepCluster (Caron, Bojanowski, Joulin, Douze 2018, arXiv 1807.05520), in the order of its section 3.

Extract the features of every image, whiten and cluster them (with k-means, or whatever else clusters rows), take the
clusters as pseudo-labels, re-initialize the classifier, and train backbone and classifier to predict them; then extract
features again. This file knows nothing of files, loaders, devices or checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.sinkhorn import equal_partition
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.methods.base import ExtractFeatures, Features, WhitenedMethod
from deepcluster.methods.clusterer import choose_clusterer, fit_predict
from deepcluster.methods.params import DeepClusterParams
from deepcluster.models.heads import cluster_means, make_classifier
from deepcluster.random import seeded
from deepcluster.types import Batch, Clustering, TrainStep


class DeepCluster(WhitenedMethod):
    """Alternates k-means on the backbone's features with the prediction of its clusters."""

    params: DeepClusterParams
    assignments: Tensor
    centroids: Tensor
    weights: Tensor
    memory: Tensor

    def build(self) -> None:
        p, backbone = self.params, self.backbone
        self.clusterer = choose_clusterer(p, self.clusterer)
        self.keep_averages(p.ema_decay, "backbone")
        self.whitening = Whitening(p.whiten or backbone.dim, whiten=p.whiten > 0)
        k = p.k or 1  # until a clusterer has found the number
        self.heads = nn.ModuleList(
            make_classifier(p.head, backbone.dim, k, relu=backbone.head_relu, temperature=p.temperature)
            for _ in range(p.clusterings)
        )
        self._make_head_optimizer()
        self.register_buffer("assignments", torch.full((p.clusterings, self.n), -1, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(p.clusterings, k, min(p.whiten or backbone.dim, backbone.dim)))
        self.register_buffer("weights", torch.ones(p.clusterings, k))
        self.register_load_state_dict_pre_hook(_resize_to_saved)  # type: ignore[no-untyped-call]
        self.remembers = p.features == "remembered"
        if self.remembers:
            self.keep_rows("memory", backbone.dim)

    @property
    def assignment(self) -> Tensor:  # type: ignore[override]
        """(N,) int64, the first clustering: the one that is reported and saved."""
        return self.assignments[0]

    @staticmethod
    def saved_clusters(state: Mapping[str, Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        classifiers: list[tuple[Tensor, Tensor | None]] = []
        for number in range(len(state["assignments"])):
            prefix = f"heads.{number}."
            if prefix + "directions" in state:
                classifiers.append((F.normalize(state[prefix + "directions"], dim=1), None))
            else:
                classifiers.append((state[prefix + "linear.weight"], state[prefix + "linear.bias"]))
        return state["assignments"], classifiers

    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Whitening, k-means, new classifier and optimizer (§3.2, §3.3).

        Raises:
            DeepClusterError: fewer images than clusters, or images that all have the same features.
        """
        extracted = self._remembered()
        if extracted is None:
            extracted = extract_features()
            if self.remembers:
                index, features = torch.from_numpy(extracted.index), torch.as_tensor(extracted.features)
                self.store_all_rows_(self.memory, index, features)
        return self._cluster_all(extracted, key)

    def finish(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Of every image as it is, by the network as it is now."""
        return self._cluster_all(extract_features(), key)

    def _cluster_all(self, extracted: Features, key: tuple[int, ...]) -> Clustering:
        index, features = extracted.index, torch.as_tensor(extracted.features)
        z, count = self.whiten(extracted, self.params.k)
        found = [self._cluster(number, index, z, (*key, number)) for number in range(len(self.heads))]
        self._resize(found[0].k)
        for number, clustering in enumerate(found):
            self.assignments[number] = torch.from_numpy(clustering.assignment)
            self.centroids[number] = clustering.centroids
            sizes = torch.from_numpy(clustering.sizes).to(self.weights)
            used = (sizes > 0).sum()
            self.weights[number] = torch.where(sizes > 0, count / (used * sizes.clamp(min=1)), 0)
            labels = torch.from_numpy(clustering.assignment[index])
            self.heads[number].fit_(features, labels, seeded(*key, number, 1), self.group)  # type: ignore[operator]
        self._make_head_optimizer()
        return found[0]

    def _remembered(self) -> Features | None:
        """Of all images as training saw them last; None where they are to be extracted."""
        if not self.remembers or not (self.assignment >= 0).any():
            return None
        index = self.kept_images
        return Features(index.cpu().numpy(), self.memory[index - self.local_range[0]].cpu().numpy())

    def _cluster(self, number: int, index: np.ndarray, z: np.ndarray, key: tuple[int, ...]) -> Clustering:
        """One k-means, or the clusterer's own grouping, of the whitened rows (M, P)."""
        if self.clusterer is not None:
            labels = fit_predict(self.clusterer, z, self.group)
            k = int(self.group.max_(torch.tensor([labels.max(initial=-1)])).item()) + 1
            centroids = cluster_means(torch.as_tensor(z), torch.from_numpy(labels), k, seeded(0), self.group)
            return self.scatter_to_dataset(index, z, labels, centroids)
        p, init = self.params, self._initial_centroids(number, index, z, key)
        kmeans = self.k_means(z, key, init=init, spherical=p.spherical, backend=p.backend)
        labels, centroids = np.asarray(kmeans.labels_), torch.as_tensor(kmeans.cluster_centers_).float().cpu()
        if p.algorithm == "sela":
            found, centroids = equal_partition(z, centroids, self.group, device=self.assignments.device)
            labels = found.numpy()
        return self.scatter_to_dataset(index, z, labels, centroids)

    def _initial_centroids(self, number: int, index: np.ndarray, z: np.ndarray, key: tuple[int, ...]) -> str | Tensor:
        """`init` for k-means; "previous" takes the mean of each last cluster, in today's features."""
        if self.params.init != "previous":
            return self.params.init
        if not (self.assignments[number] >= 0).any():
            return "k-means++"
        last = self.assignments[number].cpu()[torch.from_numpy(index)]
        return cluster_means(torch.as_tensor(z), last, self.params.k, seeded(*key, 2), self.group)

    def _resize(self, k: int) -> None:
        """Classifiers and state per cluster for `k` clusters; the classifiers' values are to be set afterwards."""
        if k == self.centroids.shape[1]:
            return
        for head in self.heads:
            head.reset_(seeded(0), k)  # type: ignore[operator]
        self.centroids = self.centroids.new_zeros(len(self.heads), k, self.centroids.shape[2])
        self.weights = self.weights.new_ones(len(self.heads), k)
        self._make_head_optimizer()

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Uniform over clusters (§3.2), or as `balance` says; several clusterings take equal parts."""
        policy = {"uniform": "uniform", "published": "published"}.get(self.params.balance, "images")
        if policy == "images" or len(self.assignments) == 1:
            return epoch_order(self.assignment.cpu(), length, policy, generator)
        parts = len(self.assignments)
        lengths = [length // parts + (number < length % parts) for number in range(parts)]
        orders = [
            epoch_order(assignment.cpu(), part, policy, generator)
            for assignment, part in zip(self.assignments, lengths, strict=True)
        ]
        return torch.cat(orders)[torch.randperm(length, generator=generator)]

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """Cross-entropy to the pseudo-labels, equation (1); averaged over views and clusterings."""
        pseudo_labels = self.assignments[:, batch.index.to(self.assignments.device, non_blocking=True)]
        terms = []
        for number, view in enumerate(batch.views):
            features = self.backbone(view)
            if number == 0 and self.remembers:
                with torch.no_grad():
                    self._seen = (self.averaged("backbone")(view) if self.ema_decay else features.detach()).float()
            for head, label, weight in zip(self.heads, pseudo_labels, self.weights, strict=True):
                each = F.cross_entropy(head(features).float(), label, reduction="none")
                terms.append(self.batch_group.mean(weight[label] * each if self.params.balance == "weight" else each))
        return {"loss": torch.stack(terms).mean()}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """The memory takes the features of the first view."""
        super().after_step(batch)
        if self.remembers:
            self.store_batch_(self.memory, batch.index, self._seen)

    @property
    def kept_embeddings(self) -> Tensor | None:
        return self.memory if self.remembers else None

    def bytes_per_step(self, batch_size: int) -> int:
        return batch_size * (4 * self.backbone.dim + 8) if self.remembers else 0

    def _make_head_optimizer(self) -> None:
        """The classifiers' own: it is made again with them (§3.3)."""
        trained = [parameter for parameter in self.heads.parameters() if parameter.requires_grad]
        if not trained:
            return
        optimizer = self.make_optimizer(trained, lr=self.params.head_lr, momentum=0.0)
        for param_group in optimizer.param_groups:
            param_group["scheduled"] = self.heads[0].scheduled
        self.own_optimizers = {"head": optimizer}


def _resize_to_saved(method: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a checkpoint is loaded: as many clusters as it holds, where their number is an outcome."""
    assert isinstance(method, DeepCluster)
    saved = state.get(prefix + "centroids")
    if method.clusterer is not None and isinstance(saved, Tensor) and saved.ndim == 3:
        method._resize(saved.shape[1])

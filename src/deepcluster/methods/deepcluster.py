"""DeepCluster (Caron, Bojanowski, Joulin, Douze 2018, arXiv 1807.05520), in the order of its section 3.

Describe every image, whiten and group the descriptions with k-means, take the groups as pseudo-labels, draw a
new classifier, and train backbone and classifier to predict them; then describe again. The file knows nothing
of files, loaders, devices or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.samplers import epoch_order
from deepcluster.methods.method import Describe, Method
from deepcluster.models.backbone import Backbone
from deepcluster.models.heads import ClusterHead
from deepcluster.records import Batch, Clustering, DeepClusterError, seed_of, seeded

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class DeepCluster(Method):
    """Alternates k-means on the backbone's features with the prediction of its clusters.

    Args:
        backbone: the network to train; its features are read before the last ReLU (§3.3).
        n: images in the source, undecodable ones included.
        k: clusters.
        head_optimizer: makes the classifier's optimizer, each time the classifier is made anew.
        reassign, whiten, iterations, init, spherical, backend, balance, head: see `DeepClusterParams`.
    """

    assignment: Tensor

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
    ) -> None:
        super().__init__()
        if k < 1 or reassign <= 0 or whiten < 0:
            raise DeepClusterError(
                f"DeepCluster needs k >= 1, reassign > 0 and whiten >= 0, but got k={k}, reassign={reassign}, whiten={whiten}."
            )
        self.k, self.reassign, self.iterations, self.init = k, reassign, iterations, init
        self.spherical, self.backend, self.balance, self.head_init = spherical, backend, balance, head
        self.backbone = backbone
        self.head = ClusterHead(backbone.dim, k, relu=backbone.head_relu)
        self.make_head_optimizer = head_optimizer
        self.head_optimizer = head_optimizer(self.head.parameters())
        self.whitening = Whitening(whiten or backbone.dim, whiten=whiten > 0)
        width = min(whiten or backbone.dim, backbone.dim)
        self.register_buffer("assignment", torch.full((n,), -1, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(k, width))
        self.register_buffer("weight", torch.ones(k))

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Every `reassign` epochs, to the nearest step: fractional intervals do not drift."""
        interval = max(1.0, self.reassign * steps_per_epoch)
        return step == 0 or int(step / interval) > int((step - 1) / interval)

    def refresh(self, describe: Describe, key: tuple[int, ...]) -> Clustering:
        """Whitening, k-means, new classifier and optimizer (§3.2, §3.3).

        Raises:
            DeepClusterError: fewer images than clusters, or images that all look the same to the backbone.
        """
        described = describe()
        index, features = described.index, described.features
        if len(index) < self.k:
            raise DeepClusterError(
                f"There are {len(index)} images for {self.k} clusters: ask for at most {len(index)} clusters"
                f" (--method.k {max(1, len(index) // 10)})."
            )
        self.whitening.fit(features)
        z = self.whitening.transform(features)
        kmeans = KMeans(
            self.k,
            max_iter=self.iterations,
            init=self._first_centroids(index, z, key),
            spherical=self.spherical,
            random_state=seed_of(*key) % 2**31,
            backend=self.backend,
        ).fit(z)
        clustering = _clustering(len(self.assignment), index, z, kmeans)
        self.assignment.copy_(torch.from_numpy(clustering.assignment))
        self.centroids.copy_(clustering.centroids)
        sizes = torch.from_numpy(clustering.sizes).to(self.weight)
        self.weight.copy_(torch.where(sizes > 0, len(index) / ((sizes > 0).sum() * sizes.clamp(min=1)), 0))
        directions = self._means(index, features) if self.head_init == "centroids" else None
        self.head.reset_(seeded(*key, 1), centroids=directions)
        self.head_optimizer = self.make_head_optimizer(self.head.parameters())
        return clustering

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Uniform over clusters (§3.2), or as `balance` says."""
        policy = {"uniform": "uniform", "published": "published"}.get(self.balance, "images")
        return epoch_order(self.assignment.cpu(), length, policy, generator)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the pseudo-labels, equation (1); one term per view, averaged."""
        pseudo_labels = self.assignment[batch.index.to(self.assignment.device)]
        weight = self.weight[pseudo_labels] if self.balance == "weight" else torch.ones_like(pseudo_labels)
        loss = torch.zeros((), device=pseudo_labels.device)
        for view in batch.views:
            logits = self.head(self.backbone(view))
            each = F.cross_entropy(logits.float(), pseudo_labels, reduction="none")
            loss = loss + (weight * each).mean() / len(batch.views)
        return {"loss": loss}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The classifier's own: it is made anew with the classifier (§3.3)."""
        return {"head": self.head_optimizer}

    def get_extra_state(self) -> dict[str, Tensor]:
        """The whitening, which is not a module; nothing before the first clustering."""
        return self.whitening.state_dict() if (self.assignment >= 0).any() else {}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `get_extra_state`."""
        if state:
            self.whitening.load_state_dict(state)

    def _first_centroids(self, index: np.ndarray, z: np.ndarray, key: tuple[int, ...]) -> str | Tensor:
        """`init` for k-means; "previous" takes the mean of each last cluster, in today's features."""
        if self.init != "previous":
            return self.init
        if not (self.assignment >= 0).any():
            return "k-means++"
        last = self.assignment.cpu()[torch.from_numpy(index)]
        return _cluster_means(torch.as_tensor(z), last, self.k, seeded(*key, 2))

    def _means(self, index: np.ndarray, features: np.ndarray) -> Tensor:
        """(K, D) mean of each cluster where the classifier reads them, about the mean of all."""
        x = torch.as_tensor(features)
        x = F.relu(x) if self.backbone.head_relu else x
        means = _cluster_means(x, self.assignment.cpu()[torch.from_numpy(index)], self.k, seeded(0))
        return means - x.mean(0)


def _cluster_means(x: Tensor, labels: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(K, D) means of (N, D) rows by label; an empty or unlabelled cluster takes a random row."""
    known = labels >= 0
    sums = torch.zeros(k, x.shape[1]).index_add_(0, labels[known], x[known].float())
    counts = torch.bincount(labels[known], minlength=k)
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero().flatten()
    means[empty] = x[torch.randint(len(x), (len(empty),), generator=generator)].float()
    return means


def _clustering(n: int, index: np.ndarray, z: np.ndarray, kmeans: KMeans) -> Clustering:
    """The fitted k-means, told by position in the source."""
    labels, centroids = np.asarray(kmeans.labels_), torch.as_tensor(kmeans.cluster_centers_).float().cpu()
    assignment, distance = np.full(n, -1, np.int64), np.full(n, np.nan, np.float32)
    assignment[index] = labels
    for start in range(0, len(index), 65536):
        part = slice(start, start + 65536)
        offset = torch.as_tensor(z[part]).float() - centroids[torch.as_tensor(labels[part])]
        distance[index[part]] = offset.norm(dim=1).numpy()
    return Clustering(assignment, centroids, distance, float(kmeans.inertia_))

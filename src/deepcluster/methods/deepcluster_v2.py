"""DeepCluster-v2 (Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, arXiv 2006.09882, appendix).

DeepCluster with what made contrastive methods strong: a projection head, strong views of several sizes, a cosine
schedule. A memory holds the embeddings that the large views of every image had when they were last shown, so no pass
over all images is needed before a clustering. Spherical k-means clusters the memory several times with different seeds,
and its centroids are the prototypes of the next epoch, as they are: nothing has to be learned anew, and clusters need
not keep their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.methods.base import ExtractFeatures, Method
from deepcluster.methods.checks import check_enough_images
from deepcluster.methods.params import DeepClusterV2Params
from deepcluster.models.heads import ProjectionHead
from deepcluster.types import Batch, Clustering, Embedding, TrainStep


class DeepClusterV2(Method):
    """Predicts the clusters of remembered embeddings by their centroids."""

    params: DeepClusterV2Params
    memory: Tensor
    assignments: Tensor
    prototypes: Tensor

    def build(self) -> None:
        p, backbone = self.params, self.backbone
        self.neck = ProjectionHead(backbone.dim, p.hidden, p.feature_dim, relu=backbone.head_relu, last_relu=False)
        self.own_optimizers = {"neck": self.make_optimizer(self.neck.parameters())}
        self.keep_rows("memory", p.memory_views, p.feature_dim)
        self.register_buffer("assignments", torch.full((p.clusterings, self.n), -1, dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(p.clusterings, p.k, p.feature_dim))
        self.keep_averages(p.ema_decay, "backbone", "neck")
        self._seen: list[Tensor] = []  # embeddings of this step's large views, from `loss` to `after_step`

    @property
    def assignment(self) -> Tensor:  # type: ignore[override]
        """(N,) int64, the first clustering: the one that is reported and saved."""
        return self.assignments[0]

    @property
    def kept_embeddings(self) -> Tensor:
        return self.memory[:, 0]

    @staticmethod
    def saved_clusters(state: Mapping[str, Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        return state["assignments"], []

    @torch.no_grad()
    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Clusters the memory; before the first step, fills it with embeddings of all images.

        Raises:
            DeepClusterError: fewer images than clusters.
        """
        p = self.params
        if not (self.assignment >= 0).any():
            self._fill_memory(extract_features)
        count, index = int((self.assignment >= 0).sum()), self.kept_images
        check_enough_images(count, p.k, max(2, count // 20))
        reported: Clustering | None = None
        for number in range(p.clusterings):
            rows = self.memory[index - self.local_range[0], number % p.memory_views]
            kmeans = self.k_means(rows, (*key, number), spherical=True)
            self.prototypes[number] = kmeans.cluster_centers_
            self.assignments[number, self.group.gather(index)] = self.group.gather(kmeans.labels_)
            if reported is None:
                z, centroids = rows.cpu().numpy(), kmeans.cluster_centers_.cpu()
                labels = kmeans.labels_.cpu().numpy()
                reported = self.scatter_to_dataset(index.cpu().numpy(), z, labels, centroids)
        assert reported is not None
        return reported

    def finish(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Of every image as it is, by the network as it is now: the memory is of past views."""
        return self.nearest_clusters(extract_features(), self.refresh(extract_features, key).centroids)

    def _fill_memory(self, extract_features: ExtractFeatures) -> None:
        """Every view of an image begins with the embedding of the image as it is."""
        extracted = extract_features()
        index = torch.from_numpy(extracted.index).to(self.memory.device)
        z = self.first_embeddings(extracted)
        self.assignments[:, self.group.gather(index)] = 0
        self.store_all_rows_(self.memory, index, z[:, None].expand(-1, self.params.memory_views, -1))

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """Cross-entropy to the pseudo-labels, averaged over views of all sizes and over clusterings."""
        labels = self.assignments[:, batch.index.to(self.assignments.device, non_blocking=True)]
        large, terms = batch.large_views, []
        self._seen = []
        for number, view in enumerate(batch.views):
            z = self.neck.directions(self.backbone(view))
            if number < large:
                self._seen.append(self._remembered(view, z))
            for prototypes, label in zip(self.prototypes, labels, strict=True):
                logits = (z @ prototypes.T).float() / self.params.temperature
                terms.append(self.batch_group.mean(F.cross_entropy(logits, label, reduction="none")))
        return {"loss": torch.stack(terms).mean()}

    @torch.no_grad()
    def _remembered(self, view: Tensor, z: Tensor) -> Tensor:
        """What the memory takes of a view whose embeddings are `z`: these, or those of the moving average."""
        if not self.ema_decay:
            return z.detach()
        found: Tensor = self.averaged("neck").directions(self.averaged("backbone")(view))
        return found

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """The memory takes the embeddings of the large views."""
        super().after_step(batch)
        seen = [self._seen[number % len(self._seen)] for number in range(self.params.memory_views)]
        self.store_batch_(self.memory, batch.index, torch.stack(seen, 1))
        self._seen = []

    @property
    def embedding(self) -> list[Embedding]:
        return [self.averaged("neck")]

    def bytes_per_step(self, batch_size: int) -> int:
        return batch_size * (4 * self.params.memory_views * self.params.feature_dim + 8)

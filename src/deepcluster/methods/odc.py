"""ODC, Online Deep Clustering (Zhan, Xie, Liu, Ong, Loy 2020, arXiv 2006.10645), in the order of its section 3.

Two memories replace DeepCluster's alternation: the samples memory holds a feature and a label of every image, the
centroids memory the centroid of every cluster. Each training step predicts the labels of its images, updates their
features in memory, gives them the label of the nearest centroid, regularly moves centroids to the means of their
members, and dissolves clusters that have become too small. So labels change gradually instead of all at once.

A step's cost depends on the batch, not on the number of images: sizes, sums and members of clusters are updated, never
recomputed.

With several processes each keeps the features of a range of images, and everything else is the same on all: in each
step they exchange the features of the whole batch and then all do the same, so none waits for another's result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.cluster_index import Members
from deepcluster.clustering.whitening import Whitening
from deepcluster.exact_sum import sums_by_label
from deepcluster.methods.base import ExtractFeatures, Method
from deepcluster.methods.checks import check_enough_images
from deepcluster.methods.params import ODCParams
from deepcluster.methods.rows import occurrences
from deepcluster.models.heads import LinearClassifier, ProjectionHead
from deepcluster.random import seeded
from deepcluster.types import Batch, Clustering, Embedding, TrainStep


class ODC(Method):
    """Clusters and learns in the same step."""

    online = True
    params: ODCParams
    features: Tensor
    assignment: Tensor
    assignment_at_refresh: Tensor
    centroids: Tensor
    sums: Tensor
    changed: Tensor
    counts: Tensor

    def build(self) -> None:
        p, backbone = self.params, self.backbone
        self.k = p.k
        self.neck = ProjectionHead(backbone.dim, p.hidden, p.feature_dim, dropout=p.dropout, relu=backbone.head_relu)
        self.head = LinearClassifier(p.feature_dim, p.k)
        self.own_optimizers = {
            "neck": self.make_optimizer(self.neck.parameters()),
            "head": self.make_optimizer(self.head.parameters(), lr=p.head_lr, momentum=0.0),
        }
        # Samples memory (§3.1): a feature and a label of every image; each process has the features of its range.
        self.keep_rows("features", p.feature_dim)
        self.register_buffer("assignment", torch.full((self.n,), -1, dtype=torch.int64))
        self.register_buffer("assignment_at_refresh", torch.full((self.n,), -1, dtype=torch.int64))
        # Centroids memory (§3.1), and the sums of the members' features, of which they are made.
        self.register_buffer("centroids", torch.zeros(p.k, p.feature_dim))
        self.register_buffer("sums", torch.zeros(p.k, p.feature_dim, dtype=torch.float64))
        self.register_buffer("changed", torch.zeros(p.k, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))  # labels given and changed in this epoch
        self.keep_averages(p.ema_decay, "backbone", "neck")
        self._members: Members | None = None
        self._step_features: list[Tensor] = []  # of this step's images, from `loss` to `after_step`
        self.register_load_state_dict_post_hook(_drop_members)  # type: ignore[no-untyped-call]

    def rows(self, index: Tensor) -> Tensor:
        """(M, D) features in memory of images `index` (M,), whichever process has them."""
        if self.group.is_single:
            return self.features[index]
        here = (index >= self.local_range[0]) & (index < self.local_range[1])
        return self.group.combine_rows(self.features[index[here] - self.local_range[0]], here)

    @property
    def members(self) -> Members:
        """The images of each cluster; built from the labels when first needed."""
        if self._members is None:
            self._members = Members(self.assignment.cpu().numpy(), self.k)
        return self._members

    @property
    def threshold(self) -> int:
        """Smallest size of a cluster: `min_size`, or what N images in K clusters allow."""
        return max(1, min(self.params.min_size, int(self.members.sizes.sum()) // (2 * self.k)))

    @property
    def last_assignment(self) -> Tensor:
        """The labels at the beginning of the epoch."""
        return self.assignment_at_refresh

    @property
    def kept_embeddings(self) -> Tensor:
        return self.features

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """At the beginning of every epoch, so that each has a clustering to evaluate; only the first one extracts
        features."""
        return step % steps_per_epoch == 0

    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Before the first step one k-means of all images (§3.3); afterwards the content of the memories.

        Raises:
            DeepClusterError: fewer images than clusters.
        """
        if not (self.assignment >= 0).any():
            self._initialize(extract_features, key)
        self.assignment_at_refresh.copy_(self.assignment)
        return self._clustering()

    @torch.no_grad()
    def _initialize(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> None:
        extracted, group = extract_features(), self.group
        index = torch.from_numpy(extracted.index).to(self.features.device)
        count = sum(group.row_counts(len(index)))
        check_enough_images(count, self.k, max(2, count // 20))
        rows = self.first_embeddings(extracted)
        self.store_all_rows_(self.features, index, rows)
        table: Any = rows
        if self.params.start == "whitened":
            table = Whitening(rows.shape[1], group=group).fit_transform(extracted.features)
        label = torch.as_tensor(self.k_means(table, key).labels_).to(index)
        self.assignment[group.gather(index)] = group.gather(label)
        self.sums.copy_(sums_by_label(rows, label, self.k, group))
        self._members = None
        self.centroids.copy_(self._means(torch.arange(self.k, device=index.device)))
        self._handle_small()
        self.head.reset_(seeded(*key, 1))

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Every image equally often; with `replace`, drawn with replacement."""
        if not self.params.replace:
            return super().order(length, generator)
        good = (self.assignment.cpu() >= 0).nonzero().flatten()
        return good[torch.randint(len(good), (length,), generator=generator)]

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """Cross-entropy to the labels in memory, each image weighted by its cluster's size to the power -1/2 (§3.2)."""
        label = self.assignment[batch.index.to(self.assignment.device, non_blocking=True)]
        sizes = torch.from_numpy(self.members.sizes[label.cpu().numpy()]).to(label.device)
        weight = sizes.float().clamp(min=1) ** -self.params.reweight_power
        self._step_features, terms = [], []
        for view in batch.views:
            features = self.backbone(view)
            z = self.neck(features)
            each = F.cross_entropy(self.head(z).float(), label, reduction="none")
            terms.append(self.batch_group.mean(each, weight))
            if self.ema_decay:
                with torch.no_grad():
                    z = self.averaged("neck")(self.averaged("backbone")(view))
            elif self.params.memory == "eval":
                z = self.neck.project(features.detach())
            self._step_features.append(z.detach())
        return {"loss": torch.stack(terms).mean()}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Updates both memories (§3.2, figure 2), and dissolves clusters that became small (§3.3)."""
        index = self.batch_group.gather(batch.index.to(self.features.device, non_blocking=True))
        rounds = occurrences(index)
        for features in self._step_features:
            z = F.normalize(self.batch_group.gather(features.float()), dim=1)
            # An image may occur twice in a batch: its occurrences are processed one after the other, in their order.
            for rows in rounds:
                self._update_memory(index[rows], z[rows])
        self._step_features = []
        super().after_step(batch)
        step = int(self.steps)
        if step % self.params.centroid_every == 0:
            moved = self.changed.nonzero().flatten()
            self.centroids[moved] = self._means(moved)
            self.changed.zero_()
        if step % self.params.handle_every == 0:
            self._handle_small()

    def _update_memory(self, index: Tensor, z: Tensor) -> None:
        """New features and labels of different images `index` (B,)."""
        before, old = self.rows(index), self.assignment[index]
        after = F.normalize((1 - self.params.momentum) * before + self.params.momentum * z, dim=1)
        self.store_rows_(self.features, index, after)
        new = self.nearest_cluster(after)
        self.assignment[index] = new
        self._moved(index, old, new, before, after)
        self.counts += torch.stack([torch.tensor(len(index), device=new.device), (new != old).sum()])

    def _moved(self, index: Tensor, old: Tensor, new: Tensor, before: Tensor, after: Tensor) -> None:
        """Sums, sizes and members follow images `index` from cluster to cluster."""
        self.sums.index_add_(0, old, -before.double())
        self.sums.index_add_(0, new, after.double())
        self.changed[old] = True
        self.changed[new] = True
        changed = (old != new).cpu()
        rows, source, target = (part.cpu()[changed].numpy() for part in (index, old, new))
        self.members.move(rows, source, target)

    def nearest_cluster(self, z: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B,) cluster of unit features (B, D): the nearest centroid, among `allowed` (K,) bool where given."""
        centroids = F.normalize(self.centroids, dim=1) if self.params.nearest == "cosine" else self.centroids
        scores = z @ centroids.T
        if self.params.nearest == "euclidean":
            scores -= centroids.square().sum(1) / 2
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return scores.argmax(1)

    def _means(self, clusters: Tensor) -> Tensor:
        """(M, D) mean features of the members of `clusters` (M,); those of empty ones stay as they are."""
        sizes = torch.from_numpy(self.members.sizes).to(clusters.device)[clusters, None]
        means = torch.where(sizes > 0, self.sums[clusters] / sizes.clamp(min=1), self.centroids[clusters]).float()
        # A GPU adds in any order: sums may differ in their last digits, labels must not.
        return means if means.device.type == "cpu" else self.group.broadcast_(means)

    @torch.no_grad()
    def _handle_small(self) -> None:
        """Dissolves clusters under the threshold into the nearest others and gives each half of the largest (§3.3)."""
        sizes, threshold = self.members.sizes, self.threshold
        small = np.flatnonzero(sizes < threshold).tolist()
        if not small:
            return
        device = self.features.device
        normal = torch.from_numpy(sizes >= threshold).to(device)
        for cluster in small:
            if sizes[cluster] and normal.any():
                index = torch.from_numpy(self.members.of(cluster)).to(device)
                z = self.rows(index)
                self._relabel(index, self.nearest_cluster(z, normal))
            largest = int(sizes.argmax())
            if sizes[cluster] == 0:
                index = torch.from_numpy(self.members.of(largest)).to(device)
                second = split_in_two(self.rows(index), threshold)
                self._relabel(index[second], torch.full((int(second.sum()),), cluster, device=device))
                both = torch.tensor([largest, cluster], device=device)
                self.centroids[both] = self._means(both)
                normal[cluster] = True

    def _relabel(self, index: Tensor, new: Tensor) -> None:
        old, z = self.assignment[index], self.rows(index)
        self.assignment[index] = new
        self._moved(index, old, new, z, z)

    def epoch_stats(self) -> dict[str, float]:
        """Share of the labels given in this epoch that were not the image's label before."""
        given, changed = self.counts.tolist()
        self.counts.zero_()
        return {"changed": changed / max(given, 1)}

    @property
    def embedding(self) -> list[Embedding]:
        return [self.averaged("neck")]

    def bytes_per_step(self, batch_size: int) -> int:
        return batch_size * (4 * self.features.shape[1] + 8)

    def _clustering(self) -> Clustering:
        """The content of the memories, with the centroids that a new image is compared to."""
        label = self.assignment.cpu()
        centroids = F.normalize(self.centroids, dim=1) if self.params.nearest == "cosine" else self.centroids
        own = self.assignment[slice(*self.local_range)].clamp(min=0)
        offset = self.group.gather((self.features - centroids[own]).norm(dim=1)).cpu()
        distance = torch.where(label >= 0, offset, torch.nan).numpy()
        return Clustering(
            label.numpy().copy(), centroids.cpu().clone(), distance, float(np.nansum(distance.astype(np.float64) ** 2))
        )


def split_in_two(x: Tensor, least: int, rounds: int = 20) -> Tensor:
    """(M,) bool, the second of two groups of the rows of x (M, D), by 2-means; each has at least `least` rows.

    Starts from the two ends of the main direction, found by a few power iterations, so nothing is drawn. Where the
    groups come out too unequal, or all rows are alike, they are cut along the line between the two means.
    """
    centered = (x - x.mean(0)).double()
    direction = centered[centered.square().sum(1).argmax()]
    for _ in range(8):
        direction = F.normalize(centered.T @ (centered @ direction), dim=0)
    along = centered @ direction
    second = along > 0
    for _ in range(rounds):
        if not 0 < int(second.sum()) < len(x):
            break
        a, b = centered[~second].mean(0), centered[second].mean(0)
        along = centered @ (b - a) - (b.square().sum() - a.square().sum()) / 2
        after = along > 0
        if torch.equal(after, second):
            break
        second = after
    least = min(least, len(x) // 2)
    size = int(second.sum())
    if least <= size <= len(x) - least:
        return second
    size = max(least, min(size, len(x) - least))
    second = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    second[torch.argsort(along, descending=True, stable=True)[:size]] = True
    return second


def _drop_members(method: nn.Module, incompatible: object) -> None:
    """After a checkpoint was loaded: members are those of its labels."""
    assert isinstance(method, ODC)
    method._members = None

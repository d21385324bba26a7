"""ODC, Online Deep Clustering (Zhan, Xie, Liu, Ong, Loy 2020, arXiv 2006.10645), in the order of its section 3.

Two memories take the place of DeepCluster's alternation: one holds a feature and a label of every image, the other the
centroid of every cluster. Each training step predicts the labels of its images, refreshes their features in the
memory, gives them the label of the nearest centroid, now and then moves centroids to the means of their members, and
takes apart clusters that have become too small. So labels change a little all the time instead of all at once.

A step's cost depends on the batch, not on the number of images: sizes, sums and members of clusters are kept up to
date, never counted anew.

Several processes divide the features among them, each those of a stretch of images, and keep everything else alike:
each step they tell each other what the whole batch saw and then all do the same, so none waits for another's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.cluster_index import Members
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.methods.method import ExtractFeatures, Method, check_ranges
from deepcluster.models.backbone import Backbone
from deepcluster.models.heads import ClusterHead
from deepcluster.models.neck import Neck
from deepcluster.random import seed_of, seeded
from deepcluster.types import Batch, Clustering

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class ODC(Method):
    """Clusters and learns in the same step.

    Args:
        backbone: the network to train.
        n: images in the source, undecodable ones included.
        k: clusters, a fixed number.
        neck_optimizer, head_optimizer: make the optimizers of the neck and of the classifier.
        feature_dim, hidden, dropout, momentum, centroid_every, min_size, handle_every, reweight_power, nearest,
            memory, start, iterations, replace: see `ODCParams`.
    """

    features: Tensor
    assignment: Tensor
    centroids: Tensor
    sums: Tensor
    touched: Tensor
    steps: Tensor
    tally: Tensor
    told: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        n: int,
        k: int,
        neck_optimizer: MakeOptimizer,
        head_optimizer: MakeOptimizer,
        feature_dim: int = 256,
        hidden: int = 512,
        dropout: float = 0.5,
        momentum: float = 0.5,
        centroid_every: int = 10,
        min_size: int = 20,
        handle_every: int = 1,
        reweight_power: float = 0.5,
        nearest: str = "euclidean",
        memory: str = "forward",
        start: str = "neck",
        iterations: int = 20,
        replace: bool = False,
    ) -> None:
        super().__init__()
        check_ranges(
            ("k", k, k >= 1, "1 cluster or more"),
            ("feature-dim", feature_dim, feature_dim >= 1, "1 or more"),
            ("hidden", hidden, hidden >= 1, "1 or more"),
            ("dropout", dropout, 0 <= dropout < 1, "a share from 0 to below 1"),
            ("momentum", momentum, 0 < momentum <= 1, "a share above 0, at most 1"),
            ("centroid-every", centroid_every, centroid_every >= 1, "1 step or more"),
            ("handle-every", handle_every, handle_every >= 1, "1 step or more"),
            ("min-size", min_size, min_size >= 1, "1 image or more"),
            ("iterations", iterations, iterations >= 1, "1 or more"),
        )
        self.k, self.momentum, self.centroid_every, self.min_size = k, momentum, centroid_every, min_size
        self.handle_every, self.reweight_power, self.nearest, self.memory = (
            handle_every,
            reweight_power,
            nearest,
            memory,
        )
        self.start, self.iterations, self.replace = start, iterations, replace
        self.backbone = backbone
        self.neck = Neck(backbone.dim, hidden, feature_dim, dropout=dropout, relu=backbone.head_relu)
        self.head = ClusterHead(feature_dim, k)
        self.neck_optimizer = neck_optimizer(self.neck.parameters())
        self.head_optimizer = head_optimizer(self.head.parameters())
        # Samples memory (§3.1): a feature and a label of every image.
        self.register_buffer("features", torch.zeros(n, feature_dim))
        self.register_buffer("assignment", torch.full((n,), -1, dtype=torch.int64))
        self.register_buffer("told", torch.full((n,), -1, dtype=torch.int64))
        # Centroids memory (§3.1), and the sums of their members' features, of which they are made.
        self.register_buffer("centroids", torch.zeros(k, feature_dim))
        self.register_buffer("sums", torch.zeros(k, feature_dim, dtype=torch.float64))
        self.register_buffer("touched", torch.zeros(k, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tally", torch.zeros(2, dtype=torch.int64))  # labels given and changed in this epoch
        self.mine = (0, n)  # first and past-the-last image whose features are here
        self._members: Members | None = None
        self._seen: list[Tensor] = []  # this step's features, from `loss` to `after_step`
        self.register_load_state_dict_pre_hook(_take_own_features)
        self.register_load_state_dict_post_hook(_forget_members)

    def join(self, group: ProcessGroup) -> None:
        """Each process keeps the features of its share of the images."""
        super().join(group)
        self.mine = group.row_range(len(self.assignment))
        self.features = self.features[slice(*self.mine)].clone()

    def full_state_dict(self) -> dict[str, Any]:
        state = self.state_dict()
        if self.group.is_single:
            return state
        features = self.group.gather_to_first(torch.arange(*self.mine), self.features, len(self.assignment))
        return state if features is None else state | {"features": features}

    def rows(self, index: Tensor) -> Tensor:
        """(M, D) features in memory of images `index` (M,), whichever process has them."""
        if self.group.is_single:
            return self.features[index]
        here = (index >= self.mine[0]) & (index < self.mine[1])
        return self.group.combine_rows(self.features[index[here] - self.mine[0]], here)

    def _store(self, index: Tensor, z: Tensor) -> None:
        """New features (M, D) of images `index` (M,), as far as they are kept here."""
        if self.group.is_single:
            self.features[index] = z
            return
        here = (index >= self.mine[0]) & (index < self.mine[1])
        self.features[index[here] - self.mine[0]] = z[here]

    @property
    def members(self) -> Members:
        """Who is in which cluster; made from the labels when it is first asked for."""
        if self._members is None:
            self._members = Members(self.assignment.cpu().numpy(), self.k)
        return self._members

    @property
    def threshold(self) -> int:
        """Smallest size of a cluster: `min_size`, or what N images in K clusters allow."""
        return max(1, min(self.min_size, int(self.members.sizes.sum()) // (2 * self.k)))

    @property
    def last_assignment(self) -> Tensor:
        """The labels at the beginning of the epoch."""
        return self.told

    # The loop asks at the beginning of every epoch, so that each leaves a clustering to look at; only the first
    # describes the images.
    def due(self, step: int, steps_per_epoch: int) -> bool:
        return step % steps_per_epoch == 0

    def refresh(self, describe: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Before the first step one k-means of all images (§3.3); afterwards what the memories hold.

        Raises:
            DeepClusterError: fewer images than clusters.
        """
        if not (self.assignment >= 0).any():
            self._begin(describe, key)
        self.told.copy_(self.assignment)
        return self._clustering()

    @torch.no_grad()
    def _begin(self, describe: ExtractFeatures, key: tuple[int, ...]) -> None:
        described, group = describe(), self.group
        index = torch.from_numpy(described.index).to(self.features.device)
        count = sum(group.row_counts(len(index)))
        if count < self.k:
            raise DeepClusterError(
                f"There are {count} images for {self.k} clusters: ask for fewer, such as --method.k"
                f" {max(2, count // 20)}."
            )
        blocks = [block.numpy() for block in torch.arange(len(index)).split(8192)]
        # A new neck's batch-norm knows nothing of the features yet: what it would remember here and what training
        # shows it would be strangers, and the first epoch would scramble the clusters.
        self.neck.settle((torch.as_tensor(described.features[block]).to(self.features) for block in blocks), group)
        rows = self.features.new_zeros(len(index), self.features.shape[1])
        for block in blocks:
            seen = torch.as_tensor(described.features[block]).to(self.features)
            rows[block] = F.normalize(self.neck.calm(seen).float(), dim=1)
        for place, part in group.gather_in_blocks(index, rows):
            self._store(place, part)
        grouped: Any = rows
        if self.start == "whitened":
            grouped = Whitening(rows.shape[1], group=group).fit_transform(described.features)
        kmeans = KMeans(
            self.k,
            max_iter=self.iterations,
            random_state=seed_of(*key) % 2**31,
            device=self.features.device,
            group=group,
        )
        label = torch.as_tensor(kmeans.fit(grouped).labels_).to(index)
        self.assignment[group.gather(index)] = group.gather(label)
        group.sum_(self.sums.zero_().index_add_(0, label, rows.double()))
        self._members = None
        self.centroids.copy_(self._means(torch.arange(self.k, device=index.device)))
        self._handle_small()
        self.head.reset_(seeded(*key, 1))

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Every image equally often; with `replace`, drawn with replacement."""
        if not self.replace:
            return epoch_order(self.assignment.cpu(), length, "images", generator)
        good = (self.assignment.cpu() >= 0).nonzero().flatten()
        return good[torch.randint(len(good), (length,), generator=generator)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the labels in memory, each image weighed by its cluster's size to the power -1/2 (§3.2)."""
        label = self.assignment[batch.index.to(self.assignment.device)]
        sizes = torch.from_numpy(self.members.sizes[label.cpu().numpy()]).to(label.device)
        weight = sizes.float().clamp(min=1) ** -self.reweight_power
        self._seen, terms = [], []
        for view in batch.views:
            described = self.backbone(view)
            z = self.neck(described)
            each = F.cross_entropy(self.head(z).float(), label, reduction="none")
            terms.append(self.group.mean(each, weight))
            self._seen.append(self.neck.calm(described.detach()) if self.memory == "calm" else z.detach())
        return {"loss": torch.stack(terms).mean()}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Both memories move on (§3.2, figure 2), and clusters that became small are taken apart (§3.3)."""
        index = self.group.gather(batch.index.to(self.features.device))
        turns = occurrences(index)
        for seen in self._seen:
            z = F.normalize(self.group.gather(seen.float()), dim=1)
            # An image may occur twice in a batch: its occurrences are taken one after the other, in their order.
            for rows in turns:
                self._remember(index[rows], z[rows])
        self._seen = []
        self.steps += 1
        step = int(self.steps)
        if step % self.centroid_every == 0:
            moved = self.touched.nonzero().flatten()
            self.centroids[moved] = self._means(moved)
            self.touched.zero_()
        if step % self.handle_every == 0:
            self._handle_small()

    def _remember(self, index: Tensor, z: Tensor) -> None:
        """New features and labels of different images `index` (B,)."""
        before, old = self.rows(index), self.assignment[index]
        after = F.normalize((1 - self.momentum) * before + self.momentum * z, dim=1)
        self._store(index, after)
        new = self.nearest_cluster(after)
        self.assignment[index] = new
        self._moved(index, old, new, before, after)
        self.tally += torch.stack([torch.tensor(len(index), device=new.device), (new != old).sum()])

    def _moved(self, index: Tensor, old: Tensor, new: Tensor, before: Tensor, after: Tensor) -> None:
        """Sums, sizes and members follow images `index` from cluster to cluster."""
        self.sums.index_add_(0, old, -before.double())
        self.sums.index_add_(0, new, after.double())
        self.touched[old] = True
        self.touched[new] = True
        changed = (old != new).cpu()
        rows, source, target = (part.cpu()[changed].numpy() for part in (index, old, new))
        self.members.move(rows, source, target)

    def nearest_cluster(self, z: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B,) cluster of unit features (B, D): the nearest centroid, among `allowed` (K,) bool where given."""
        centroids = F.normalize(self.centroids, dim=1) if self.nearest == "cosine" else self.centroids
        scores = z @ centroids.T
        if self.nearest == "euclidean":
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
                second = halves(self.rows(index), threshold)
                self._relabel(index[second], torch.full((int(second.sum()),), cluster, device=device))
                both = torch.tensor([largest, cluster], device=device)
                self.centroids[both] = self._means(both)
                normal[cluster] = True

    def _relabel(self, index: Tensor, new: Tensor) -> None:
        old, z = self.assignment[index], self.rows(index)
        self.assignment[index] = new
        self._moved(index, old, new, z, z)

    def measured(self) -> dict[str, float]:
        """Share of the labels given in this epoch that were not the image's label before."""
        given, changed = self.tally.tolist()
        self.tally.zero_()
        return {"changed": changed / max(given, 1)}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"neck": self.neck_optimizer, "head": self.head_optimizer}

    def _clustering(self) -> Clustering:
        """What the memories hold, with the centroids that a new image is compared with."""
        label = self.assignment.cpu()
        centroids = F.normalize(self.centroids, dim=1) if self.nearest == "cosine" else self.centroids
        own = self.assignment[slice(*self.mine)].clamp(min=0)
        offset = self.group.gather((self.features - centroids[own]).norm(dim=1)).cpu()
        distance = torch.where(label >= 0, offset, torch.nan).numpy()
        return Clustering(
            label.numpy().copy(), centroids.cpu().clone(), distance, float(np.nansum(distance.astype(np.float64) ** 2))
        )


def occurrences(index: Tensor) -> list[Tensor]:
    """Positions of each image's first occurrence in `index` (B,), of its second, and so on: one after the other they
    do what going through the batch image by image would."""
    seen: dict[int, int] = {}
    rounds: list[list[int]] = []
    for position, image in enumerate(index.tolist()):
        turn = seen.get(image, 0)
        seen[image] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(position)
    return [torch.tensor(positions) for positions in rounds]


def halves(x: Tensor, least: int, rounds: int = 20) -> Tensor:
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


def _take_own_features(method: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a checkpoint is loaded: of the features of all images in it, those that are kept here."""
    assert isinstance(method, ODC)
    whole = state.get(prefix + "features")
    if not method.group.is_single and isinstance(whole, Tensor) and len(whole) == len(method.assignment):
        state[prefix + "features"] = whole[slice(*method.mine)]


def _forget_members(method: nn.Module, incompatible: object) -> None:
    """After a checkpoint was loaded: members are those of its labels."""
    assert isinstance(method, ODC)
    method._members = None

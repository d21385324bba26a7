"""DeeperCluster (Caron, Bojanowski, Mairal, Joulin 2019, arXiv 1905.01278), in the order of its section 3.

Every image is rotated by 0, 90, 180 or 270 degrees, and the network predicts the rotation together with the image's
cluster. The clusters have two levels: a super-class is a super-cluster and a rotation, and within each super-class a
classifier of its own tells the sub-clusters apart. Without rotations and with one super-cluster this is DeepCluster;
with one cluster it is RotNet (Gidaris, Singh, Komodakis 2018, arXiv 1803.07728).

Batches mix all super-classes. The sub-classifiers, which have most of the parameters, are divided among the processes:
each reads the features of the whole batch and trains its own.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.hierarchical import HierarchicalKMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.methods.base import ExtractFeatures, WhitenedMethod, interval_due
from deepcluster.methods.params import DeeperClusterParams
from deepcluster.models.heads import Classifier, CosineClassifier, cluster_means, make_classifier
from deepcluster.random import seed_of, seeded
from deepcluster.reading import parse_json
from deepcluster.types import Batch, Clustering, ClusterTree, TrainStep


class DeeperCluster(WhitenedMethod):
    """Predicts rotations and two levels of clusters."""

    params: DeeperClusterParams
    assignment: Tensor
    centroids: Tensor
    super_centroids: Tensor
    used: Tensor
    counts: Tensor

    def build(self) -> None:
        p, backbone = self.params, self.backbone
        if p.super_clusters < 1 or p.k % p.super_clusters:
            raise DeepClusterError(
                f"{p.k} clusters do not divide into {p.super_clusters} super-clusters: make --method.k a multiple of"
                " --method.super-clusters."
            )
        self.k, self.super_clusters, self.rotations = p.k, p.super_clusters, p.rotations_predicted
        width = min(p.whiten or backbone.dim, backbone.dim)
        self.whitening = Whitening(p.whiten or backbone.dim, whiten=p.whiten > 0)
        # From generators of their own: the global one must stay the same on processes with fewer classifiers.
        self.super_head = self._new_head(self.super_classes, seeded(0))
        self.sub_heads = nn.ModuleDict()
        for number in self.owned:
            self.sub_heads[str(number)] = self._new_head(self.per_super, seeded(1, number))
        self.register_buffer("assignment", torch.full((self.n,), -1, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(p.k, width))
        self.register_buffer("super_centroids", torch.zeros(p.super_clusters, width))
        self.register_buffer("used", torch.zeros(p.k, dtype=torch.bool))
        # Images of this epoch, and of them those with super-class, sub-class and both predicted correctly.
        self.register_buffer("counts", torch.zeros(4, dtype=torch.int64))
        self._make_optimizers()
        self.keep_averages(p.ema_decay, "backbone")
        self.register_load_state_dict_pre_hook(_take_own_heads)  # type: ignore[no-untyped-call]

    @property
    def super_classes(self) -> int:
        """Number of super-clusters times rotations."""
        return self.super_clusters * self.rotations

    @property
    def per_super(self) -> int:
        """Sub-clusters in each super-cluster: the paper's k / m."""
        return self.k // self.super_clusters

    @property
    def owned(self) -> list[int]:
        """Super-classes whose sub-classifiers this process has."""
        return list(range(self.batch_group.rank, self.super_classes, self.batch_group.size))

    @property
    def local_parameters(self) -> list[nn.Parameter] | None:
        return None if self.batch_group.is_single else list(self.sub_heads.parameters())

    def bytes_per_step(self, batch_size: int) -> int:
        # Features and their gradients, labels, and whether each prediction is correct.
        return batch_size * (2 * 4 * self.backbone.dim + 2 * 8 + 1)

    @property
    def cluster_tree(self) -> ClusterTree:
        return ClusterTree(self.super_centroids, self.used)

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Every `reassign` epochs; a single cluster never changes."""
        return step == 0 or (self.k > 1 and interval_due(self.params.reassign, step, steps_per_epoch))

    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Whitening, k-means into super-clusters, k-means within each, new classifiers and optimizers (§3.3).

        Raises:
            DeepClusterError: fewer images than clusters, or images that all have the same features.
        """
        extracted = extract_features()
        z, _ = self.whiten(extracted, self.k, multiple=self.super_clusters)
        tree = HierarchicalKMeans(
            self.k,
            branches=(self.super_clusters,),
            max_iter=self.params.iterations,
            random_state=seed_of(*key) % 2**31,
            device=self.assignment.device,
            group=self.group,
        ).fit(z)
        upper, lower = (torch.as_tensor(level).float().cpu() for level in tree.levels_)
        clustering = self.scatter_to_dataset(extracted.index, z, np.asarray(tree.labels_), lower)
        self.assignment.copy_(torch.from_numpy(clustering.assignment))
        self.centroids.copy_(lower)
        self.super_centroids.copy_(upper)
        self.used.copy_(torch.from_numpy(clustering.sizes > 0))
        self.super_head.reset_(seeded(*key, 1), self.super_classes)
        for name, head in self.sub_heads.items():
            head.reset_(seeded(*key, 2, int(name)), self.per_super)  # type: ignore[operator]
        if self.params.head == "centroids":
            label = torch.as_tensor(np.asarray(tree.labels_))
            self._point_at_clusters(torch.as_tensor(extracted.features), label, seeded(*key, 3))
        self._make_optimizers()
        return clustering

    def _new_head(self, classes: int, generator: torch.Generator) -> Classifier:
        p, backbone = self.params, self.backbone
        return make_classifier(
            p.head, backbone.dim, classes, relu=backbone.head_relu, temperature=p.temperature, generator=generator
        )

    @torch.no_grad()
    def _point_at_clusters(self, features: Tensor, label: Tensor, generator: torch.Generator) -> None:
        """Points the classifiers at super-clusters, from the mean of all, and at clusters, from that of their
        super-cluster; where there is only one class, its random direction stays.

        Args:
            features, label: (M, D) and (M,), this process's.
        """
        head = self.super_head
        assert isinstance(head, CosineClassifier)
        unit = head.directions_of(features)

        def means(of: Tensor, count: int) -> Tensor:
            return cluster_means(unit, of, count, generator, self.group)

        center, above, below = means(label * 0, 1), means(label // self.per_super, self.super_clusters), None
        if self.super_clusters > 1:
            head.directions.copy_(F.normalize(above - center, dim=1).repeat_interleave(self.rotations, 0))
        if self.per_super > 1:
            below = means(label, self.k).view(self.super_clusters, self.per_super, -1) - above[:, None]
        for name, sub in self.sub_heads.items():
            if below is not None and isinstance(sub, CosineClassifier):
                sub.directions.copy_(F.normalize(below[int(name) // self.rotations], dim=1))

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Super-clusters in turn, and within each uniform over its sub-clusters.

        Each super-cluster comes `rotations` times in a row, once for every rotation, since an image's rotation follows
        from its position in the order: so all super-classes are equally frequent.
        """
        label = self.assignment.cpu()
        present = [s for s in range(self.super_clusters) if (label // self.per_super == s).any()]
        positions = torch.arange(length) // self.rotations % len(present)
        order = torch.empty(length, dtype=torch.int64)
        for position, number in enumerate(present):
            within = torch.where(label // self.per_super == number, label, -1)
            here = positions == position
            order[here] = epoch_order(within, int(here.sum()), "uniform", generator)
        return order

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """Cross-entropy to the super-class plus that to the sub-cluster within it (§3.2), both with weight 1."""
        group = self.batch_group
        label = self.assignment[batch.index.to(self.assignment.device, non_blocking=True)]
        rotation = ((batch.first + batch.position) % self.rotations).to(label.device, non_blocking=True)
        super_class = label // self.per_super * self.rotations + rotation
        sub_class = group.gather(label % self.per_super)
        all_super_class = group.gather(super_class)
        count = max(len(all_super_class), 1)
        losses: list[Tensor] = []
        for view in batch.views:
            features = self.backbone(rotate(view, rotation))
            above = self.super_head(features).float()
            losses.append(F.cross_entropy(above, super_class, reduction="sum") / count)
            right = group.gather(above.detach().argmax(1) == super_class)
            all_features = features if group.is_single else _Gather.apply(features, group)
            losses.append(all_features[:0].sum())  # also a process without classifiers takes part in the backward pass
            for name, head in self.sub_heads.items():
                rows = (all_super_class == int(name)).nonzero().flatten()
                if len(rows):
                    within = head(all_features[rows]).float()
                    losses.append(F.cross_entropy(within, sub_class[rows], reduction="sum") / count)
                    self._count(right[rows], within.detach().argmax(1) == sub_class[rows])
        return {"loss": torch.stack(losses).sum() / len(batch.views)}

    def _count(self, above: Tensor, within: Tensor) -> None:
        """Counts the images whose super-class and sub-class are predicted correctly, each (B,) bool."""
        images = torch.tensor(len(above), device=above.device)
        self.counts += torch.stack([images, above.sum(), within.sum(), (above & within).sum()])

    def epoch_stats(self) -> dict[str, float]:
        """Shares of this epoch's images whose super-class, sub-class (by the classifier of the correct super-class) and
        both were predicted correctly (§4.2)."""
        images, above, within, both = self.batch_group.sum_(self.counts.clone()).tolist()
        self.counts.zero_()
        shares = {"accuracy_super": above, "accuracy_sub": within, "accuracy_joint": both}
        return {name: value / max(images, 1) for name, value in shares.items()}

    def _make_optimizers(self) -> None:
        """One for each classifier; they are made again with them."""
        heads = {"super": self.super_head} | {f"sub{name}": head for name, head in self.sub_heads.items()}
        self.own_optimizers = {}
        for name, head in heads.items():
            self.own_optimizers[name] = self.make_optimizer(head.parameters(), lr=self.params.head_lr)
            for param_group in self.own_optimizers[name].param_groups:
                param_group["scheduled"] = head.scheduled

    def full_state_dict(self) -> dict[str, Any]:
        state, group = self.state_dict(), self.batch_group
        if group.is_single:
            return state
        state["counts"] = group.sum_(self.counts.clone())
        for number in range(self.super_classes):
            # Sent one by one: together they may not fit on one process's device.
            for name, like in self.super_head.state_dict().items():
                key = f"sub_heads.{number}.{name}"
                tensor = state[key].cpu().clone() if key in state else torch.empty(self.per_super, *like.shape[1:])
                group.broadcast_(tensor, number % group.size)
                if group.is_first:
                    state[key] = tensor
        return state

    def full_optimizer_states(self) -> dict[str, dict[str, Any]]:
        states = super().full_optimizer_states()
        for number in range(self.super_classes) if not self.batch_group.is_single else ():
            name, owner = f"sub{number}", number % self.batch_group.size
            state = _broadcast_optimizer(states.get(name), self.batch_group, owner)
            if self.batch_group.is_first:
                states[name] = state
        return states


def rotate(view: Tensor, quarters: Tensor) -> Tensor:
    """(B, C, S, S) images, each rotated counter-clockwise by `quarters` (B,) times 90 degrees."""
    if not bool(quarters.any()):
        return view
    view = view.clone()
    for quarter in (1, 2, 3):
        rows = (quarters == quarter).nonzero().flatten()
        view[rows] = torch.rot90(view[rows], quarter, (2, 3))
    return view


class _Gather(torch.autograd.Function):
    """(B, D) rows of all processes; the gradient of each is the sum of those of all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group, ctx.count = group, len(rows)
        return group.gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.local_rows(ctx.group.sum_(grad.contiguous()), ctx.count), None


def _broadcast_optimizer(state: dict[str, Any] | None, group: ProcessGroup, owner: int) -> dict[str, Any]:
    """The state dict of an optimizer that process `owner` has, on all processes; its tensors on the CPU."""
    plan = ""
    if state is not None:
        tensors = {p: {name: (str(v.dtype), v.shape) for name, v in part.items()} for p, part in state["state"].items()}
        plan = json.dumps({"param_groups": state["param_groups"], "state": tensors})
    full: dict[str, Any] = parse_json(group.gather_strings(plan)[owner])
    full["state"] = {int(position): part for position, part in full["state"].items()}
    for position, part in full["state"].items():
        for name, (kind, shape) in part.items():
            tensor = torch.empty(shape, dtype=getattr(torch, kind.removeprefix("torch.")))
            if state is not None:
                tensor.copy_(state["state"][position][name])
            part[name] = group.broadcast_(tensor, owner)
    return full


def _take_own_heads(method: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a checkpoint is loaded: of the sub-classifiers in it, those that this process has; counts go to one."""
    assert isinstance(method, DeeperCluster)
    for name in [name for name in state if name.startswith(prefix + "sub_heads.")]:
        if name[len(prefix) :].split(".")[1] not in method.sub_heads:
            del state[name]
    if not method.batch_group.is_first:
        state[prefix + "counts"] = torch.zeros_like(state[prefix + "counts"])

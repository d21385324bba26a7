"""DeeperCluster (Caron, Bojanowski, Mairal, Joulin 2019, arXiv 1905.01278), in the order of its section 3.

Every image is turned by 0, 90, 180 or 270 degrees, and the network predicts the turn together with the image's
cluster. The clusters have two levels: a super-class is a super-cluster and a turn, and within each super-class a
classifier of its own tells the sub-clusters apart. Without turns and with one super-cluster this is DeepCluster; with
one cluster it is RotNet (Gidaris, Singh, Komodakis 2018, arXiv 1803.07728).

Batches mix all super-classes. Several processes divide the sub-classifiers, which are the bulk of the numbers, among
them: each reads the features of the whole batch and teaches its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.hierarchical import HierarchicalKMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.methods.cosine import CosineHead, cluster_means
from deepcluster.methods.method import ExtractFeatures, Method, check_ranges, scatter_to_dataset
from deepcluster.models.backbone import Backbone
from deepcluster.models.heads import ClusterHead
from deepcluster.random import seed_of, seeded
from deepcluster.types import Batch, Clustering

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class DeeperCluster(Method):
    """Predicts turns and two levels of clusters.

    Args:
        backbone: the network to train; its features are read before the last ReLU.
        n: images in the source, undecodable ones included.
        k: clusters of the second level, over all super-clusters.
        head_optimizer: makes the optimizer of a classifier, each time it is drawn anew.
        group: the processes that will share the sub-classifiers, so that none is drawn where it is not needed.
        super_clusters, rotations, reassign, whiten, iterations, head, temperature: see `DeeperClusterParams`.
    """

    assignment: Tensor
    centroids: Tensor
    super_centroids: Tensor
    used: Tensor
    tally: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        n: int,
        k: int,
        head_optimizer: MakeOptimizer,
        super_clusters: int = 4,
        rotations: bool = True,
        reassign: float = 3.0,
        whiten: int = 4096,
        iterations: int = 10,
        head: str = "redraw",
        temperature: float = 0.1,
        group: ProcessGroup = SINGLE,
    ) -> None:
        super().__init__()
        if super_clusters < 1 or k < 1 or k % super_clusters:
            raise DeepClusterError(
                f"{k} clusters do not divide into {super_clusters} super-clusters: make --method.k a multiple of"
                " --method.super-clusters."
            )
        check_ranges(
            ("reassign", reassign, reassign > 0, "more than 0"),
            ("whiten", whiten, whiten >= 0, "0 (no whitening) or more"),
            ("iterations", iterations, iterations >= 1, "at least 1"),
            ("temperature", temperature, temperature > 0, "more than 0"),
        )
        self.k, self.super_clusters, self.turns = k, super_clusters, 4 if rotations else 1
        self.reassign, self.iterations, self.group = reassign, iterations, group
        self.backbone = backbone
        width = min(whiten or backbone.dim, backbone.dim)
        self.whitening = Whitening(whiten or backbone.dim, whiten=whiten > 0)
        self.head, self.temperature = head, temperature
        # From generators of their own: the global one must stay alike on processes with fewer classifiers.
        self.super_head = self._new_head(self.super_classes, seeded(0))
        self.sub_heads = nn.ModuleDict()
        for number in self.owned:
            self.sub_heads[str(number)] = self._new_head(self.per_super, seeded(1, number))
        self.make_head_optimizer = head_optimizer
        self.register_buffer("assignment", torch.full((n,), -1, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(k, width))
        self.register_buffer("super_centroids", torch.zeros(super_clusters, width))
        self.register_buffer("used", torch.zeros(k, dtype=torch.bool))
        # Images of this epoch, and of them those with super-class, sub-class and both predicted right.
        self.register_buffer("tally", torch.zeros(4, dtype=torch.int64))
        self._make_optimizers()
        self.register_load_state_dict_pre_hook(_take_own_heads)

    @property
    def super_classes(self) -> int:
        """Super-clusters times turns."""
        return self.super_clusters * self.turns

    @property
    def per_super(self) -> int:
        """Sub-clusters in each super-cluster: the paper's k / m."""
        return self.k // self.super_clusters

    @property
    def owned(self) -> list[int]:
        """Super-classes whose sub-classifiers this process has."""
        return list(range(self.group.rank, self.super_classes, self.group.size))

    @property
    def own(self) -> list[nn.Parameter] | None:
        return None if self.group.is_single else list(self.sub_heads.parameters())

    def join(self, group: ProcessGroup) -> None:
        if group != self.group:
            raise ValueError("DeeperCluster divides its classifiers at construction: hand it `group` there")

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Every `reassign` epochs, to the nearest step; a single cluster never changes."""
        interval = max(1.0, self.reassign * steps_per_epoch)
        return step == 0 or (self.k > 1 and int(step / interval) > int((step - 1) / interval))

    def refresh(self, describe: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """Whitening, k-means into super-clusters, k-means within each, new classifiers and optimizers (§3.3).

        Raises:
            DeepClusterError: fewer images than clusters, or images that all look the same to the backbone.
        """
        described = describe()
        index, features, group = described.index, described.features, self.group
        count = sum(group.row_counts(len(index)))
        if count < self.k:
            raise DeepClusterError(
                f"There are {count} images for {self.k} clusters: ask for fewer, such as --method.k"
                f" {max(1, count // 10 // self.super_clusters) * self.super_clusters}."
            )
        self.whitening.device, self.whitening.group = self.assignment.device, group
        z = self.whitening.fit(features).transform(features)
        if not group.any(bool(np.any(z))):
            raise DeepClusterError(
                f"All {count} images give the same features, so there is nothing to cluster: check that the"
                " images differ and are not blank."
            )
        tree = HierarchicalKMeans(
            self.k,
            branches=(self.super_clusters,),
            max_iter=self.iterations,
            random_state=seed_of(*key) % 2**31,
            device=self.assignment.device,
            group=group,
        ).fit(z)
        upper, lower = (torch.as_tensor(level).float().cpu() for level in tree.levels_)
        clustering = scatter_to_dataset(len(self.assignment), index, z, np.asarray(tree.labels_), lower, group)
        self.assignment.copy_(torch.from_numpy(clustering.assignment))
        self.centroids.copy_(lower)
        self.super_centroids.copy_(upper)
        self.used.copy_(torch.from_numpy(clustering.sizes > 0))
        self.super_head.reset_(seeded(*key, 1), self.super_classes)
        for name, head in self.sub_heads.items():
            head.reset_(seeded(*key, 2, int(name)), self.per_super)  # type: ignore[operator]
        if self.head == "centroids":
            self._aim(torch.as_tensor(features), torch.as_tensor(np.asarray(tree.labels_)), seeded(*key, 3))
        self._make_optimizers()
        return clustering

    def _new_head(self, classes: int, generator: torch.Generator) -> ClusterHead | CosineHead:
        dim, relu = self.backbone.dim, self.backbone.head_relu
        if self.head == "redraw":
            return ClusterHead(dim, classes, relu=relu, generator=generator)
        return CosineHead(dim, classes, relu, self.temperature, generator)

    @torch.no_grad()
    def _aim(self, features: Tensor, label: Tensor, generator: torch.Generator) -> None:
        """Points the classifiers at super-clusters, from the mean of all, and at clusters, from that of their
        super-cluster; a class that is alone keeps its drawn direction.

        Args:
            features, label: (M, D) and (M,), this process's.
        """
        head = self.super_head
        assert isinstance(head, CosineHead)
        unit = F.normalize(head.seen(features), dim=1)

        def means(of: Tensor, count: int) -> Tensor:
            return cluster_means(unit, of, count, generator, self.group)

        middle, above, below = means(label * 0, 1), means(label // self.per_super, self.super_clusters), None
        if self.super_clusters > 1:
            head.directions.copy_(F.normalize(above - middle, dim=1).repeat_interleave(self.turns, 0))
        if self.per_super > 1:
            below = means(label, self.k).view(self.super_clusters, self.per_super, -1) - above[:, None]
        for name, sub in self.sub_heads.items():
            if below is not None and isinstance(sub, CosineHead):
                sub.directions.copy_(F.normalize(below[int(name) // self.turns], dim=1))

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Super-clusters in turn, and within each uniform over its sub-clusters.

        Each super-cluster comes `turns` times in a row, once for every turn, since an image is turned by its place in
        the order: so all super-classes are equally many.
        """
        label = self.assignment.cpu()
        present = [s for s in range(self.super_clusters) if (label // self.per_super == s).any()]
        places = torch.arange(length) // self.turns % len(present)
        order = torch.empty(length, dtype=torch.int64)
        for turn, number in enumerate(present):
            within = torch.where(label // self.per_super == number, label, -1)
            here = places == turn
            order[here] = epoch_order(within, int(here.sum()), "uniform", generator)
        return order

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the super-class plus cross-entropy to the sub-cluster within it (§3.2), both weighing 1."""
        group = self.group
        label = self.assignment[batch.index.to(self.assignment.device)]
        turn = ((batch.first + batch.position) % self.turns).to(label.device)
        super_class = label // self.per_super * self.turns + turn
        sub_class = group.gather(label % self.per_super)
        whole_super_class = group.gather(super_class)
        count = max(len(whole_super_class), 1)
        losses: list[Tensor] = []
        for view in batch.views:
            features = self.backbone(rotate(view, turn))
            above = self.super_head(features).float()
            losses.append(F.cross_entropy(above, super_class, reduction="sum") / count)
            right = group.gather(above.detach().argmax(1) == super_class)
            whole = features if group.is_single else _Gather.apply(features, group)
            losses.append(whole[:0].sum())  # also a process without classifiers takes part in the way back
            for name, head in self.sub_heads.items():
                rows = (whole_super_class == int(name)).nonzero().flatten()
                if len(rows):
                    within = head(whole[rows]).float()
                    losses.append(F.cross_entropy(within, sub_class[rows], reduction="sum") / count)
                    self._count(right[rows], within.detach().argmax(1) == sub_class[rows])
        return {"loss": torch.stack(losses).sum() / len(batch.views)}

    def _count(self, above: Tensor, within: Tensor) -> None:
        """Predictions of super-class and sub-class, right or not."""
        images = torch.tensor(len(above), device=above.device)
        self.tally += torch.stack([images, above.sum(), within.sum(), (above & within).sum()])

    def measured(self) -> dict[str, float]:
        """Shares of this epoch's images whose super-class, sub-class (by the classifier of the right super-class) and
        both were predicted right (§4.2)."""
        images, above, within, both = self.group.sum_(self.tally.clone()).tolist()
        self.tally.zero_()
        shares = {"accuracy_super": above, "accuracy_sub": within, "accuracy_joint": both}
        return {name: value / max(images, 1) for name, value in shares.items()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One for each classifier; they are made anew with them."""
        return self.head_optimizers

    def _make_optimizers(self) -> None:
        self.head_optimizers = {"super": self.make_head_optimizer(self.super_head.parameters())} | {
            f"sub{name}": self.make_head_optimizer(head.parameters()) for name, head in self.sub_heads.items()
        }
        for optimizer in self.head_optimizers.values():
            for settings in optimizer.param_groups:
                # a classifier drawn anew has everything to learn, also late in a run
                settings["scheduled"] = self.head == "centroids"

    def full_state_dict(self) -> dict[str, Any]:
        state, group = self.state_dict(), self.group
        if group.is_single:
            return state
        state["tally"] = group.sum_(self.tally.clone())
        for number in range(self.super_classes):
            # Told one by one: together they may not fit on one process's device.
            for name, shape in self._shapes().items():
                place = f"sub_heads.{number}.{name}"
                told = state[place].cpu().clone() if place in state else torch.empty(shape)
                group.broadcast_(told, number % group.size)
                if group.is_first:
                    state[place] = told
        return state

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters of one sub-classifier."""
        wide = (self.per_super, self.backbone.dim)
        return {"linear.weight": wide, "linear.bias": wide[:1]} if self.head == "redraw" else {"directions": wide}

    def full_optimizer_states(self) -> dict[str, dict[str, Any]]:
        states = super().full_optimizer_states()
        for number in range(self.super_classes) if not self.group.is_single else ():
            name, owner = f"sub{number}", number % self.group.size
            told = _told(states.get(name), self.group, owner)
            if self.group.is_first:
                states[name] = told
        return states

    def get_extra_state(self) -> dict[str, Tensor]:
        """The whitening, which is not a module; nothing before the first clustering."""
        return self.whitening.state_dict() if (self.assignment >= 0).any() else {}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `get_extra_state`."""
        if state:
            self.whitening.load_state_dict(state)


def rotate(view: Tensor, turn: Tensor) -> Tensor:
    """(B, C, S, S) images, each turned counter-clockwise by `turn` (B,) times 90 degrees."""
    if not bool(turn.any()):
        return view
    view = view.clone()
    for quarter in (1, 2, 3):
        rows = (turn == quarter).nonzero().flatten()
        view[rows] = torch.rot90(view[rows], quarter, (2, 3))
    return view


class _Gather(torch.autograd.Function):
    """(B, D) rows of all processes; each gets back the sum of what all of them want changed in its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group, ctx.count = group, len(rows)
        return group.gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.local_rows(ctx.group.sum_(grad.contiguous()), ctx.count), None


def _told(state: dict[str, Any] | None, group: ProcessGroup, owner: int) -> dict[str, Any]:
    """An optimizer's state dict, which process `owner` has, on all processes; its tensors on the CPU."""
    plan = ""
    if state is not None:
        values = {str(p): {name: list(v.shape) for name, v in part.items()} for p, part in state["state"].items()}
        types = {name: str(v.dtype) for part in state["state"].values() for name, v in part.items()}
        plan = json.dumps({"groups": state["param_groups"], "state": values, "types": types})
    agreed = json.loads(group.gather_strings(plan)[owner])
    whole: dict[str, Any] = {"param_groups": agreed["groups"], "state": {}}
    for position, shapes in agreed["state"].items():
        whole["state"][int(position)] = {}
        for name, shape in shapes.items():
            kind = getattr(torch, agreed["types"][name].removeprefix("torch."))
            told = torch.empty(shape, dtype=kind)
            if state is not None:
                told.copy_(state["state"][int(position)][name])
            whole["state"][int(position)][name] = group.broadcast_(told, owner)
    return whole


def _take_own_heads(method: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a checkpoint is loaded: of the sub-classifiers in it, those that this process has; counts go to one."""
    assert isinstance(method, DeeperCluster)
    for name in [name for name in state if name.startswith(prefix + "sub_heads.")]:
        if name[len(prefix) :].split(".")[1] not in method.sub_heads:
            del state[name]
    if not method.group.is_first:
        state[prefix + "tally"] = torch.zeros_like(state[prefix + "tally"])

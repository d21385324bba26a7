"""A run's own method at a few small sizes: bytes and floating-point operations are counted while it clusters
made-up features and computes the loss of a batch, and extrapolated. Nothing here knows any method.

The backbone is counted without weights (on torch's meta device), so that the largest takes a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepcluster import config
from deepcluster.clustering import covariance, whitening
from deepcluster.config import TrainRun
from deepcluster.distributed import ProcessGroup
from deepcluster.engine.build import build_method, draw_backbone, views_of
from deepcluster.engine.monitor import exported_model
from deepcluster.engine.optim import backbone_optimizer
from deepcluster.engine.speed import Later, clustered
from deepcluster.errors import DeepClusterError
from deepcluster.features import product
from deepcluster.methods.base import Method
from deepcluster.types import Batch, TrainStep

ROWS = 2048
"""Images of each process in the dry run, and once twice as many."""
EXACT_K = 100
"""Clusters up to which the dry run has as many as the run."""
SMALL_K = (64, 192, 96, 60, 180, 84, 168)
"""Numbers of clusters in the dry run of a larger K, of which the first two are taken that the method can divide: few
enough that k-means computes in float32, whose operations are counted, and so far apart that also their fourth parts
differ after k-means has rounded them up to multiples of 32."""
ROUNDS = (3, 6)
"""Iterations of k-means in the dry run."""


@dataclass(frozen=True)
class Sample:
    """What one dry run counted, with n images of each process, k clusters, and so many iterations of k-means."""

    n: int
    k: int
    rounds: int
    values: dict[str, float]


TERMS: dict[str, tuple[str, ...]] = {
    "state": ("n", "k"), "checkpoint": ("n", "k"), "moments": ("k",), "shared": ("k",), "own": ("k",), "model": ("k",),
    "step_flops": ("k",), "step_saved": ("k",), "averaged": (), "refresh_flops": ("n", "n k rounds"),
}  # fmt: skip
"""What each value is linear in, besides a constant."""


class DryRun:
    """The samples of a run.

    Args:
        run: the settings.
        batch: images of each batch that are one process's.
        processes: how many.

    Attributes:
        width: P, of the rows that are clustered; 0 = nothing is.
        later: what the clusterings after the first take.
        bytes_per_step: that a process sends in a training step besides gradients.
        method: one that has clustered, with `ROWS` images.
    """

    def __init__(self, run: TrainRun, batch: int, processes: int = 1) -> None:
        self.run, self.batch, self.processes = run, batch, processes
        self.rounds = getattr(run.method, "iterations", 1)
        few, more = small_k(run)
        # where the number of clusters is the same, that of the iterations differs
        sizes = [(2 * ROWS, few, 0), (ROWS, more, int(few == more > 0)), (ROWS, few, 0)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # operations of other threads are not counted
        try:
            self.samples = [self._sample(*size) for size in dict.fromkeys(sizes)]
        finally:
            torch.set_num_threads(threads)

    def at(self, n: int, share: int, k: int) -> dict[str, float]:
        """Every value with n images in all, `share` of them this process's, and k clusters."""
        found = {name: self._extrapolated(name, share if name == "refresh_flops" else n, k) for name in TERMS}
        if not number_of_clusters(self.run):  # without a number of clusters every image is compared with all others
            found["refresh_flops"] += 2.0 * share * n * self.width
        return found

    def _extrapolated(self, name: str, n: int, k: int) -> float:
        def terms(n: int, k: int, rounds: int) -> list[float]:
            sizes = {"n": n, "k": k, "rounds": rounds}
            return [1.0, *(math.prod(sizes[each] for each in term.split()) for term in TERMS[name])]

        divided = self.processes if name in ("state", "moments", "shared", "own") else 1
        table = np.array([terms(each.n * divided, each.k, each.rounds) for each in self.samples], float)
        scale = table.max(0).clip(1)
        slopes, _ = nnls(table / scale, np.array([each.values[name] for each in self.samples]))
        return float(np.array(terms(n, k, self.rounds)) / scale @ slopes)

    def _sample(self, n: int, k: int, rounds: int) -> Sample:
        run, own = self.run, {"method.k": k} if k else {}
        if "method.iterations" in config.names(run):
            own["method.iterations"] = ROUNDS[rounds]
        run = config.override(run, own)
        with FlopCounterMode(display=False) as flops, countable():
            method = build_method(run, n)
            clustering = clustered(method, n)
        state = bytes_of(method.state_dict())
        kept = moments(run, method)
        values = {
            "refresh_flops": float(flops.get_total_flops()),
            "state": state,
            "checkpoint": state + kept,
            "model": bytes_of(exported_model(method, clustering)) if clustering else 0.0,
            **step_cost(method, self.batch, run),
        }
        self.later, self.method = Later.of(method), method
        self.width = clustering.centroids.shape[1] if clustering else 0
        part = method
        if self.processes > 1:  # only what this process keeps, where all have as many images
            group = ProcessGroup(0, self.processes)
            part = build_method(run, n * self.processes, group=group)
            values["state"] = bytes_of(part.state_dict())
        self.bytes_per_step = part.bytes_per_step(self.batch * self.processes) if self.processes > 1 else 0
        trained = {id(p): p.nbytes for p in part.parameters() if p.requires_grad}
        values["own"] = sum(trained[id(p)] for p in part.local_parameters or ())
        values |= {"shared": sum(trained.values()) - values["own"], "moments": moments(run, part)}
        k = k or (clustering.k if clustering else 0)
        return Sample(n, k, ROUNDS[rounds], values)


@contextlib.contextmanager
def countable() -> Iterator[None]:
    """Products are torch's, since NumPy's are not counted, and whitening takes the first directions there are: finding
    the main ones of wide features takes longer than all that is counted here, and is not counted itself."""
    changed: dict[tuple[Any, str], Any] = {
        (whitening, "main_directions"): lambda matrix, count: (
            matrix.diagonal()[:count].clone(),
            torch.eye(len(matrix), dtype=matrix.dtype)[:count],
        ),
        (covariance, "gram"): lambda x: x.T @ x,
        (product, "by_numpy"): lambda: False,
    }
    before = {(module, name): getattr(module, name) for module, name in changed}
    for (module, name), function in changed.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name), function in before.items():
            setattr(module, name, function)


def step_cost(method: Method, batch: int, run: TrainRun) -> dict[str, float]:
    """Operations of the loss of a batch and its gradient, and bytes that are kept for it, without the backbone's; and
    how many views of an image the backbone's average sees."""
    dim, views, averaged = method.backbone.dim, run.data.views + run.data.small_views, 0

    def average(view: Tensor) -> Tensor:
        nonlocal averaged
        averaged += 1
        return torch.rand(len(view), dim)

    networks = (method.averaged("backbone"), method.backbone)
    vars(networks[0])["forward"] = average
    vars(method.backbone)["forward"] = lambda view: torch.rand(len(view), dim, requires_grad=True)
    index = method.order(batch, torch.Generator().manual_seed(0))
    method.train()
    with FlopCounterMode(display=False) as flops:
        with saved_bytes(method) as saved:
            images = Batch(index, (torch.empty(batch, 3, 1, 1),) * views, torch.arange(batch), batch)
            loss = method.loss(images, TrainStep(0, 1, 1))["loss"]
        torch.autograd.backward(loss)
    for network in networks:
        vars(network).pop("forward", None)
    method.zero_grad()
    cost = {"step_flops": flops.get_total_flops(), "step_saved": sum(saved.values()), "averaged": averaged}
    return {name: float(value) for name, value in cost.items()}


def number_of_clusters(run: TrainRun) -> int:
    """K; 0 = the run finds it itself."""
    return int(getattr(run.method, "k", 0))


def small_k(run: TrainRun) -> tuple[int, int]:
    """Two numbers of clusters for the dry run; twice the run's own where that is small, 0 where it has none.

    Raises:
        DeepClusterError: the method refuses the run's own number.
    """
    k = number_of_clusters(run)
    if k <= EXACT_K:
        return k, k

    def build(few: int) -> None:
        build_method(config.override(run, {"method.k": few}), 1)

    build(240 + k % 240)  # divides by 2, 3, 4, 5, 6, 8, ... as k does
    found: list[int] = []
    for small in SMALL_K:
        with contextlib.suppress(DeepClusterError):
            build(small)
            found.append(small)
        if len(found) == 2:
            return min(found), max(found)
    raise DeepClusterError(f"No dry run is possible of {k:,} clusters: give a --k with small divisors.")


@dataclass(frozen=True)
class Counted:
    """What one image costs a backbone.

    Attributes:
        dim: width of its features. views: side of each view of a training step, in pixels.
        view_bytes: of all views of a training step.
        forward: operations for its features. training: for all its views, forward and backward.
        saved: bytes that its views leave for the way back. widest: of the largest output of a layer, forward.
    """

    dim: int
    views: tuple[int, ...]
    view_bytes: int
    forward: float
    training: float
    saved: float
    widest: int


def count_backbone(run: TrainRun) -> Counted:
    """Counts the run's backbone on the meta device."""
    image = np.zeros((run.image_size, run.image_size, 3), np.uint8)
    with torch.device("meta"):
        backbone = draw_backbone(run).to("meta")
    views = views_of(run, draw_backbone(run))([image, image], torch.Generator())  # two, as batch-norm asks
    widest = [0]
    hooks = [
        layer.register_forward_hook(lambda layer, given, out: widest.append(out.nbytes))
        for layer in backbone.modules()
        if not list(layer.children())
    ]
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        backbone.eval()(torch.empty(1, 3, run.image_size, run.image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    training, saved = 0.0, 0.0
    for view in views:
        with FlopCounterMode(display=False) as flops:
            with saved_bytes(backbone) as kept:
                out = backbone.train()(torch.empty(view.shape, device="meta"))
            out.sum().backward()
        training, saved = training + flops.get_total_flops() / 2, saved + sum(kept.values()) / 2
    size = sum(view[0].nbytes for view in views)
    sides = tuple(view.shape[-1] for view in views)
    return Counted(backbone.dim, sides, size, float(forward.get_total_flops()), training, saved, max(widest))


@contextlib.contextmanager
def saved_bytes(module: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps for the way back, but the module's own."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
            held.append(tensor)  # or another storage might come to lie there
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def bytes_of(state: Any) -> float:
    """Bytes of all tensors in nested dicts, sequences, dataclasses and whatever has a state dict."""
    if isinstance(state, Tensor):
        return float(state.nbytes)
    if hasattr(state, "state_dict"):
        return bytes_of(state.state_dict())
    if dataclasses.is_dataclass(state):
        return bytes_of(vars(state))
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(bytes_of, parts))


def moments(run: TrainRun, method: Method) -> float:
    """Bytes that the optimizers will keep: one number for each trained one with momentum, two with Adam."""
    backbone = backbone_optimizer(run.optimizer, method.backbone)
    return float(
        sum(
            parameter.nbytes * (2 if "betas" in group else int(group["momentum"] > 0))
            for optimizer in (backbone, *method.optimizers().values())
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
    )

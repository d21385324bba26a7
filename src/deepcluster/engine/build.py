"""From settings to parts: network, method, optimizers, views."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from deepcluster import config as settings
from deepcluster.config import TrainRun, check_sizes
from deepcluster.data.cache import Pixels
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.engine import checkpoint, deterministic
from deepcluster.engine.clock import Clock
from deepcluster.engine.deterministic import InParts
from deepcluster.engine.log import Metrics, Screen
from deepcluster.engine.loop import TrainContext
from deepcluster.engine.model import load_initial_weights
from deepcluster.engine.monitor import Monitor
from deepcluster.engine.optim import backbone_optimizer, make_optimizer
from deepcluster.engine.run_folder import same_run
from deepcluster.errors import DeepClusterError
from deepcluster.methods.base import Method
from deepcluster.methods.params import method_class, method_name
from deepcluster.models.backbone import Backbone
from deepcluster.models.sync_batchnorm import BatchSlice, convert_sync_batchnorm
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seed_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def seed_everything(seed: int) -> None:
    """Every global generator, since a third-party layer may draw from any of them."""
    torch.manual_seed(seed_of(seed))
    np.random.seed(seed_of(seed) % 2**32)  # noqa: NPY002
    random.seed(seed_of(seed))


def check(run: TrainRun) -> None:
    """Refuses settings that no run can have, by a DeepClusterError with the option's name."""
    if not run.method.trains:
        raise DeepClusterError(
            "This is a grouping by a network that is not trained: `deepcluster cluster` makes those."
        )
    for name in ("epochs", "batch_size", "processes"):
        if (value := getattr(run, name)) < 1:
            raise DeepClusterError(f"--{name.replace('_', '-')} is {value}: give at least 1.")
    if run.batch_size == 1 and hasattr(run.method, "hidden"):
        raise DeepClusterError(
            f"--batch-size is 1, but the projection head of {method_name(run.method)} compares the images of a batch"
            " (batch-norm): give at least 2."
        )
    if run.minutes is not None and not 0 < run.minutes < math.inf:
        raise DeepClusterError(
            f"--minutes is {run.minutes:g}: give the minutes that the run may take, such as 10, or --epochs instead."
        )
    check_sizes(run)
    views, least = run.data.views + run.data.small_views, run.method.least_views
    if views < least:
        raise DeepClusterError(
            f"--data.views is {views}, but {method_name(run.method)} compares views of an image: give at least {least}."
        )
    if not run.optimizer.lr >= 0:
        raise DeepClusterError(f"--optimizer.lr is {run.optimizer.lr}: give a learning rate of 0 or more.")


def draw_backbone(run: TrainRun) -> Backbone:
    """The untrained network, initialized from torch's global generator."""
    b = run.backbone
    backbone = build_backbone(b.name, sobel=b.sobel, image_size=run.image_size, **b.options)
    backbone.freeze(b.frozen)
    if b.fixed_statistics:
        backbone.fix_statistics()
    return backbone


def build_method(
    run: TrainRun, n: int, clusterer: Any = None, group: ProcessGroup = SINGLE, *, whole_batches: bool = False
) -> Method:
    """The method with its backbone, for `n` images, initialized from torch's global generator."""
    o = run.optimizer

    def own_optimizer(
        parameters: Iterable[nn.Parameter], lr: float | None = None, momentum: float | None = None
    ) -> torch.optim.Optimizer:
        # The momentum of AdamW is its first beta, which stays.
        momentum = o.momentum if momentum is None or o.name == "adamw" else momentum
        return make_optimizer(
            parameters, o.name, lr=o.lr if lr is None else lr, momentum=momentum, weight_decay=o.weight_decay
        )

    method: Method = method_class(run.method)(
        draw_backbone(run),
        run.method,
        n=n,
        make_optimizer=own_optimizer,
        clusterer=clusterer,
        group=group,
        whole_batches=whole_batches,
    )
    return method


@dataclass
class Parts:
    """What is trained."""

    method: Method
    optimizer: torch.optim.Optimizer  # of its backbone
    batch_slice: BatchSlice  # tells its layers which images of a batch are this process's
    in_parts: InParts | None = None  # computes the same bits with any number of processes


def build_parts(
    run: TrainRun, n: int, fabric: Fabric, group: ProcessGroup, clusterer: Any = None, *, initial_weights: bool = True
) -> Parts:
    """The parts of a run of `n` images at its beginning, the same on all processes. Seeds every global generator.
    Initial weights are not read where a checkpoint makes them unnecessary. DeepClusterError for settings that the
    network or the method refuses, and for weights of another network."""
    seed_everything(run.seed)
    whole_batches = run.deterministic and fabric.device.type == "cpu"
    if whole_batches:
        deterministic.check(run, group)
    method, batch_slice = build_method(run, n, clusterer, group, whole_batches=whole_batches), BatchSlice()
    with group.collective_section():
        if run.backbone.weights and initial_weights:
            load_initial_weights(run.backbone.weights, (method.backbone, method.feature_network))
    in_parts = InParts(method, group, fabric.autocast) if whole_batches else None
    if in_parts is None:
        native = fabric.device.type == "cuda" and not run.deterministic
        convert_sync_batchnorm(method, group, batch_slice, norm=run.sync_batchnorm, native=native)
    method.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = backbone_optimizer(run.optimizer, method.backbone)
    for weight in method.backbone.state_dict().values():
        group.broadcast_(weight)  # processors of different kinds may draw different last digits
    return Parts(method, optimizer, batch_slice, in_parts)


def views_of(run: TrainRun, backbone: Backbone) -> RandomViews:
    """The random views that the run trains on: `--data.views` of one size, then `--data.small-views` smaller ones."""
    d = run.data
    size = d.view_size or run.image_size
    own = ("size", "count", "mean", "std")
    same = {each.name: getattr(d, each.name) for each in fields(ViewGroup) if each.name not in own}
    large = ViewGroup(size=size, count=d.views, mean=backbone.mean, std=backbone.std, **same)
    if size != run.image_size:
        _check_view_size(backbone, size, "--data.view-size")
    if d.clustered_size:
        _check_view_size(backbone, d.clustered_size, "--data.clustered-size")
    if not d.small_views:
        return RandomViews(large)
    small_size = d.small_view_size or max(1, round(size * 96 / 224))
    _check_view_size(backbone, small_size, "--data.small-view-size")
    return RandomViews(large, replace(large, size=small_size, count=d.small_views, crop_scale=d.small_crop_scale))


def _check_view_size(backbone: Backbone, size: int, option: str) -> None:
    """Raises a DeepClusterError unless the network takes images of this size."""
    if why := backbone.refusal(size):
        raise DeepClusterError(f"The network cannot take views of {size} pixels ({why}): give another {option}.")


class Place(NamedTuple):
    """Where a run trains."""

    pixels: Pixels
    fabric: Fabric
    group: ProcessGroup
    folder: Path


def thrown_away(run: TrainRun, clusterer: Any, place: Place, n: int) -> TrainContext:
    """A new method of n images and all that trains it, to be timed; nothing is written."""
    parts = build_parts(run, n, place.fabric, place.group, clusterer)
    monitor, clock = Monitor(Metrics(place.folder, 0, write=False), None), Clock(parts.method, 1, 1)
    return make_context(run, parts, place, Screen(quiet=True), monitor, clock)


def make_context(
    run: TrainRun,
    parts: Parts,
    place: Place,
    screen: Screen,
    monitor: Monitor,
    clock: Clock,
    stopped: Callable[[], bool] = lambda: False,
) -> TrainContext:
    """What the training loop needs; compiles the backbone where the run says so."""
    if run.compile:
        parts.method.backbone.compile()
    views = views_of(run, parts.method.backbone)
    watching: dict[str, Any] = {"screen": screen, "monitor": monitor, "clock": clock, "stopped": stopped}
    return TrainContext(run=run, views=views, **watching, **vars(parts), **place._asdict())


class _NotNeeded:
    """In place of a clusterer that was passed in Python, where a run is only read."""

    def fit_predict(self, x: Any, y: None = None) -> Any:
        raise DeepClusterError("A run that is only read clusters nothing.")


def at_checkpoint(config: dict[str, Any], file: Path) -> Backbone:
    """The network whose features a run clusters, as a checkpoint of it holds it, in evaluation mode; DeepClusterError
    for a checkpoint of another run."""
    run = settings.from_dict(config["settings"])
    method = build_method(run, config["images"], _NotNeeded() if "clusterer" in config else None)
    saved = checkpoint.load(file)
    same_run(config, run, saved, file)
    checkpoint.restore(saved, method, file)
    return method.feature_network.eval()


def untrained(config: dict[str, Any]) -> Backbone:
    """The backbone of a run as it was before its first step: at random, or with its initial weights."""
    run = settings.from_dict(config["settings"])
    seed_everything(run.seed)
    backbone = draw_backbone(run)
    if run.backbone.weights:
        load_initial_weights(run.backbone.weights, [backbone])
    return backbone.eval()

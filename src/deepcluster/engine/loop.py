"""The training loop: extract features, cluster, train, repeat.

Every random draw comes from a key of (seed, purpose, step): a stopped run goes on with the batches it would have had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.config import TrainRun
from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import RandomViews
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import checkpoint
from deepcluster.engine.clock import Clock, duration
from deepcluster.engine.deterministic import InParts, ViewsByPart, one_core_each
from deepcluster.engine.log import Screen
from deepcluster.engine.occupy import release_earlier
from deepcluster.engine.optim import factor, set_rate, step_all
from deepcluster.engine.parallel import Loss, parallel_loss
from deepcluster.engine.run_folder import of_run
from deepcluster.errors import Interrupted
from deepcluster.features.extract import extract
from deepcluster.io import keep_copy
from deepcluster.methods.base import Features, Method
from deepcluster.models.sync_batchnorm import BatchSlice, average_running_stats
from deepcluster.random import seeded
from deepcluster.types import Batch, Clustering, TrainStep

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from deepcluster.engine.monitor import Monitor

ORDER, VIEWS, REFRESH, EXTRACT = 1, 2, 3, 4  # purposes of random draws


@dataclass
class TrainState:
    """How far a run has come; saved with every checkpoint."""

    steps_per_epoch: int
    batch_size: int
    step: int = 0
    refreshed: int = -1  # the step before which the clusters were last computed
    totals: dict[str, float] = field(default_factory=dict)  # sums over the epoch that is under way
    latest: dict[str, Any] = field(default_factory=dict)  # statistics of the last clustering

    def add(self, name: str, amount: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + amount


@dataclass(frozen=True)
class TrainContext:
    """Everything that stays the same from the first step to the last; `batch_slice` tells layers which images of each
    batch are this process's, `in_parts` computes steps alike on any number of processes, `monitor` evaluates the run,
    `clock` knows how long the rest takes, and `stopped` tells whether Ctrl-C or SIGTERM has come."""

    run: TrainRun
    fabric: Fabric
    group: ProcessGroup
    batch_slice: BatchSlice
    in_parts: InParts | None
    method: Method
    optimizer: torch.optim.Optimizer
    pixels: Pixels
    views: RandomViews
    folder: Path
    screen: Screen
    monitor: Monitor
    clock: Clock
    stopped: Callable[[], bool]

    @cached_property
    def of_run(self) -> dict[str, str]:
        """What checkpoints say of the run."""
        return of_run(self.folder, self.run)


def fit(c: TrainContext, state: TrainState) -> None:
    """Trains until the run's epochs are done, from wherever `state` stands.

    Raises:
        Interrupted: the run was told to stop, and a checkpoint was saved.
        DeepClusterError: the loss is no longer a number.
    """
    run, method, group, per_epoch = c.run, c.method, c.group, state.steps_per_epoch
    total = run.epochs * per_epoch
    if state.step % per_epoch == 0 and "images" in state.totals:  # the run was stopped while it evaluated that epoch
        end_epoch(c, state)
    else:
        c.monitor.keep_best(c, state)  # or was killed before it had kept it
    saved_at = time.monotonic()
    for epoch in range(state.step // per_epoch, run.epochs):
        if c.monitor.should_stop(run):
            break
        for start, end in segments(method, epoch, per_epoch):
            if end <= state.step:
                continue
            if state.step == start != state.refreshed and method.due(start, per_epoch):
                refresh(c, state)
            order = method.order((end - start) * state.batch_size, seeded(run.seed, ORDER, start))
            loader = Loader(
                c.pixels,
                order,
                batch_size=state.batch_size,
                transform=c.views if c.in_parts is None else ViewsByPart(c.views),
                key=(run.seed, VIEWS, start),
                start=state.step - start,
                device=c.fabric.device,
                empty=True,
                group=group,
            )
            compute_loss, summed = parallel_loss(method, group, run.deterministic)
            loss_sum = torch.zeros((), dtype=torch.float64, device=c.fabric.device)
            started = time.perf_counter()
            method.train()
            with c.screen.bar(f"epoch {epoch + 1}/{run.epochs}", (end - state.step) * state.batch_size) as advance:
                for batch in loader:
                    if group.any(len(batch.index) > 0):  # else none of its images can be decoded
                        loss = train_step(c, compute_loss, batch, TrainStep(state.step, per_epoch, total), summed)
                        loss_sum += loss * batch.whole
                        state.add("images", batch.whole)
                        advance(batch.whole)
                    state.step += 1
                    c.clock.lap("step")
                    advance.describe(f"epoch {epoch + 1}/{run.epochs}, {duration(c.clock.left(state.step))} left")
                    if word := c.clock.first_word(state.step):
                        c.screen.print(word)
                    late, stopped = group.any_of(time.monotonic() - saved_at > 60 * run.save_minutes, c.stopped())
                    if (late or stopped) and state.step < end:
                        state.add("loss", method.batch_group.sum_(loss_sum).item())
                        loss_sum.zero_()
                        state.add("seconds_train", time.perf_counter() - started)
                        started = time.perf_counter()
                        save(c, state)
                        saved_at = time.monotonic()
                        if stopped:
                            raise Interrupted
            state.add("loss", method.batch_group.sum_(loss_sum).item())
            state.add("seconds_train", time.perf_counter() - started)
            if state.step % per_epoch == 0:
                end_epoch(c, state)
                saved_at = time.monotonic()
            if group.any(c.stopped()) and state.step < total:
                save(c, state)
                raise Interrupted


def train_step(c: TrainContext, compute_loss: Loss, batch: Batch, step: TrainStep, summed: bool) -> Tensor:
    """One step of all optimizers on a batch; returns its loss. `parallel_loss` gives `compute_loss` and `summed`."""
    if c.in_parts is not None:
        with c.in_parts.whole_batch(batch) as batch:
            return _step(c, compute_loss, batch, step, summed=True)
    return _step(c, compute_loss, batch, step, summed)


def _step(c: TrainContext, compute_loss: Loss, batch: Batch, step: TrainStep, summed: bool) -> Tensor:
    method, o = c.method, c.run.optimizer
    c.batch_slice.position, c.batch_slice.total = batch.position, batch.whole
    optimizers = [c.optimizer, *method.optimizers().values()]
    set_rate(optimizers, factor(o, step.step, steps=step.total, steps_per_epoch=step.steps_per_epoch))
    with c.fabric.autocast():
        loss = compute_loss(batch, step)["loss"]
    c.fabric.backward(loss)
    scaler = getattr(c.fabric.strategy.precision, "scaler", None)
    step_all(optimizers, method.parameters(), o.clip, scaler, c.group, method.local_parameters, summed)
    method.after_step(batch)
    return loss.detach()


def segments(method: Method, epoch: int, per_epoch: int) -> Iterator[tuple[int, int]]:
    """First and past-the-last step of each part of an epoch, which a clustering between two of them divides."""
    start = epoch * per_epoch
    for step in range(start + 1, (epoch + 1) * per_epoch + 1):
        if step % per_epoch == 0 or method.due(step, per_epoch):
            yield start, step
            start = step


def refresh(c: TrainContext, state: TrainState, *, last: bool = False) -> Clustering | None:
    """Extracts the features of all images and clusters them; the method takes the clusters as targets. The last
    clustering, which the saved model assigns by, always uses plain views at the image size."""
    started, seconds = time.perf_counter(), 0.0
    before = c.method.last_assignment.cpu().numpy().copy()

    def extract_features() -> Features:
        nonlocal seconds
        features = extract_all(c, -1 if last else state.step)
        c.monitor.after_features(c, state, features)
        seconds = time.perf_counter() - started
        return features

    key = (c.run.seed, REFRESH, state.step)
    try:
        with one_core_each() if c.in_parts is not None else nullcontext():
            clustering = (c.method.finish if last else c.method.refresh)(extract_features, key)
    except Interrupted:  # while features were extracted: nothing has changed yet
        save(c, state)
        raise
    state.refreshed = state.step
    state.add("seconds_features", seconds)
    state.add("seconds_cluster", time.perf_counter() - started - seconds)
    if clustering is not None:
        c.monitor.after_clustering(c, state, before, clustering)
    c.clock.lap("clustering")
    return clustering


def extract_all(c: TrainContext, step: int, only: np.ndarray | None = None) -> Features:
    """This process's share of the features of all images, or of positions `only` (M,); at step -1 as users get them."""
    average_running_stats(c.method, c.group)
    size = c.run.data.clustered_size if step >= 0 else 0
    one_view = replace(c.views.groups[0], count=1, size=size or c.views.groups[0].size)
    with c.screen.bar("features", len(c.pixels.good if only is None else only)) as advance:

        def check(images: int) -> None:
            advance(images * c.group.size)
            if c.group.any(c.stopped()):
                raise Interrupted

        index, features = extract(
            c.method.feature_network,
            c.pixels,
            device=c.fabric.device,
            only=only,
            views=RandomViews(one_view) if c.run.data.describe == "augmented" and step >= 0 else None,
            size=size,
            key=(c.run.seed, EXTRACT, step),
            autocast=c.fabric.autocast,
            file=features_file(c.folder, c.group),
            check=check,
            group=c.group,
        )
    return Features(index, features)


def features_file(folder: Path, group: ProcessGroup) -> Path:
    """Where this process keeps features that are too many for memory, until the clusters are found."""
    return folder / (".features.npy" if group.is_single else f".features-{group.rank}.npy")


def end_epoch(c: TrainContext, state: TrainState) -> None:
    """Evaluates the epoch that has just ended (again on resume, if interrupted), and saves or keeps its checkpoints."""
    epoch = state.step // state.steps_per_epoch - 1
    try:
        c.monitor.after_epoch(c, state, epoch)
    except Interrupted:
        save(c, state)
        raise
    save(c, state)
    kept = c.folder / "checkpoints" / f"epoch-{epoch:04d}.ckpt"
    with c.group.collective_section():
        if c.group.is_first and c.run.keep_every and (epoch + 1) % c.run.keep_every == 0:
            keep_copy(kept.with_name("last.ckpt"), kept)
    c.monitor.keep_best(c, state)
    c.monitor.report_stall(c, epoch)
    c.clock.lap("epoch")


def save(c: TrainContext, state: TrainState) -> None:
    """`checkpoints/last.ckpt`, written atomically; with the first one, the run that this one replaces is gone."""
    average_running_stats(c.method, c.group)
    with c.group.collective_section():
        about = c.of_run
    checkpoint.save(c.folder / "checkpoints" / "last.ckpt", c.method, c.optimizer, state, c.fabric, about)
    if c.group.is_first:
        release_earlier(c.folder)

"""The walk, on one screen: describe, group, teach, again.

Every random draw comes from a key of (seed, purpose, step), so a run that was stopped anywhere goes on with the
batches it would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from deepcluster.clustering.metrics import nmi, purity, size_stats
from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import RandomViews
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import checkpoint
from deepcluster.engine.health import check_clusters, check_loss
from deepcluster.engine.log import Metrics, Screen, line
from deepcluster.engine.optim import set_rate, step_all
from deepcluster.engine.watch import Watch, best_of, knn_score
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.features.extract import extract
from deepcluster.methods.method import Features, Method
from deepcluster.models.sync_batchnorm import Part, average_running_stats
from deepcluster.random import seeded
from deepcluster.types import Clustering

ORDER, VIEWS, REFRESH, DESCRIBE = 1, 2, 3, 4  # purposes of random draws
STEP_RATE = Callable[[int, int, int], float]


@dataclass
class TrainState:
    """How far a run has come; saved with every checkpoint."""

    steps_per_epoch: int
    batch_size: int
    step: int = 0
    refreshed: int = -1
    """The step before which the clusters were last computed."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums over the epoch that is under way."""
    latest: dict[str, Any] = field(default_factory=dict)
    """What the last clustering looked like."""

    def saved(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def loaded(cls, values: dict[str, Any]) -> TrainState:
        return cls(**{item.name: values[item.name] for item in fields(cls)})

    def add(self, name: str, amount: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + amount


@dataclass(frozen=True)
class TrainContext:
    """Everything that stays the same from the first step to the last.

    Attributes:
        group: the processes that walk together.
        part: told which images of each batch are this process's.
        rate: (step, steps, steps_per_epoch) -> factor of the learning rate.
        clip: largest gradient norm; 0 = any.
        on_refresh: told of each clustering together with the step.
        watch: the downstream measure that is followed; None = none is.
        on_best: called after each epoch that has the highest watched value so far, once last.ckpt holds it.
        stopped: asked after each batch; true once Ctrl-C or SIGTERM came.
    """

    fabric: Fabric
    group: ProcessGroup
    part: Part
    method: Method
    optimizer: torch.optim.Optimizer
    pixels: Pixels
    views: RandomViews
    epochs: int
    seed: int
    rate: STEP_RATE
    clip: float
    folder: Path
    screen: Screen
    metrics: Metrics
    describe_views: bool
    keep_every: int
    save_seconds: float
    on_refresh: Callable[[Clustering, int], None]
    watch: Watch | None
    on_best: Callable[[], None]
    stopped: Callable[[], bool]


def walk(w: TrainContext, progress: TrainState) -> None:
    """Trains until `epochs` are done, from wherever `progress` stands.

    Raises:
        Interrupted: after a checkpoint was saved, when the run was told to stop.
        DeepClusterError: the loss is no longer a number.
    """
    fabric, method, per_epoch = w.fabric, w.method, progress.steps_per_epoch
    steps = w.epochs * per_epoch
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if progress.step % per_epoch == 0 and "images" in progress.totals:
        close_epoch(w, progress)  # the run was stopped while it looked back on that epoch
    elif _is_best(w, progress):
        w.on_best()  # or was killed before it had kept it
    saved_at = time.monotonic()
    while progress.step < steps and not (w.watch and w.watch.over(w.metrics.rows)):
        if method.due(progress.step, per_epoch) and progress.refreshed != progress.step:
            try:
                refresh(w, progress)
            except Interrupted:
                save(w, progress)  # nothing has changed yet: the clusters are computed when the run goes on
                raise
        start, end = segment(method, progress.step, per_epoch)
        order = method.order((end - start) * progress.batch_size, seeded(w.seed, ORDER, start))
        loader = Loader(
            w.pixels,
            order,
            batch_size=progress.batch_size,
            transform=w.views,
            key=(w.seed, VIEWS, start),
            start=progress.step - start,
            device=fabric.device,
            empty=True,
            group=w.group,
        )
        epoch = progress.step // per_epoch
        images = (end - progress.step) * progress.batch_size
        began, loss_sum = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=fabric.device)
        method.train()
        with w.screen.bar(f"epoch {epoch + 1}/{w.epochs}", images) as advance:
            for batch in loader:
                w.part.position, w.part.whole = batch.position, batch.whole
                if not w.group.any(len(batch.index) > 0):  # no image of it can be decoded
                    progress.step += 1
                    continue
                optimizers = {"backbone": w.optimizer, **method.optimizers()}
                set_rate(optimizers.values(), w.rate(progress.step, steps, per_epoch))
                with fabric.autocast():
                    losses = method.loss(batch)
                fabric.backward(losses["loss"])
                step_all(optimizers.values(), method.parameters(), w.clip, scaler, w.group, method.own)
                method.after_step(batch)
                loss_sum += losses["loss"].detach() * batch.whole
                progress.step += 1
                progress.add("images", batch.whole)
                advance(batch.whole)
                late, stopped = w.group.any_of(time.monotonic() - saved_at > w.save_seconds, w.stopped())
                if (late or stopped) and progress.step < end:
                    progress.add("loss", w.group.sum_(loss_sum).item())
                    loss_sum.zero_()
                    began = _took(progress, "seconds_train", began)
                    save(w, progress)
                    saved_at = time.monotonic()
                    if stopped:
                        raise Interrupted
        progress.add("loss", w.group.sum_(loss_sum).item())
        _took(progress, "seconds_train", began)
        if progress.step % per_epoch == 0:
            close_epoch(w, progress)
            saved_at = time.monotonic()
        if w.group.any(w.stopped()) and progress.step < steps:
            save(w, progress)
            raise Interrupted


def close_epoch(w: TrainContext, progress: TrainState) -> None:
    """Looks back on the epoch that has just ended, notes it, and keeps what is to be kept.

    Raises:
        Interrupted: while it looked; the epoch is noted when the run goes on.
    """
    epoch = progress.step // progress.steps_per_epoch - 1
    try:
        watched = look(w, progress, epoch)
    except Interrupted:
        save(w, progress)
        raise
    finish_epoch(w, progress, epoch, watched)
    save(w, progress)
    last = w.folder / "checkpoints" / "last.ckpt"
    with w.group.collective_section():
        if w.group.is_first and w.keep_every and (epoch + 1) % w.keep_every == 0:
            checkpoint.keep_copy(last, last.with_name(f"epoch-{epoch:04d}.ckpt"))
        if _is_best(w, progress):
            w.on_best()
    if w.watch and (said := w.watch.sentence(w.metrics.rows)):
        w.screen.say(said)


def look(w: TrainContext, progress: TrainState, epoch: int) -> dict[str, Any]:
    """The downstream measure after `epoch` and what it took, for metrics.jsonl; empty when it is not due."""
    if w.watch is None or not w.watch.due(epoch):
        return {}
    began = time.perf_counter()
    if w.watch.score == "nmi":
        value = progress.latest.get("nmi_labels")
    else:
        with checkpoint.undisturbed():  # a layer of somebody else's may draw
            described = extract_all(w, -1, w.watch.images)
        index, features = (w.group.gather_array(part) for part in (described.index, described.features))
        value = knn_score(features, w.watch.labels[index])
    return {"watched": value, "seconds_watched": time.perf_counter() - began}


def _is_best(w: TrainContext, progress: TrainState) -> bool:
    """Whether the run stands at the end of the epoch with the highest watched value."""
    best = best_of(w.metrics.rows) if w.watch else None
    return best is not None and progress.step == (best.epoch + 1) * progress.steps_per_epoch


def segment(method: Method, step: int, per_epoch: int) -> tuple[int, int]:
    """First and past-the-last step of the stretch around `step` that one order of images serves: up to the
    next clustering or the end of the epoch."""
    start = step
    while start % per_epoch and not method.due(start, per_epoch):
        start -= 1
    end = step + 1
    while end % per_epoch and not method.due(end, per_epoch):
        end += 1
    return start, end


def refresh(w: TrainContext, progress: TrainState, *, last: bool = False) -> Clustering | None:
    """Describes all images, groups them anew, and notes how the groups changed. The last clustering, which the
    saved model assigns by, always sees plain views."""
    method, began = w.method, time.perf_counter()
    before = method.last_assignment.cpu().numpy().copy()
    seconds = {"features": 0.0}

    def describe() -> Features:
        described = extract_all(w, -1 if last else progress.step)
        seconds["features"] = time.perf_counter() - began
        return described

    clustering = method.refresh(describe, (w.seed, REFRESH, progress.step))
    progress.refreshed = progress.step
    progress.add("seconds_features", seconds["features"])
    progress.add("seconds_cluster", time.perf_counter() - began - seconds["features"])
    if clustering is None:
        return None
    now, labels = clustering.assignment, w.pixels.source.labels
    progress.latest = {"k": clustering.k, **size_stats(now, clustering.k)}
    if (before >= 0).any():
        progress.latest["nmi_previous"] = nmi(before, now)
        progress.latest["reassigned"] = 1 - purity(now, before)
    if labels is not None and (labels >= 0).any():
        progress.latest["nmi_labels"] = nmi(labels, now)
        progress.latest["purity"] = purity(now, labels)
    if clustering.k > 1 or method.turns == 1:  # turns alone are something to tell apart
        check_clusters(clustering.sizes, w.screen.warn)
    with w.group.collective_section():
        w.on_refresh(clustering, progress.step)
    return clustering


def extract_all(w: TrainContext, step: int, only: np.ndarray | None = None) -> Features:
    """The feature_network's features of every decodable image, or of (M,) positions `only`, as far as they are this
    process's share; at step -1, of plain views."""
    average_running_stats(w.method, w.group)
    images = len(w.pixels.good if only is None else only)
    with w.screen.bar("features", images) as advance:

        def check(described: int) -> None:
            advance(described * w.group.size)
            if w.group.any(w.stopped()):
                raise Interrupted

        index, features = extract(
            w.method.feature_network,
            w.pixels,
            size=w.method.backbone.image_size,
            mean=w.method.backbone.mean,
            std=w.method.backbone.std,
            device=w.fabric.device,
            only=only,
            views=RandomViews(replace(w.views.groups[0], count=1)) if w.describe_views and step >= 0 else None,
            key=(w.seed, DESCRIBE, step),
            autocast=w.fabric.autocast,
            file=features_file(w.folder, w.group),
            check=check,
            group=w.group,
        )
    return Features(index, features)


def features_file(folder: Path, group: ProcessGroup) -> Path:
    """Where this process keeps features that are too many for memory, until the clusters are found."""
    return folder / (".features.npy" if group.is_single else f".features-{group.rank}.npy")


def finish_epoch(w: TrainContext, progress: TrainState, epoch: int, watched: dict[str, Any]) -> None:
    """One line on the screen and in metrics.jsonl."""
    totals, latest = progress.totals, progress.latest
    if not totals.get("images"):
        raise DeepClusterError(
            f"None of the images of epoch {epoch + 1} could be decoded: make sure that they can still be read, then"
            f" `deepcluster train --resume {w.folder}`."
        )
    loss, seconds = totals["loss"] / totals["images"], totals["seconds_train"]
    if not math.isfinite(loss):
        raise DeepClusterError(
            f"The loss is no longer a number in epoch {epoch + 1}: go on from an earlier checkpoint of {w.folder} with"
            " a lower --optimizer.lr, or start with --optimizer.clip 1."
        )
    row = {
        "epoch": epoch,
        "loss": loss,
        "nmi_previous": latest.get("nmi_previous"),
        "reassigned": latest.get("reassigned"),
        **{name: latest.get(name) for name in ("clusters_used", "size_min", "size_max", "size_entropy")},
        "lr": w.optimizer.param_groups[0]["lr"],
        "images_per_second": totals["images"] / max(seconds, 1e-9),
        "seconds_train": seconds,
        "seconds_features": totals.get("seconds_features", 0.0),
        "seconds_cluster": totals.get("seconds_cluster", 0.0),
    }
    row |= {name: latest[name] for name in ("nmi_labels", "purity") if name in latest}
    row |= w.method.measured()
    with w.group.collective_section():
        w.metrics.add(row | watched)
    w.screen.say(line(row | watched, w.epochs))
    check_loss([entry["loss"] for entry in w.metrics.rows], latest.get("k", 1) * w.method.turns, w.screen.warn)
    progress.totals = {}
    for name in ("nmi_previous", "reassigned"):  # an epoch without a clustering has none
        progress.latest.pop(name, None)


def save(w: TrainContext, progress: TrainState) -> None:
    """`checkpoints/last.ckpt`, whole or not at all."""
    average_running_stats(w.method, w.group)
    checkpoint.save(
        w.folder / "checkpoints" / "last.ckpt",
        w.method,
        w.optimizer,
        progress.saved(),
        w.fabric.strategy.precision.state_dict(),
    )


def _took(progress: TrainState, name: str, began: float) -> float:
    now = time.perf_counter()
    progress.add(name, now - began)
    return now


def steps_per_epoch(images: int, batch_size: int) -> tuple[int, int]:
    """Optimizer steps that show about `images` images, and the batch size: never more than there are images."""
    batch = min(batch_size, images)
    return max(1, round(images / batch)), batch

"""From settings to a run folder: the one place that opens a `TrainRun`.

Builds every part from plain values, restores what a checkpoint holds, walks, and leaves a folder that can
assign new images.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from deepcluster import settings
from deepcluster.clustering.pic import PIC
from deepcluster.data.augment import Views
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.sources import ImageSource, open_images
from deepcluster.engine import checkpoint, runs
from deepcluster.engine import folder as run_folder
from deepcluster.engine.log import Metrics, Screen
from deepcluster.engine.loop import Progress, Walk, refresh, steps_per_epoch, walk
from deepcluster.engine.model import MODEL, Model, begin_with
from deepcluster.engine.optim import make_optimizer
from deepcluster.engine.schedules import factor
from deepcluster.engine.signals import stop_signals
from deepcluster.engine.watch import best_of, make_watch
from deepcluster.files import write_json
from deepcluster.methods.deepcluster import Clusterer, DeepCluster
from deepcluster.methods.method import Method
from deepcluster.methods.odc import ODC
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone
from deepcluster.records import Clustering, DeepClusterError, seed_of
from deepcluster.settings import DeepClusterParams, ODCParams, TrainRun


def train(
    run: TrainRun,
    data: Any,
    out: Path | str,
    *,
    preset: str = "custom",
    resume: bool = False,
    overwrite: bool = False,
    screen: Screen | None = None,
    clusterer: Clusterer | None = None,
) -> runs.Run:
    """Trains and returns the finished run.

    Args:
        data: what `open_images` takes.
        preset: name of the preset that `run` started from, for run.json.
        out: the run folder; must not hold a run yet, unless `resume` or `overwrite`.
        resume: go on from `out`'s last checkpoint; `run` must be its own.
        clusterer: takes the place of k-means; sets `method.algorithm` to "custom" and `method.k` to 0.

    Raises:
        DeepClusterError: bad data, settings, or folder.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    screen, folder = screen or Screen(), Path(out)
    fabric = _fabric(run)
    run = with_clusterer(run, clusterer)
    pick_clusterer(run, clusterer)
    source = open_images(data)
    run_folder.prepare_folder(folder, resume=resume, overwrite=overwrite)
    try:
        return _train(run, source, folder, fabric, screen, preset=preset, resume=resume, clusterer=clusterer)
    except DeepClusterError:
        if not resume and not (folder / "checkpoints" / "last.ckpt").exists():
            shutil.rmtree(folder)  # a mistake leaves nothing that would stand in the way of the next try
        raise


def _train(
    run: TrainRun,
    source: ImageSource,
    folder: Path,
    fabric: Fabric,
    screen: Screen,
    *,
    preset: str,
    resume: bool,
    clusterer: Clusterer | None,
) -> runs.Run:
    watch = make_watch(run.watch, source, every=run.watch_every, patience=run.patience, stop=run.stop, seed=run.seed)
    pixels = _pixels(run, source, screen)
    if len(pixels.good) < 2:
        raise DeepClusterError(
            f"{source.name} holds {len(pixels.good)} image(s) that can be decoded: training needs at least 2."
        )
    if not resume:
        write_json(folder / "run.json", run_folder.about(run, preset, source, pixels, clusterer))
    else:
        run_folder.same_images(runs.read_config(folder), source, folder)
        run_folder.note_unfinished(folder)
    run_folder.write_bad_images(folder, pixels)
    run_folder.tell_bad(pixels, folder, screen)

    seed_everything(run.seed)
    method = build_method(run, len(source), clusterer)
    last = folder / "checkpoints" / "last.ckpt"
    if run.backbone.weights and not (resume and last.exists()):
        begin_with(run.backbone.weights, (method.backbone, method.describer))
    method.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(
        method.backbone.parameters(),
        run.optimizer.name,
        lr=run.optimizer.lr,
        momentum=run.optimizer.momentum,
        weight_decay=run.optimizer.weight_decay,
    )
    per_epoch, batch_size = steps_per_epoch(len(pixels.good), run.batch_size)
    progress = Progress(per_epoch, batch_size)
    if resume and last.exists():
        progress = restore(last, method, optimizer, fabric)
        screen.say(f"resuming {folder} at epoch {progress.step // progress.steps_per_epoch + 1}, step {progress.step}")
    elif resume:
        screen.say(f"{folder} has no checkpoint yet: starting from its beginning")
    views = views_of(run, method.backbone)
    metrics = Metrics(folder, progress.step // progress.steps_per_epoch)
    with stop_signals() as stopped:
        w = Walk(
            fabric=fabric,
            method=method,
            optimizer=optimizer,
            pixels=pixels,
            views=views,
            epochs=run.epochs,
            seed=run.seed,
            rate=_rate(run),
            clip=run.optimizer.clip,
            folder=folder,
            screen=screen,
            metrics=metrics,
            describe_views=run.data.describe == "augmented",
            keep_every=run.keep_every,
            save_seconds=60 * run.save_minutes,
            on_refresh=_snapshots(folder, method, metrics, progress.steps_per_epoch),
            watch=watch,
            on_best=lambda: _keep_best(folder, method),
            stopped=stopped,
        )
        if run.compile:
            method.backbone.compile()
        try:
            walk(w, progress)
            clustering = refresh(w, progress, last=True)
        finally:
            w.metrics.close()
            (folder / ".features.npy").unlink(missing_ok=True)
    if clustering is not None:
        run_folder.write_snapshot(folder, snapshot_model(method, clustering), clustering)
    run_folder.note_finished(folder)
    return runs.load_run(folder, device=run.device)


def seed_everything(seed: int) -> None:
    """Every global generator, since a layer of somebody else's may draw from any of them."""
    torch.manual_seed(seed_of(seed))
    np.random.seed(seed_of(seed) % 2**32)  # noqa: NPY002
    random.seed(seed_of(seed))


def draw_backbone(run: TrainRun) -> Backbone:
    """The untrained network, drawn from torch's global generator."""
    b = run.backbone
    return build_backbone(b.name, sobel=b.sobel, image_size=run.image_size, **b.options)


def with_clusterer(run: TrainRun, clusterer: Clusterer | None) -> TrainRun:
    """The settings of a run whose clusterer is handed over, if one is."""
    if clusterer is None or not isinstance(run.method, DeepClusterParams):
        return run
    return settings.override(run, {"method.algorithm": "custom", "method.k": 0})


def pick_clusterer(run: TrainRun, given: Clusterer | None = None) -> Clusterer | None:
    """What groups the features in place of k-means, if anything does.

    Raises:
        DeepClusterError: a handed-over clusterer is missing.
    """
    p = run.method
    if not isinstance(p, DeepClusterParams):
        if given is not None:
            raise DeepClusterError("ODC clusters online, image by image: a clusterer cannot take its place.")
        return None
    if p.algorithm == "kmeans":
        return None
    if p.algorithm == "pic":
        return PIC(p.neighbors, p.sigma, p.alpha, version=p.pic_version)
    if given is None:
        raise DeepClusterError(
            "This run's clusters come from a clusterer handed over in Python: go on with it by"
            " deepcluster.train(..., resume=True, clusterer=...)."
        )
    return given


def build_method(run: TrainRun, n: int, clusterer: Clusterer | None = None) -> Method:
    """The method with its backbone, drawn from torch's global generator."""
    backbone = draw_backbone(run)
    if isinstance(run.method, ODCParams):
        return _odc(run, run.method, backbone, n)
    return _deepcluster(run, run.method, backbone, n, pick_clusterer(run, clusterer))


def _deepcluster(
    run: TrainRun, p: DeepClusterParams, backbone: Backbone, n: int, clusterer: Clusterer | None
) -> DeepCluster:
    return DeepCluster(
        backbone,
        n=n,
        k=p.k,
        head_optimizer=_head_optimizer(run, p.head_lr),
        reassign=p.reassign,
        whiten=p.whiten,
        iterations=p.iterations,
        init=p.init,
        spherical=p.spherical,
        backend=p.backend,
        balance=p.balance,
        head=p.head,
        temperature=p.temperature,
        clusterings=p.clusterings,
        averaging=p.averaging,
        clusterer=clusterer,
    )


def _odc(run: TrainRun, p: ODCParams, backbone: Backbone, n: int) -> ODC:
    o = run.optimizer
    return ODC(
        backbone,
        n=n,
        k=p.k,
        neck_optimizer=functools.partial(
            make_optimizer, name=o.name, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay
        ),
        head_optimizer=_head_optimizer(run, p.head_lr),
        feature_dim=p.feature_dim,
        hidden=p.hidden,
        dropout=p.dropout,
        momentum=p.momentum,
        centroid_every=p.centroid_every,
        min_size=p.min_size,
        handle_every=p.handle_every,
        reweight_power=p.reweight_power,
        nearest=p.nearest,
        memory=p.memory,
        start=p.start,
        iterations=p.iterations,
        replace=p.replace,
    )


def _head_optimizer(run: TrainRun, lr: float | None) -> Callable[..., torch.optim.Optimizer]:
    o = run.optimizer
    return functools.partial(
        make_optimizer,
        name=o.name,
        lr=o.lr if lr is None else lr,
        momentum=0.0 if o.name == "sgd" else o.momentum,  # the papers' classifiers have none
        weight_decay=o.weight_decay,
    )


def restore(file: Path, method: Method, optimizer: torch.optim.Optimizer, fabric: Fabric) -> Progress:
    """Puts everything a checkpoint holds back in its place."""
    state = checkpoint.load(file)
    checkpoint.restore(state, method, file)
    for name, each in {"backbone": optimizer, **method.optimizers()}.items():
        each.load_state_dict(state["optimizers"][name])
    fabric.strategy.precision.load_state_dict(state["precision"])
    checkpoint.set_random_state(state["random"])
    return Progress.loaded(state["progress"])


def snapshot_model(method: Method, clustering: Clustering) -> Model:
    """What features and assignments need, of the method as it stands."""
    if isinstance(method, ODC):
        return Model(method.describer, None, clustering.centroids, method.neck)
    assert isinstance(method, DeepCluster)
    return Model(method.describer, method.whitening, clustering.centroids)


def _fabric(run: TrainRun) -> Fabric:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DeepClusterError(
            "This version trains in one process, but the launcher started several (WORLD_SIZE > 1): start one."
        )
    device = runs.pick_device(run.device)
    kind, _, position = device.partition(":")
    precision = run.precision
    if precision == "auto":
        precision = "bf16" if fast_bfloat16(kind) else "32"
    if precision == "16" and kind == "cpu":
        raise DeepClusterError("A CPU has no 16-bit floating-point training: use --precision bf16 or 32.")
    plugin: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
    return Fabric(
        accelerator=kind,
        devices=[int(position)] if position else 1,
        precision=plugin,
        num_nodes=1,
        loggers=None,
    )


def fast_bfloat16(kind: str) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is slower than 32 bits."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)


def _pixels(run: TrainRun, source: ImageSource, screen: Screen) -> Pixels:
    with screen.bar("decoding", len(source)) as advance:
        return load_pixels(
            source,
            short_side=runs.short_side(run.image_size),
            cache_gb=run.data.cache_gb,
            workers=run.data.workers,
            progress=lambda done, total: advance.to(done),
        )


def views_of(run: TrainRun, backbone: Backbone) -> Views:
    """The random views that the run trains on."""
    d = run.data
    return Views(
        size=d.view_size or run.image_size,
        count=d.views,
        crop_scale=d.crop_scale,
        crop_ratio=d.crop_ratio,
        flip=d.flip,
        jitter=d.jitter,
        brightness=d.brightness,
        contrast=d.contrast,
        saturation=d.saturation,
        hue=d.hue,
        gray=d.gray,
        blur=d.blur,
        rotate=d.rotate,
        translate=d.translate,
        zoom=d.zoom,
        shear=d.shear,
        mean=backbone.mean,
        std=backbone.std,
    )


def _rate(run: TrainRun) -> Callable[[int, int, int], float]:
    o = run.optimizer

    def rate(step: int, steps: int, per_epoch: int) -> float:
        return factor(
            o.schedule,
            step,
            steps=steps,
            steps_per_epoch=per_epoch,
            warmup=o.warmup,
            step_epochs=o.step_epochs,
            step_factor=o.step_factor,
            lr=o.lr,
            weight_decay=o.weight_decay,
        )

    return rate


def _keep_best(folder: Path, method: Method) -> None:
    """`best.ckpt` and, beside it, `best.safetensors`: the network as it is now, with the clusters of model.safetensors
    until `_snapshots` has some of this very network."""
    kept = folder / "checkpoints"
    checkpoint.keep_copy(kept / "last.ckpt", kept / "best.ckpt")
    if (folder / MODEL).exists():
        with checkpoint.undisturbed():  # a network is drawn before its weights are read
            model = Model.load(folder / MODEL)
        Model(method.describer, model.whitening, model.centroids).save(kept / "best.safetensors")


def _snapshots(folder: Path, method: Method, metrics: Metrics, per_epoch: int) -> Callable[[Clustering, int], None]:
    """Writes model and assignment with the first clustering of each epoch, so an unfinished run can assign too; the
    clustering right after the best watched epoch gives best.safetensors clusters of its own network."""
    written: set[int] = set()

    def write(clustering: Clustering, step: int) -> None:
        best = best_of(metrics.rows)
        if best is not None and step == (best.epoch + 1) * per_epoch:
            snapshot_model(method, clustering).save(folder / "checkpoints" / "best.safetensors")
        if step // per_epoch not in written:
            written.add(step // per_epoch)
            run_folder.write_snapshot(folder, snapshot_model(method, clustering), clustering)

    return write


def train_again(
    folder: Path | str, data: Any = None, screen: Screen | None = None, clusterer: Clusterer | None = None
) -> runs.Run:
    """`deepcluster train --resume`: goes on exactly where the run in `folder` stood.

    Args:
        data: needed only where the training images were handed over as arrays.
        clusterer: needed only where one was handed over.
    """
    config = runs.read_config(Path(folder))
    run = settings.from_dict(config["settings"])
    return train(
        run,
        config["data"] if data is None else data,
        folder,
        preset=config["preset"],
        resume=True,
        screen=screen,
        clusterer=clusterer,
    )


class _Elsewhere:
    """Stands for a clusterer that was handed over, where a run is only looked at."""

    def fit_predict(self, x: Any, y: None = None) -> Any:
        raise DeepClusterError("A run that is only looked at clusters nothing.")


def at_checkpoint(config: dict[str, Any], file: Path) -> Backbone:
    """The describer of a run as a checkpoint of it holds it, in evaluation mode.

    Raises:
        DeepClusterError: not a checkpoint of this run.
    """
    run = settings.from_dict(config["settings"])
    method = build_method(run, config["images"], _Elsewhere() if "clusterer" in config else None)
    checkpoint.restore(checkpoint.load(file), method, file)
    return method.describer.eval()


def untrained(config: dict[str, Any]) -> Backbone:
    """The backbone of a run as it was before its first step: drawn, or with the weights it began with."""
    run = settings.from_dict(config["settings"])
    seed_everything(run.seed)
    backbone = draw_backbone(run)
    if run.backbone.weights:
        begin_with(run.backbone.weights, [backbone])
    return backbone.eval()

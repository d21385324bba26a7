"""From a run's parts to a run folder: restores what a checkpoint holds, walks, and leaves a folder that can assign
new images. The parts come from build.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from deepcluster import config as settings
from deepcluster.config import TrainRun
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.distributed import ProcessGroup, current
from deepcluster.engine import checkpoint, run_folder
from deepcluster.engine import run as runs
from deepcluster.engine.build import (
    build_method,
    check,
    launched,
    make_fabric,
    pick_clusterer,
    rate_of,
    seed_everything,
    views_of,
    with_clusterer,
)
from deepcluster.engine.length import lengthened
from deepcluster.engine.log import Metrics, Screen
from deepcluster.engine.loop import TrainContext, TrainState, features_file, refresh, steps_per_epoch, walk
from deepcluster.engine.model import MODEL, Model, Tree, load_initial_weights
from deepcluster.engine.optim import make_optimizer
from deepcluster.engine.signals import stop_signals
from deepcluster.engine.subject import short_side
from deepcluster.engine.watch import best_of, make_watch
from deepcluster.errors import DeepClusterError
from deepcluster.features.extract import agree_on_bad
from deepcluster.io import write_json
from deepcluster.methods.deepcluster import Clusterer, DeepCluster
from deepcluster.methods.deepercluster import DeeperCluster
from deepcluster.methods.method import Method
from deepcluster.methods.odc import ODC
from deepcluster.models.sync_batchnorm import Part, convert_sync_batchnorm
from deepcluster.types import Clustering


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
    folder = Path(out)
    run = with_clusterer(run, clusterer)
    check(run)
    pick_clusterer(run, clusterer)
    fabric = make_fabric(run)
    group = current()
    screen = (screen or Screen()) if group.is_first else Screen(quiet=True)
    with group.collective_section():
        source = open_images(data)
        if group.is_first and not resume:
            run_folder.outside_images(folder, source)
        if group.is_first:
            run_folder.prepare_folder(folder, resume=resume, overwrite=overwrite)
    try:
        return _train(run, source, folder, fabric, group, screen, preset=preset, resume=resume, clusterer=clusterer)
    except DeepClusterError:
        if group.is_first and not resume and not (folder / "checkpoints" / "last.ckpt").exists():
            shutil.rmtree(folder)  # a mistake leaves nothing that would stand in the way of the next try
        raise


def _train(
    run: TrainRun,
    source: ImageSource,
    folder: Path,
    fabric: Fabric,
    group: ProcessGroup,
    screen: Screen,
    *,
    preset: str,
    resume: bool,
    clusterer: Clusterer | None,
) -> runs.Run:
    here = (launched() or (run.processes, 1))[0]
    watch = make_watch(run.watch, source, every=run.watch_every, patience=run.patience, stop=run.stop, seed=run.seed)
    with group.collective_section():
        if fabric.local_rank == 0:
            pixels = _pixels(run, source, screen, here)
    with group.collective_section():
        if fabric.local_rank > 0:  # what the first process of this machine has put into the cache is there now
            pixels = _pixels(run, source, screen, here)
    same_everywhere(source, group)
    agree_on_bad(pixels, group)
    if len(pixels.good) < 2:
        raise DeepClusterError(
            f"{source.name} holds {len(pixels.good)} image(s) that can be decoded: training needs at least 2."
        )
    with group.collective_section():
        if group.is_first and not resume:
            write_json(folder / "run.json", run_folder.about(run, preset, source, pixels, clusterer, group))
        elif group.is_first:
            run_folder.same_images(runs.read_config(folder), source, folder)
            run_folder.note_unfinished(folder, run, group)
        if group.is_first:
            run_folder.write_bad_images(folder, pixels)
    run_folder.tell_bad(pixels, screen)

    seed_everything(run.seed)
    method, part = build_method(run, len(source), clusterer, group), Part()
    last = folder / "checkpoints" / "last.ckpt"
    begun = resume and group.any(last.exists())
    with group.collective_section():
        if begun and not last.exists():
            raise DeepClusterError(f"Not every process sees {last}: the run folder must be on a disk that all share.")
        if run.backbone.weights and not begun:
            load_initial_weights(run.backbone.weights, (method.backbone, method.feature_network))
    convert_sync_batchnorm(method, group, part, norm=run.sync_batchnorm)
    method.join(group)
    method.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(
        method.backbone.parameters(),
        run.optimizer.name,
        lr=run.optimizer.lr,
        momentum=run.optimizer.momentum,
        weight_decay=run.optimizer.weight_decay,
    )
    per_epoch, batch_size = steps_per_epoch(len(pixels.good), run.batch_size)
    least = group.size if run.sync_batchnorm or group.is_single else 2 * group.size  # one image has no variance
    if batch_size < least:
        raise DeepClusterError(
            f"Batches of {batch_size} images cannot be shared by {group.size} processes: raise --batch-size to at least"
            f" {least}, or start fewer processes."
        )
    for weight in method.backbone.state_dict().values():
        group.broadcast_(weight)  # processors of different kinds may draw different last digits
    progress = TrainState(per_epoch, batch_size)
    if begun:
        progress = restore(last, method, optimizer, fabric)
        screen.say(f"resuming {folder} at epoch {progress.step // progress.steps_per_epoch + 1}, step {progress.step}")
    elif resume:
        screen.say(f"{folder} has no checkpoint yet: starting from its beginning")
    views = views_of(run, method.backbone)
    metrics = Metrics(folder, progress.step // progress.steps_per_epoch, write=group.is_first)
    with stop_signals() as stopped:
        w = TrainContext(
            fabric=fabric,
            group=group,
            part=part,
            method=method,
            optimizer=optimizer,
            pixels=pixels,
            views=views,
            epochs=run.epochs,
            seed=run.seed,
            rate=rate_of(run),
            clip=run.optimizer.clip,
            folder=folder,
            screen=screen,
            metrics=metrics,
            describe_views=run.data.describe == "augmented",
            keep_every=run.keep_every,
            save_seconds=60 * run.save_minutes,
            on_refresh=_snapshots(folder, method, metrics, progress.steps_per_epoch),
            watch=watch,
            on_best=lambda: _keep_best(folder, method) if group.is_first else None,
            stopped=stopped,
        )
        if run.compile:
            method.backbone.compile()
        try:
            walk(w, progress)
            clustering = refresh(w, progress, last=True)
        finally:
            w.metrics.close()
            features_file(folder, group).unlink(missing_ok=True)
    with group.collective_section():
        if group.is_first and clustering is not None:
            run_folder.write_snapshot(folder, snapshot_model(method, clustering), clustering)
        if group.is_first:
            run_folder.note_finished(folder)
    agree_on_bad(pixels, group)
    if pixels.bad:
        with group.collective_section():
            if group.is_first:
                run_folder.write_bad_images(folder, pixels)
        screen.say(
            f"{folder / 'bad_images.csv'} lists what cannot be decoded: {len(pixels.bad):,} of {len(pixels):,} files"
        )
    return runs.load_run(folder, device=run.device)


def restore(file: Path, method: Method, optimizer: torch.optim.Optimizer, fabric: Fabric) -> TrainState:
    """Puts everything a checkpoint holds back in its place."""
    state = checkpoint.load(file)
    checkpoint.restore(state, method, file)
    for name, each in {"backbone": optimizer, **method.optimizers()}.items():
        each.load_state_dict(state["optimizers"][name])
    fabric.strategy.precision.load_state_dict(state["precision"])
    checkpoint.set_random_state(state["random"])
    return TrainState.loaded(state["progress"])


def snapshot_model(method: Method, clustering: Clustering) -> Model:
    """What features and assignments need, of the method as it stands."""
    if isinstance(method, ODC):
        return Model(method.feature_network, None, clustering.centroids, method.neck)
    if isinstance(method, DeeperCluster):
        tree = Tree(method.super_centroids, method.used)
        return Model(method.feature_network, method.whitening, clustering.centroids, tree=tree)
    assert isinstance(method, DeepCluster)
    return Model(method.feature_network, method.whitening, clustering.centroids)


def same_everywhere(source: ImageSource, group: ProcessGroup) -> None:
    """Refuses processes that see different images.

    Raises:
        DeepClusterError: on all of them.
    """
    if not group.is_single and len(set(group.gather_strings(f"{len(source)} {source.fingerprint()}"))) > 1:
        raise DeepClusterError(
            f"The processes see different images as {source.name}: give each machine the same files, with the same"
            " dates, in the same place."
        )


def _pixels(run: TrainRun, source: ImageSource, screen: Screen, here: int) -> Pixels:
    """The pictures, for one of `here` processes of this machine."""
    with screen.bar("decoding", len(source)) as advance:
        return load_pixels(
            source,
            short_side=short_side(run.image_size),
            cache_gb=run.data.cache_gb,
            workers=run.data.workers or max(1, (os.cpu_count() or 1) // here),
            progress=lambda done, total: advance.to(done),
        )


def _keep_best(folder: Path, method: Method) -> None:
    """`best.ckpt` and, beside it, `best.safetensors`: the network as it is now, with the clusters of model.safetensors
    until `_snapshots` has some of this very network."""
    kept = folder / "checkpoints"
    checkpoint.keep_copy(kept / "last.ckpt", kept / "best.ckpt")
    if (folder / MODEL).exists():
        with checkpoint.undisturbed():  # a network is drawn before its weights are read
            model = Model.load(folder / MODEL)
        neck = method.neck if isinstance(method, ODC) else None
        Model(method.feature_network, model.whitening, model.centroids, neck, model.tree).save(
            kept / "best.safetensors"
        )


def _snapshots(folder: Path, method: Method, metrics: Metrics, per_epoch: int) -> Callable[[Clustering, int], None]:
    """Writes model and assignment with the first clustering of each epoch, so an unfinished run can assign too; the
    clustering right after the best watched epoch gives best.safetensors clusters of its own network."""
    written: set[int] = set()

    def write(clustering: Clustering, step: int) -> None:
        if not method.group.is_first:
            return
        best = best_of(metrics.rows)
        if best is not None and step == (best.epoch + 1) * per_epoch:
            snapshot_model(method, clustering).save(folder / "checkpoints" / "best.safetensors")
        if step // per_epoch not in written:
            written.add(step // per_epoch)
            run_folder.write_snapshot(folder, snapshot_model(method, clustering), clustering)

    return write


def train_again(
    folder: Path | str,
    data: Any = None,
    screen: Screen | None = None,
    clusterer: Clusterer | None = None,
    epochs: int | None = None,
    processes: int | None = None,
) -> runs.Run:
    """`deepcluster train --resume`: goes on exactly where the run in `folder` stood.

    Args:
        data: needed only where the training images were handed over as arrays.
        clusterer: needed only where one was handed over.
        processes: on this machine; None = as many as before. A launcher settles it without being asked.
        epochs: another length of the run, which the learning rate's schedule then follows; None = as it was begun.

    Raises:
        DeepClusterError: fewer epochs than are done, or other images than the run's.
    """
    config = runs.read_config(Path(folder))
    run = settings.from_dict(config["settings"])
    if launched():
        run = settings.override(run, {"processes": 1})
    elif processes is not None:
        run = settings.override(run, {"processes": processes})
    if epochs is not None:
        run = lengthened(run, Path(folder), epochs)
    return train(
        run,
        config["data"] if data is None else data,
        folder,
        preset=config["preset"],
        resume=True,
        screen=screen,
        clusterer=clusterer,
    )

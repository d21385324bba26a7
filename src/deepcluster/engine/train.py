"""From settings to a run folder: builds the parts of a run, restores what a checkpoint holds, trains, and leaves a
folder that can assign new images.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepcluster import config as settings
from deepcluster.config import TrainRun
from deepcluster.data.cache import Pixels, agree_on_bad, load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.distributed import ProcessGroup, current, launched
from deepcluster.engine import checkpoint, run_folder
from deepcluster.engine.build import Place, at_checkpoint, build_method, build_parts, check, make_context, thrown_away
from deepcluster.engine.clock import Clock, known_seconds
from deepcluster.engine.fabric import make_fabric, together
from deepcluster.engine.length import lengthened, progress_of
from deepcluster.engine.log import Metrics, Screen
from deepcluster.engine.loop import TrainState, features_file, fit, refresh
from deepcluster.engine.model import PRETRAINED, begin
from deepcluster.engine.monitor import Monitor, exported_model, watched_images
from deepcluster.engine.occupy import occupy_to_train, settle
from deepcluster.engine.run import Run
from deepcluster.engine.signals import stop_signals
from deepcluster.engine.speed import measure, within_minutes
from deepcluster.engine.subject import short_side
from deepcluster.errors import DeepClusterError, counted
from deepcluster.io import write_json
from deepcluster.methods.clusterer import Clusterer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(
    run: TrainRun,
    data: Any,
    out: Path | str,
    *,
    preset: str = "custom",
    resume: bool = False,
    start: Path | None = None,
    overwrite: bool = False,
    screen: Screen | None = None,
    clusterer: Clusterer | None = None,
    began: float | None = None,
) -> Run:
    """Trains and returns the finished run.

    Args:
        data: what `open_images` takes.
        preset: name of the preset that `run` started from, for run.json.
        out: the run folder; must not hold a run yet, unless `resume` or `overwrite`.
        resume: continue from `out`'s last checkpoint; `run` must be its own, but for the learning rate.
        start: an earlier checkpoint of the run, which becomes the last one.
        clusterer: replaces k-means; sets `method.algorithm` to "custom" and `method.k` to 0.
        began: what `time.monotonic` gave when the minutes of `run.minutes` began; None = now.

    Raises:
        DeepClusterError: bad data, settings, or folder.
        Interrupted: Ctrl-C or SIGTERM, after everything was saved.
    """
    folder, began = Path(out), time.monotonic() if began is None else began
    run = replace(run, method=run.method.with_clusterer(clusterer))
    check(run)
    if run.backbone.weights == PRETRAINED and not resume:  # run.json is to hold their normalization
        run = begin(run, run.backbone.name, run.image_size)
    with contextlib.ExitStack() as held:
        held.enter_context(together(folder))
        fabric = make_fabric(run)
        group = current()
        screen = (screen or Screen()) if group.is_first else Screen(quiet=True)
        with group.collective_section():
            source = open_images(data)
            if group.is_first and not resume:
                run_folder.outside_images(folder, source)
            if group.is_first:
                held.enter_context(occupy_to_train(folder, resume=resume, overwrite=overwrite, warn=screen.warn))
                if start is not None:
                    checkpoint.go_back(start, folder)
        return _train(run, source, folder, fabric, group, screen, preset, resume, clusterer, began)


def _train(
    run: TrainRun,
    source: ImageSource,
    folder: Path,
    fabric: Fabric,
    group: ProcessGroup,
    screen: Screen,
    preset: str,
    resume: bool,
    clusterer: Clusterer | None,
    began: float,
) -> Run:
    # Images
    watched = watched_images(run, source)
    pixels = _pixels(run, source, screen, fabric, group)
    if not group.is_single:
        run_folder.same_everywhere(group, f"{len(source)} {source.fingerprint()}", f"images as {source.name}")
    agree_on_bad(pixels, group)
    images = len(pixels.good)
    if images < 2:
        raise DeepClusterError(
            f"{source.name} holds {counted(images, 'image')} that can be decoded: training needs at least 2."
        )
    state = TrainState(*steps_per_epoch(run, images, group))
    place = Place(pixels, fabric, group, folder)
    known: dict[str, float] = {}
    if run.minutes is not None and not resume:
        screen.print("measuring the speed of this machine")
        speed = measure(partial(thrown_away, run, clusterer, place), run, state, images)
        over = float(group.max_(torch.tensor(time.monotonic() - began, dtype=torch.float64)))
        run = within_minutes(run, speed, over, build_method(run, 1, clusterer), state.steps_per_epoch, screen)
        known = speed.known
    with group.collective_section():
        if group.is_first and not resume:
            write_json(folder / "run.json", run_folder.about(run, preset, source, pixels, clusterer, group))
        elif group.is_first:
            before, last = run_folder.read_config(folder), folder / "checkpoints" / checkpoint.LAST
            run_folder.same_images(before, source, folder)
            saved = checkpoint.load(last) if last.exists() else None
            if saved is None and before.get("finished"):  # it would be trained anew, over what it made
                raise DeepClusterError(
                    f"{folder} is a finished run without {last.relative_to(folder)}: copy that back into it, or train"
                    f" from its weights into another folder (--from {folder})."
                )
            run_folder.same_run(before, run, saved, last)
            run_folder.note_unfinished(folder, run, group, progress_of(saved) if saved else 0.0)
        if group.is_first:
            run_folder.write_bad_images(folder, pixels)
    run_folder.tell_bad(pixels, screen)

    # Method, and its state in the last checkpoint
    last = folder / "checkpoints" / checkpoint.LAST
    has_checkpoint = resume and group.any(last.exists())
    with group.collective_section():
        if has_checkpoint and not last.exists():
            raise DeepClusterError(f"Not every process sees {last}: the run folder must be on a disk that all share.")
    parts = build_parts(run, len(source), fabric, group, clusterer, initial_weights=not has_checkpoint)
    if has_checkpoint:
        state = TrainState(**checkpoint.resume(last, parts.method, parts.optimizer, fabric.strategy.precision))
        screen.print(f"resuming {folder} at epoch {state.step // state.steps_per_epoch + 1}, step {state.step}")
    elif resume:
        screen.print(f"{folder} has no checkpoint yet: starting from its beginning")

    # Training
    metrics = Metrics(folder, state.step // state.steps_per_epoch, write=group.is_first)
    clock = Clock(parts.method, run.epochs, state.steps_per_epoch, known | known_seconds(metrics.earlier))
    with stop_signals() as stopped:
        c = make_context(run, parts, place, screen, Monitor(metrics, watched), clock, stopped)
        try:
            fit(c, state)
            clustering = refresh(c, state, last=True)
        finally:
            metrics.close()
            features_file(folder, group).unlink(missing_ok=True)

    # What is left behind
    agree_on_bad(pixels, group)
    with group.collective_section():
        if group.is_first:
            if clustering is not None:
                run_folder.write_snapshot(folder, exported_model(parts.method, clustering), clustering)
            if pixels.bad:
                run_folder.write_bad_images(folder, pixels)
            run_folder.note_finished(folder)
    if pixels.bad:
        screen.print(
            f"{folder / 'bad_images.csv'} lists what cannot be decoded: {len(pixels.bad):,} of"
            f" {counted(len(pixels), 'file')}"
        )
    return Run(folder, run.device)


def steps_per_epoch(run: TrainRun, images: int, group: ProcessGroup) -> tuple[int, int]:
    """Optimizer steps that show about `images` images, and the batch size: never more than there are images."""
    batch = min(run.batch_size, images)
    least = group.size if run.sync_batchnorm or group.is_single else 2 * group.size  # one image has no variance
    if batch < least:
        raise DeepClusterError(
            f"Batches of {counted(batch, 'image')} cannot be shared by {group.size} processes: raise --batch-size to at"
            f" least {least}, or start fewer processes."
        )
    return max(1, round(images / batch)), batch


def _pixels(run: TrainRun, source: ImageSource, screen: Screen, fabric: Fabric, group: ProcessGroup) -> Pixels:
    """The decoded images. The first process of a machine fills the cache that the others of it then read."""
    here = (launched() or (run.processes, 1))[0]

    def load() -> Pixels:
        with screen.bar("decoding", len(source)) as advance:
            return load_pixels(
                source,
                short_side=short_side(run.largest_size),
                cache_gb=run.data.cache_gb,
                workers=run.data.workers or max(1, (os.cpu_count() or 1) // here),
                progress=lambda done, total: advance.to(done),
            )

    with group.collective_section():
        pixels = load() if fabric.local_rank == 0 else None
    with group.collective_section():
        pixels = load() if pixels is None else pixels
        pixels.hold(fabric.device)
        return pixels


def train_again(
    folder: Path | str,
    data: Any = None,
    screen: Screen | None = None,
    clusterer: Clusterer | None = None,
    epochs: int | None = None,
    processes: int | None = None,
    start: Path | None = None,
    lr: float | None = None,
    preset: str | None = None,
) -> Run:
    """`deepcluster train --resume`: continues exactly where the run in `folder` stopped.

    Args:
        data: needed only if the training images were passed as arrays.
        clusterer: needed only if one was passed.
        processes: on this machine; None = as many as before. A launcher settles it without being asked.
        epochs: new number of epochs, which the learning rate's schedule then follows; None = as before.
        start: an earlier checkpoint of the run to go on from, in place of the last one.
        lr: another base learning rate from there on, which run.json notes; None = as before.
        preset: the one that the run must be of; None = any.

    Raises:
        DeepClusterError: fewer epochs than are done, other images or another preset than the run's, or no checkpoint
            of a run.
    """
    settle(Path(folder), (screen or Screen()).warn)
    config = run_folder.read_config(Path(folder))
    if preset not in (None, config["preset"]):
        raise DeepClusterError(
            f"{folder} is a run of {config['preset']}, not of {preset}: resume it with `deepcluster train --resume"
            f" {folder}`, or start {preset} in another --out."
        )
    run = settings.from_dict(config["settings"])
    if launched():
        run = replace(run, processes=1)
    elif processes is not None:
        run = replace(run, processes=processes)
    if start is not None:
        at_checkpoint(config, start)  # of this run, or nothing is touched
    if lr is not None:
        run = settings.override(run, {"optimizer.lr": lr})
    if epochs is not None:
        run = lengthened(run, Path(folder) if start is None else start, epochs)
    return train(
        run,
        config["data"] if data is None else data,
        folder,
        preset=config["preset"],
        resume=True,
        start=start,
        screen=screen,
        clusterer=clusterer,
    )

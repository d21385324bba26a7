"""Steps, features and clusterings of a run, timed on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepcluster import config
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.engine.build import build_method, views_of
from deepcluster.engine.optim import backbone_optimizer, step_all
from deepcluster.engine.speed import clustered
from deepcluster.engine.subject import short_side
from deepcluster.estimate.dry_run import ROWS, DryRun, number_of_clusters
from deepcluster.features.extract import extract
from deepcluster.types import TrainStep

if TYPE_CHECKING:
    from deepcluster.estimate.estimate import Job

TIMED = 64
"""Images of timed steps, at most."""


def time_steps(job: Job, dry: DryRun, data: Any = None) -> tuple[float, float, Callable[[float], float]]:
    """Times three training steps, the features of some images, and two clusterings.

    Returns:
        Seconds of a training step, for each of its images; of each image's features; and operations of a clustering ->
        its seconds.
    """
    run, method = job.run, dry.method.to(job.device)
    made_up = np.random.default_rng(0).integers(0, 255, (TIMED, run.largest_size, run.largest_size, 3), np.uint8)
    source, short = open_images(made_up if data is None else data), short_side(run.largest_size)
    pixels: Pixels = load_pixels(source, short_side=short, cache_gb=run.data.cache_gb)
    good = pixels.good[:TIMED]
    batch = max(2, min(job.part, len(good)))
    optimizer = backbone_optimizer(run.optimizer, method.backbone)
    order = method.order(4 * batch, torch.Generator().manual_seed(0))
    shown = np.resize(good, 4 * batch)
    loader = Loader(pixels, shown, batch_size=batch, transform=views_of(run, method.backbone), device=job.device)
    began, method = time.perf_counter(), method.train()
    for number, shuffled in enumerate(loader):
        drawn = dataclasses.replace(shuffled, index=order[number * batch : number * batch + len(shuffled.index)])
        torch.autograd.backward(method.loss(drawn, TrainStep(number, 4, 4))["loss"])
        step_all([optimizer, *method.optimizers().values()], method.parameters(), 0.0, None)
        method.after_step(drawn)
        if number == 0:
            began = time.perf_counter()  # the first step allocates
    image = (time.perf_counter() - began) / (3 * batch)
    network, feature = method.feature_network, []
    for part in (good[:2], good[:2], good):  # the difference of the last two is free of what is done once
        began = time.perf_counter()
        extract(network, pixels, device=job.device, only=part, size=run.data.clustered_size)
        feature.append(time.perf_counter() - began)
    seconds, flops = [], []
    for n in (ROWS, 4 * ROWS):
        began = time.perf_counter()
        few = config.override(run, {"method.k": dry.samples[-1].k} if number_of_clusters(run) else {})
        clustered(build_method(few, n), n)
        seconds.append(time.perf_counter() - began)
        flops.append(dry.at(n * job.processes, n, dry.samples[-1].k)["refresh_flops"])
    slope = max(0.0, seconds[1] - seconds[0]) / (flops[1] - flops[0])
    fixed = max(0.0, seconds[0] - slope * flops[0])
    each = max(0.0, feature[-1] - feature[-2]) / max(1, len(good) - 2)
    return image, each, lambda operations: fixed + slope * operations

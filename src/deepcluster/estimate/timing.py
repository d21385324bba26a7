"""Steps, features and a clustering of a run, timed on this machine with a copy of it that is thrown away."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.config import TrainRun, override
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.open import open_images
from deepcluster.distributed import SINGLE
from deepcluster.engine.build import Place, build_method, thrown_away
from deepcluster.engine.fabric import make_fabric
from deepcluster.engine.speed import clustered, time_clustering, time_features
from deepcluster.engine.speed import time_steps as time_own_steps
from deepcluster.engine.subject import short_side
from deepcluster.estimate.dry_run import ROWS, DryRun, number_of_clusters
from deepcluster.estimate.job import Job

MADE_UP = 256
"""Images where none are given."""
MOST_CLUSTERS = 4096
"""Clusters up to which a clustering into all of them is timed; otherwise into few, and extrapolated by operations."""


def time_steps(job: Job, dry: DryRun, data: Any = None) -> tuple[float, float, float, int]:
    """Times a share of the run's work on one process, in the run's own loop.

    Returns:
        Seconds of a training step, for each of its images; of each image's features; and of a clustering of the share
        of one process. And the number of clusters that the steps were timed with.
    """
    run, k = job.run, number_of_clusters(job.run)
    few = k if k <= MOST_CLUSTERS else dry.samples[-1].k
    one = replace(_with_clusters(run, few), processes=1, device=job.device, minutes=None, batch_size=max(2, job.part))
    made_up = np.random.default_rng(0).integers(0, 255, (MADE_UP, run.largest_size, run.largest_size, 3), np.uint8)
    source = open_images(made_up if data is None else data)
    pixels: Pixels = load_pixels(source, short_side=short_side(run.largest_size), cache_gb=run.data.cache_gb)
    fabric = make_fabric(one)
    pixels.hold(fabric.device)
    with tempfile.TemporaryDirectory() as folder:
        make = partial(thrown_away, one, None, Place(pixels, fabric, SINGLE, Path(folder)))
        c, rows, clustering = time_clustering(make, few, job.share if few == k else ROWS)
        step, _ = time_own_steps(c, one.batch_size, rows)
        feature = time_features(c)
    if few != k:
        clustering = _extrapolated(job, dry, few)
    return step / one.batch_size, feature, clustering, few


def _extrapolated(job: Job, dry: DryRun, few: int) -> float:
    """Seconds of a clustering, by its operations and those of two that are timed."""
    seconds, flops = [], []
    for n in (ROWS, 4 * ROWS):
        method, began = build_method(_with_clusters(job.run, few), n), time.perf_counter()
        clustered(method, n)
        seconds.append(time.perf_counter() - began)
        flops.append(dry.at(n * job.processes, n, few)["refresh_flops"])
    slope = max(0.0, seconds[1] - seconds[0]) / (flops[1] - flops[0])
    fixed = max(0.0, seconds[0] - slope * flops[0])
    return fixed + slope * dry.at(job.images, job.share, job.clusters)["refresh_flops"]


def _with_clusters(run: TrainRun, k: int) -> TrainRun:
    return override(run, {"method.k": k} if k else {})

"""Runs that are stopped and resumed, for tests of whatever keeps state."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.config import TrainRun, override
from deepcluster.engine import checkpoint, loop, train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_run
from deepcluster.errors import Interrupted
from deepcluster.presets import find_preset

SMALL: dict[str, Any] = {"epochs": 2, "k": 5, "whiten": 8, "batch_size": 16, "image_size": 12, "keep_every": 1}


def settings(**values: object) -> TrainRun:
    return override(find_preset("tiny-deepcluster").run, SMALL | values)


def images(n: int = 64, size: int = 12) -> np.ndarray:
    shapes = np.random.default_rng(0).integers(0, 200, (4, size, size, 3))
    noise = np.random.default_rng(1).integers(0, 55, (n, size, size, 3))
    return (shapes[np.arange(n) % 4] + noise).astype(np.uint8)


def fit(out: Path, run: TrainRun, data: object = None, **more: object) -> dict[str, Any]:
    train.train(run, images() if data is None else data, out, screen=Screen(quiet=True), **more)  # type: ignore[arg-type]
    return state(out)


NOISE = np.random.default_rng(0).integers(0, 255, (64, 12, 12, 3)).astype(np.uint8)
FINISHED: dict[str, Path] = {}


def finished(run: TrainRun, noise: bool = False) -> Path:
    """The folder of a run on `images()` or on `NOISE` that nobody stopped: trained once in a process, and never to be
    changed."""
    key = repr((run, noise))
    if key not in FINISHED:
        # beside the tests' own cache, which pytest takes away
        out = Path(os.environ["DEEPCLUSTER_CACHE"]).with_name("finished") / str(len(FINISHED))
        train.train(run, NOISE if noise else images(), out, screen=Screen(quiet=True))
        FINISHED[key] = out
    return FINISHED[key]


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return checkpoint.load(folder / "checkpoints" / "last.ckpt")


def losses(run: TrainRun) -> list[float]:
    """The loss of every epoch of a run on `NOISE`."""
    return [row["loss"] for row in load_run(finished(run, noise=True)).metrics]


def differing(a: object, b: object, where: str = "") -> list[str]:
    """Names of the leaves in which two checkpoints differ, timings apart."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in a.keys() | b.keys() if not str(name).startswith("seconds")]
        return [found for name in names for found in differing(a.get(name), b.get(name), f"{where}/{name}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for position, (x, y) in pairs for found in differing(x, y, f"{where}/{position}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    return [] if a == b else [where]


def stop_after(out: Path, run: TrainRun, steps: int, data: object = None, **more: object) -> None:
    """Trains until so many optimizer steps are done, then stops as Ctrl-C does."""
    seen = {"steps": 0}
    module: Any = loop
    original = module.step_all

    def counting(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        seen["steps"] += 1
        if seen["steps"] == steps:
            os.kill(os.getpid(), signal.SIGINT)

    module.step_all = counting
    try:
        with pytest.raises(Interrupted):
            train.train(run, images() if data is None else data, out, screen=Screen(quiet=True), **more)  # type: ignore[arg-type]
    finally:
        module.step_all = original

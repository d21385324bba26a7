"""How long a run is: whether it has reached its end, and giving it another one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from deepcluster import config as settings
from deepcluster.config import TrainRun
from deepcluster.engine import checkpoint
from deepcluster.engine.log import read_metrics
from deepcluster.engine.monitor import best_of, stalled
from deepcluster.engine.run import Run
from deepcluster.engine.run_folder import read_config
from deepcluster.errors import DeepClusterError


def epochs_done(folder: Path) -> float:
    """Epochs behind a checkpoint, or the last one of a run folder, a fraction within an epoch; 0 without one."""
    file = folder if folder.is_file() else folder / "checkpoints" / "last.ckpt"
    return progress_of(checkpoint.load(file)) if file.exists() else 0.0


def progress_of(state: dict[str, Any]) -> float:
    """The same of a checkpoint that has been read."""
    return float(state["progress"]["step"] / state["progress"]["steps_per_epoch"])


def is_finished(folder: Path) -> bool:
    """Whether there is nothing left to do: all epochs, the last clustering, and files that can be read."""
    config = read_config(folder)
    if not config.get("finished"):
        return False
    run = settings.from_dict(config["settings"])
    try:
        there = Run(folder, "cpu")
        _ = there.assignment, there.distance, there.model
        return epochs_done(folder) >= run.epochs or stalled(run, best_of(there.metrics))
    except DeepClusterError:
        return False


def lengthened(run: TrainRun, folder: Path, epochs: int) -> TrainRun:
    """The settings of the run in `folder` with another number of epochs, not fewer than are done (DeepClusterError). A
    run that `--stop` has ended continues without it."""
    done = epochs_done(folder)
    if epochs < done or epochs < 1:
        least = max(1, math.ceil(done))
        raise DeepClusterError(
            f"{folder} has {done:.4g} {'epoch' if done == 1 else 'epochs'} behind it and cannot be made as short as"
            f" {epochs}: give --epochs {least} or more, or start a shorter run in another --out."
        )
    further = epochs > done and stalled(run, best_of(read_metrics(folder)))
    return settings.override(run, {"epochs": epochs, "stop": run.stop and not further})

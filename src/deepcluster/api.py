"""The Python door: `deepcluster.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcluster import settings
from deepcluster.engine import train as engine
from deepcluster.engine.log import Screen
from deepcluster.engine.runs import Run
from deepcluster.presets import find_preset
from deepcluster.settings import TrainRun


def train(
    preset: str | TrainRun,
    data: Any = None,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    **values: Any,
) -> Run:
    """Trains a preset, or settings of your own, and returns the finished run.

    Args:
        preset: a preset's name, or a `TrainRun`.
        data: a folder, tar shards, a list of files, `digits`, an array (N, H, W[, C]) uint8, a list of paths.
        out: the run folder to write.
        overwrite: replace a run that `out` already holds.
        quiet: no lines, no progress bar.
        values: settings to change, by name (`k=200`), group (`method__k=200`) or both as a dict.

    Raises:
        DeepClusterError: bad data, setting or folder, in one sentence.

    Examples:
        >>> import deepcluster as dc
        >>> run = dc.train("tiny-deepcluster", data="digits", out="runs/digits", epochs=2)  # doctest: +SKIP
        >>> run.assignment.shape  # doctest: +SKIP
        (1797,)
    """
    if data is None or out is None:
        raise settings.DeepClusterError("train needs data and out: train(preset, data='photos/', out='runs/photos').")
    name, run = (preset, find_preset(preset).run) if isinstance(preset, str) else ("custom", preset)
    values_set = settings.override(run, values)
    return engine.train(values_set, data, out, preset=name, overwrite=overwrite, screen=Screen(quiet))

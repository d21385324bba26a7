"""The whitening of regions, learned on other images than those that are searched.

This file knows rows and a file that outlives a kill; it knows no networks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.whitening import Whitening, main_directions
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_atomic

FLOOR = 1e-5
"""Smallest variance that a direction is divided by, relative to the largest."""
SECONDS = 60.0
"""Between two writes of what was seen so far."""


class Covariance:
    """Mean and scatter of rows, gathered block by block in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Takes rows (M, D) in."""
        rows = rows.double()
        mean = rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        if not self.count:
            self.count, self.mean, self.scatter = len(rows), mean, scatter
            return
        total, shift = self.count + len(rows), mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def whitening(self, dims: int) -> Whitening:
        """Centers, turns to the `dims` main directions (or as many as there are), divides each by its deviation, where
        variances under `FLOOR` times the largest count as that much, and makes rows of length one.

        This is the floor of the papers' scripts. `clustering.Whitening` alone silences such directions, which is
        better where the same rows are learned from and whitened; here others come, that may differ in them.
        """
        values, directions = main_directions(self.scatter / self.count, min(dims, len(self.mean)))
        values = values.clamp_min(0)
        peak = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        scale = values.clamp_min(max(FLOOR * float(values[0]), torch.finfo(torch.float64).tiny)).rsqrt()
        state = {
            "mean": self.mean,
            "components": directions * torch.where(peak < 0, -1.0, 1.0) * scale[:, None],
            "variance": values,
            "l2": torch.tensor(True),
            "whiten": torch.tensor(True),
        }
        return Whitening().load_state_dict(state)


def learn_whitening(
    file: Path,
    identity: dict[str, Any],
    count: int,
    part: int,
    rows: Callable[[int, int], Iterable[Tensor]],
    dims: int,
    skipped: Callable[[int], None] = lambda images: None,
) -> Whitening:
    """The whitening of the rows of `count` images, from `file` where it is of the same identity, else learned.

    What is seen so far is kept in FILE.state, at most `SECONDS` old at the end of a part, and taken up by a later call
    of the same identity: to the bit what one call would have learned.

    Args:
        file: such as RUN/evaluation/retrieval.safetensors, which is written in the end.
        identity: plain values; all that the rows depend on.
        part: images between two looks at the clock.
        rows: (start, stop) -> rows (M, D) of length one of these images, in blocks.
        dims: width of the result at most.

    Raises:
        DeepClusterError: not one image gives rows.
    """
    identity = json.loads(json.dumps({**identity, "dims": dims}))
    if file.is_file() and (known := _read(file)) is not None and known[1] == identity:
        skipped(count)
        return known[0]
    state = file.with_name(f"{file.name}.state")
    seen, done = _take_up(state, identity)
    skipped(done)
    written = time.monotonic()
    for start in range(done, count, part):
        stop = min(start + part, count)
        blocks = list(rows(start, stop))
        if blocks:
            seen.add(torch.cat(blocks))
        if stop < count and time.monotonic() - written >= SECONDS:
            _keep(state, identity, seen, stop)
            written = time.monotonic()
    if not seen.count:
        raise DeepClusterError("No image to learn the whitening on can be looked at: give --whiten-on other images.")
    whitening = seen.whitening(dims)
    _save(file, whitening, identity)
    state.unlink(missing_ok=True)
    return whitening


def load_whitening(file: str | Path) -> tuple[Whitening, dict[str, Any]]:
    """The whitening in a retrieval.safetensors, and what its rows were made by.

        whitening, made_by = load_whitening("runs/a/evaluation/retrieval.safetensors")
        whitening.transform(rows)      # (M, D) regions of length one -> (M, P), of length one

    Raises:
        DeepClusterError: the file is missing, damaged or something else.
    """
    found = _read(Path(file))
    if found is None:
        raise DeepClusterError(
            f"{file} holds no whitening of regions: give the retrieval.safetensors that `deepcluster evaluate RUN"
            " retrieval --whiten-on ...` wrote."
        )
    return found


def _save(file: Path, whitening: Whitening, identity: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in whitening.state_dict().items()}
    metadata = {"format": "pt", "retrieval": json.dumps(identity)}
    write_atomic(file, lambda beside: save_file(tensors, beside, metadata))


def _read(file: Path) -> tuple[Whitening, dict[str, Any]] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            identity = json.loads((handle.metadata() or {})["retrieval"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return Whitening().load_state_dict(tensors), identity
    except (SafetensorError, OSError, KeyError, ValueError, DeepClusterError):
        return None


def _keep(state: Path, identity: dict[str, Any], seen: Covariance, done: int) -> None:
    tensors = {"count": torch.tensor(seen.count), "mean": seen.mean, "scatter": seen.scatter}
    write_atomic(state, lambda beside: torch.save({"identity": json.dumps(identity), "done": done, **tensors}, beside))


def _take_up(state: Path, identity: dict[str, Any]) -> tuple[Covariance, int]:
    """What a killed call saw, and of how many images; nothing where it was about something else."""
    seen = Covariance()
    try:
        found = torch.load(state, weights_only=True, map_location="cpu")
        if json.loads(found["identity"]) != identity:
            return seen, 0
        done = int(found["done"])
        seen.count, seen.mean, seen.scatter = int(found["count"]), found["mean"], found["scatter"]
    except Exception:  # missing, cut short, or no state at all: begin anew
        return Covariance(), 0
    return seen, done

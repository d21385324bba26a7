"""The PCA-whitening of region vectors: learned from a running covariance, saved, and loaded. Knows no networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.covariance import main_directions
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_atomic

FLOOR = 1e-5
"""Smallest variance that a direction is divided by, relative to the largest."""


class RunningCovariance:
    """Mean and scatter of rows, updated block by block in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Includes rows (M, D)."""
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

    def state_dict(self) -> dict[str, Any]:
        """Count, mean and scatter."""
        return {"count": self.count, "mean": self.mean, "scatter": self.scatter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.count, self.mean, self.scatter = state["count"], state["mean"], state["scatter"]

    def whitening(self, dims: int) -> Whitening:
        """Centers, projects on the `dims` main directions (or as many as there are), divides each by its standard
        deviation, where variances below `FLOOR` times the largest count as that much, and L2-normalizes.

        This is the floor of the papers' scripts. `clustering.Whitening.fit` zeroes such directions, which is better
        where the same rows are learned from and whitened; here other rows follow, which may differ in them.
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


def save_whitening(file: Path, whitening: Whitening, made_by: dict[str, Any]) -> None:
    """Writes a .safetensors with `made_by`, plain values that say which region vectors it is for, as metadata."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in whitening.state_dict().items()}
    metadata = {"format": "pt", "retrieval": json.dumps(made_by)}
    write_atomic(file, lambda part: save_file(tensors, part, metadata))


def load_whitening(file: str | Path) -> tuple[Whitening, dict[str, Any]]:
    """The whitening in a retrieval.safetensors, and the settings of its region vectors.

        whitening, made_by = load_whitening("runs/a/evaluation/retrieval.safetensors")
        whitening.transform(rows)      # (M, D) region vectors of length one -> (M, P), of length one

    Raises:
        DeepClusterError: the file is missing, damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            made_by = json.loads((handle.metadata() or {})["retrieval"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return Whitening().load_state_dict(tensors), made_by
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DeepClusterError(
            f"{file} holds no whitening of regions: give the retrieval.safetensors that `deepcluster evaluate RUN"
            " retrieval --whiten-on ...` wrote."
        ) from error

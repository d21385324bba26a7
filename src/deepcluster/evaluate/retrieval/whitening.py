"""The PCA-whitening of region vectors: learned from a running covariance, and loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.covariance import main_directions
from deepcluster.clustering.whitening import Whitening
from deepcluster.evaluate.tensor_file import read_tensors

KIND = "retrieval"
"""The entry of a file that holds a whitening."""
FLOOR = 1e-5
"""Smallest variance that a direction is divided by, relative to the largest."""


@dataclass
class RunningCovariance:
    """Mean and scatter of rows, updated block by block in float64 (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

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

    def whitening(self, dims: int) -> Whitening:
        """To the `dims` main directions, or as many as there are.

        Variances below `FLOOR` times the largest count as that much, as in the papers' scripts. `Whitening.fit` zeroes
        such directions, which is better where the rows it learns from are whitened; here other rows follow.
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


def load_whitening(file: str | Path) -> tuple[Whitening, dict[str, Any]]:
    """The whitening in a retrieval.safetensors, and the settings of its region vectors.

        whitening, made_by = load_whitening("runs/a/evaluation/retrieval.safetensors")
        whitening.transform(rows)      # (M, D) region vectors of length one -> (M, P), of length one

    Raises:
        DeepClusterError: the file is missing, damaged or something else.
    """
    made_by, tensors = read_tensors(file, KIND)
    return Whitening().load_state_dict(tensors), made_by

"""A run without an engine: colored squares, clustered by color, with curves that somebody made up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.errors import BadImage, DeepClusterError

HOSTILE = '<script>alert("1 & 2")</script>'


class Squares:
    """N plain squares whose shade is their number; counts how often an image is decoded."""

    def __init__(self, n: int, labels: np.ndarray | None, classes: tuple[str, ...], side: int = 20) -> None:
        self.n, self.labels, self.classes, self.side = n, labels, classes, side
        self.name = "somewhere/photos"
        self.gone: set[int] = set()
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.n

    def path(self, index: int) -> str:
        return f"{HOSTILE}/{index}.png"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        self.reads.append(index)
        if index in self.gone:
            raise BadImage("no such file")
        return np.full((self.side, self.side + 6, 3), index % 256, np.uint8)

    def fingerprint(self) -> str:
        return "abc"


class FakeRun:
    """What pictures use of `engine.runs.Run`, with the distances kept."""

    def __init__(self, folder: Path, source: Squares, k: int, assignment: np.ndarray, epochs: int) -> None:
        self.folder, self._source = folder, source
        self.assignment = assignment
        self.centroids = torch.zeros(k, 4)
        self.distance: np.ndarray | None = np.linspace(1, 0, len(source)).astype(np.float32)
        self.metrics = [line(epoch, k, len(source)) for epoch in range(epochs)]
        self.config: dict[str, Any] = {
            "preset": "tiny-deepcluster",
            "seed": 3,
            "data": source.name,
            "images": len(source),
            "source_fingerprint": "abc",
            "settings": {"epochs": 4, "batch_size": 32, "seed": 3, "image_size": 20, "method": {"k": k}},
            "versions": {"deepcluster": "0.1.0", "torch": "2.8.0"},
            "created": "2026-01-05T10:11:12+00:00",
        }

    def source(self) -> Squares:
        return self._source


class LostRun(FakeRun):
    """A run whose images have moved away."""

    def source(self) -> Squares:
        raise DeepClusterError("There is no folder somewhere/photos: give another.")


class NewRun(FakeRun):
    """A run that was killed before its first clustering."""

    @property
    def assignment(self) -> np.ndarray:
        raise DeepClusterError("no clusters yet")

    @assignment.setter
    def assignment(self, value: np.ndarray) -> None:
        pass


def line(epoch: int, k: int, n: int) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "epoch": epoch,
        "loss": math.log(k) * 0.9**epoch if k > 1 else 0.0,
        "nmi_previous": None if epoch == 0 else 0.5 + 0.01 * epoch,
        "reassigned": 1.0 if epoch == 0 else 0.4,
        "clusters_used": k,
        "size_min": 0,
        "size_max": n,
        "size_entropy": 0.9,
        "lr": 0.05,
        "images_per_second": 900.0 + epoch,
        "seconds_train": 2.0,
        "seconds_features": 0.5,
        "seconds_cluster": 0.25,
        "nmi_labels": 0.3,
        "purity": 0.6,
    }


def make_run(
    folder: Path, n: int = 60, k: int = 5, epochs: int = 4, labels: bool = True, kind: type[FakeRun] = FakeRun
) -> FakeRun:
    """A run of n images in k clusters; cluster 0 is empty where k > 1, and image 7 is bad."""
    assignment = np.arange(n) % max(k - 1, 1) + (k > 1)
    assignment[7] = -1
    marks = (np.arange(n) // 20).astype(np.int64) if labels else None
    classes = ("ant", HOSTILE, *(f"class {number}" for number in range(2, n))) if labels else ()
    return kind(folder, Squares(n, marks, classes), k, assignment, epochs)


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return make_run(tmp_path)

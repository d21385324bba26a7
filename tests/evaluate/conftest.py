"""A run without an engine: its features are the pixels themselves, so every score can be worked out apart."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.clustering.whitening import Whitening


class Source:
    """N points that pass for images."""

    def __init__(self, points: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...], name: str) -> None:
        self.points, self.labels, self.classes, self.name = points, labels, classes, name

    def __len__(self) -> int:
        return len(self.points)

    def path(self, index: int) -> str:
        return f"{self.name}/{index}"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        return np.zeros((2, 2, 3), np.uint8)

    def fingerprint(self) -> str:
        return self.name


class FakeRun:
    """What evaluators use of `engine.runs.Run`."""

    clustered = True
    device = "cpu"

    def __init__(self, source: Source, centroids: np.ndarray) -> None:
        self._source = source
        self.whitening = Whitening(centroids.shape[1], l2=False).fit(source.points[np.isfinite(source.points[:, 0])])
        self.centroids = torch.from_numpy(self.whitening.transform(centroids))
        self.assignment = self.assign(source).cluster
        self.model = SimpleNamespace(whitening=self.whitening)

    def embed(self, features: np.ndarray) -> np.ndarray:
        embedded: np.ndarray = self.whitening.transform(features)
        return embedded

    def source(self) -> Source:
        return self._source

    def pixels(self, data: Source) -> Any:
        return _Pixels(data)

    def features(self, data: Any, tap: str | None = None, check: Callable[[int], None] = lambda images: None) -> Any:
        points = data.points if hasattr(data, "points") else data.source.points
        check(len(points))
        return points if tap is None else points[:, :2]

    def assign(self, data: Source, check: Callable[[int], None] = lambda images: None) -> Any:
        place = self.whitening.transform(data.points)
        distance = np.linalg.norm(place[:, None] - self.centroids.numpy()[None], axis=2)
        bad = ~np.isfinite(place).all(axis=1)
        return SimpleNamespace(cluster=np.where(bad, -1, distance.argmin(axis=1)), distance=distance.min(axis=1))


class _Pixels:
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)


def blobs(n: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 5) float32 points about 3 centers, their labels, and the centers."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(3, 5)) * 3
    labels = random.integers(0, 3, n)
    return (centers[labels] + spread * random.normal(size=(n, 5))).astype(np.float32), labels, centers.astype("f4")


@pytest.fixture
def train_source() -> Source:
    points, labels, _ = blobs(90, 0)
    return Source(points, labels, ("ant", "bee", "cat"), "train")


@pytest.fixture
def run(train_source: Source) -> FakeRun:
    return FakeRun(train_source, blobs(1, 0)[2])

"""What pictures of clusters begin with: a run that has clusters, and images with the cluster of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deepcluster.data.cache import Pixels
from deepcluster.data.source import ImageSource, known_labels
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.engine.subject import Subject
from deepcluster.errors import BadImage, DeepClusterError

SILENT = Screen(quiet=True)


def mean_distances(cluster: np.ndarray, distance: np.ndarray, k: int) -> np.ndarray:
    """(K,) float32 mean distance to the center of each cluster, of the images of which it is known; NaN = of none.

    Args:
        cluster: (N,) int64, -1 = none.
        distance: (N,) to the own center, NaN = unknown.
    """
    known = (cluster >= 0) & np.isfinite(distance)
    total = np.bincount(cluster[known], distance[known], k)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.bincount(cluster[known], minlength=k), np.float32)


@dataclass(frozen=True)
class ClusteredImages:
    """N images in K clusters.

    Attributes:
        source: the images.
        cluster: (N,) int64, -1 = none.
        distance: (N,) float32 to the own center, NaN = unknown.
        k: number of clusters, empty ones included.
    """

    source: ImageSource
    cluster: np.ndarray
    distance: np.ndarray
    k: int

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, see `known_labels`."""
        return known_labels(self.source)

    @property
    def sizes(self) -> np.ndarray:
        """(K,) images in each cluster."""
        return np.bincount(self.cluster[self.cluster >= 0], minlength=self.k)

    @property
    def mean_distance(self) -> np.ndarray:
        """(K,) float32, see `mean_distances`."""
        return mean_distances(self.cluster, self.distance, self.k)


def clustered_images(subject: Subject, what: str, data: Any = None, screen: Screen = SILENT) -> ClusteredImages:
    """The images of `data`, assigned to a run's clusters.

    Args:
        what: the picture they are for, named in errors.
        data: what `open_images` takes; None = the images the run was trained on, with the clusters it kept.

    Raises:
        DeepClusterError: there are no clusters, or the images are gone or are others than the run was trained on.
    """
    run = require_clusters(subject, what)
    if data is None:
        source = run.source()
        check_training_images(run, source)
        return training_clusters(run, source)
    pixels = run.pixels(data)
    with screen.bar("images", len(pixels)) as bar:
        found = run.assign(pixels, bar)
    return ClusteredImages(pixels.source, np.asarray(found.cluster), np.asarray(found.distance), len(run.centroids))


def training_clusters(run: Run, source: ImageSource) -> ClusteredImages:
    """The training images with the clusters that the run kept."""
    assignment, distance = np.asarray(run.assignment), run.distance
    unknown = np.full(len(assignment), np.nan, np.float32)
    return ClusteredImages(source, assignment, unknown if distance is None else distance, len(run.centroids))


def require_run(subject: Subject, what: str) -> Run:
    """The subject; a DeepClusterError where it is a network alone and no run folder."""
    if not isinstance(subject, Run):
        raise DeepClusterError(
            f"{subject.name} has no clusters or curves, and `visualize {what}` draws them: give a run folder."
        )
    return subject


def require_clusters(subject: Subject, what: str) -> Run:
    """The subject; a DeepClusterError where it is a network alone, or a run without clusters."""
    run = require_run(subject, what)
    if not run.clustered:
        why = "has no clusters" if run.params.finds_clusters else "predicts rotations alone and has no clusters"
        raise DeepClusterError(f"{run.name} {why}, and `visualize {what}` draws them: give another run.")
    return run


def check_clusters(run: Run, numbers: Iterable[int], k: int) -> None:
    """A DeepClusterError where a number is none of the run's `k` clusters."""
    for number in numbers:
        if not 0 <= number < k:
            raise DeepClusterError(f"There is no cluster {number} in {run.folder}; its clusters are 0 to {k - 1}.")


def check_training_images(run: Run, source: ImageSource) -> None:
    """A DeepClusterError where the source does not hold the images that the run was trained on."""
    if len(source) != run.config["images"] or source.fingerprint() != run.config["source_fingerprint"]:
        raise DeepClusterError(
            f"{source.name} no longer holds the images that {run.folder} was trained on: put them back, or give --data."
        )


def open_pixels(subject: Subject, data: Any) -> Pixels:
    """The decoded images of `data`; None = those the run was trained on, which must still be there."""
    if data is None:
        data = subject.source()
        check_training_images(require_run(subject, "without --data"), data)
    return subject.pixels(data)


def require_labels(source: ImageSource) -> tuple[np.ndarray, list[str]]:
    """(N,) int64 classes of a source, -1 = none, and their names; a DeepClusterError where there are not two."""
    labels = known_labels(source)
    if labels is None:
        raise DeepClusterError(
            f"{source.name} has no labels, or one class alone: give --data a source with class folders."
        )
    return labels, [class_name(source.classes, number) for number in range(max(len(source.classes), labels.max() + 1))]


def class_name(classes: tuple[str, ...], label: int) -> str:
    """The name of a class, or "class 7" where it has none."""
    return classes[label] if label < len(classes) else f"class {label}"


def reader(source: ImageSource, side: int) -> Callable[[int], np.ndarray | None]:
    """`read(index)` for thumbnails of `side` pixels; it gives None for an image that cannot be read any more."""

    def read(index: int) -> np.ndarray | None:
        with suppress(BadImage, DeepClusterError, OSError, ValueError):
            return source.read(int(index), side)
        return None

    return read

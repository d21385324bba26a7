"""Images with the cluster of each: those a run was trained on, or any others it is shown.

This file does not draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.engine.health import rotation_only
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.data.cache import Pixels
    from deepcluster.data.source import ImageSource
    from deepcluster.engine.run import Run
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True)
class Groups:
    """N images in K clusters.

    Attributes:
        source: the images.
        cluster: (N,) int64, -1 = none.
        distance: (N,) float32 to the own center, NaN = unknown; None where nothing is known of any.
        k: number of clusters, empty ones included.
    """

    source: ImageSource
    cluster: np.ndarray
    distance: np.ndarray | None
    k: int

    @property
    def sizes(self) -> np.ndarray:
        """(K,) images in each cluster."""
        return np.bincount(self.cluster[self.cluster >= 0], minlength=self.k)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 classes, -1 = none.

        Raises:
            DeepClusterError: the images have none.
        """
        return labels_of(self.source)


def run_of(subject: Subject, what: str, *, clusters: bool = True) -> Run:
    """The subject as a run; where `clusters`, as one that has some.

    Raises:
        DeepClusterError: it is a network alone, or a run without clusters.
    """
    from deepcluster.engine.run import Run

    if not isinstance(subject, Run):
        raise DeepClusterError(
            f"{subject.name} has no clusters or curves, and `visualize {what}` draws them: give a run folder."
        )
    if clusters and not subject.clustered:
        why = "tells turns apart and has no clusters" if rotation_only(subject.config) else "has no clusters"
        raise DeepClusterError(f"{subject.name} {why}, and `visualize {what}` draws them: give another run.")
    return subject


def groups_of(run: Run, data: Any = None, pixels: Pixels | None = None, check: Any = lambda images: None) -> Groups:
    """The images of `data` with their clusters.

    Args:
        data: what `open_images` takes; None = the images the run was trained on, with the clusters it kept.
        pixels: the same images where they are decoded already.
        check: called with the number of images after each batch that is described.

    Raises:
        DeepClusterError: the images are gone, or are others than the run was trained on.
    """
    k = len(run.centroids)
    if data is not None:
        shown = run.pixels(data) if pixels is None else pixels
        found = run.assign(shown, check)
        return Groups(shown.source, np.asarray(found.cluster), np.asarray(found.distance), k)
    source, assignment = run.source(), np.asarray(run.assignment)
    same_length(run, source, assignment)
    return Groups(source, assignment, run.distance, k)


def same_length(run: Run, source: ImageSource, assignment: np.ndarray) -> None:
    """
    Raises:
        DeepClusterError: the source is not the one that was clustered.
    """
    if len(source) != len(assignment) or source.fingerprint() != run.config["source_fingerprint"]:
        raise DeepClusterError(
            f"{source.name} no longer holds the images that {run.folder} was trained on: put them back, or give --data."
        )


def labels_of(source: ImageSource) -> np.ndarray:
    """(N,) int64 classes of a source, -1 = none.

    Raises:
        DeepClusterError: it has none.
    """
    if source.labels is None or not (np.asarray(source.labels) >= 0).any():
        raise DeepClusterError(f"{source.name} has no labels: give --data a source whose paths have class folders.")
    return np.asarray(source.labels, dtype=np.int64)

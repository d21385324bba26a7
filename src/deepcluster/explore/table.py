"""The groups of a run in numbers, one row each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepcluster.visualize.clustered_images import mean_distances
from deepcluster.visualize.clusters import main_classes


@dataclass(frozen=True)
class Table:
    """G groups that have images, by number; -1 comes first where some images are in none.

    Attributes:
        number: (G,) int64.
        size: (G,) int64.
        distance: (G,) float32 mean distance to the center, NaN = unknown.
        label: (G,) int64 most frequent class, -1 = none.
        purity: (G,) float32 share of the labelled images that have it, NaN = unknown.
    """

    number: np.ndarray
    size: np.ndarray
    distance: np.ndarray
    label: np.ndarray
    purity: np.ndarray


def count(group: np.ndarray, own: np.ndarray, labels: np.ndarray | None) -> Table:
    """The table of (N,) groups, -1 = none, with (N,) distances to their centers, NaN = unknown, and (N,) labels."""
    place = group + 1  # -1 gets a place
    counts = np.bincount(place)
    number = np.flatnonzero(counts)
    distance = mean_distances(place, own, len(counts))
    classes = np.full(len(group), -1) if labels is None else labels
    main = (column[number - 1] for column in main_classes(group, classes, len(counts)))
    return Table(number - 1, counts[number], distance[number], *main)

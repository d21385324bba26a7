"""The nouns that pass from room to room: errors with one sentence, batches and clusterings.

This file knows nothing of images, networks or clustering algorithms, and loads torch only when it is used,
so that the command line can answer `--help` at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DeepClusterError(Exception):
    """A mistake a user can mend: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and ends with exit status 2, without a traceback.
    """


class BadImage(Exception):
    """One image that cannot be decoded; `str(error)` is the reason, written to `bad_images.csv`."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM was noticed between two batches; whoever holds state saves it and passes this on."""


@dataclass(frozen=True)
class Batch:
    """B images on their way through one training step.

    Attributes:
        index: (B,) int64 on the CPU, the position of each image in its source.
        views: one (B, 3, S, S) float tensor per view, normalized, on the training device.
        position: (B,) int64 on the CPU, the place of each image in the whole batch, whose images several processes
            may share and of which some could not be decoded.
        whole: images that the whole batch was to have.
        first: place of the whole batch's first image in the order that batches are cut from.
    """

    index: Tensor
    views: tuple[Tensor, ...]
    position: Tensor
    whole: int
    first: int = 0


@dataclass(frozen=True)
class Clustering:
    """N images in K groups.

    Attributes:
        assignment: (N,) int64, the cluster of each image; -1 = none (an image that cannot be decoded).
        centroids: (K, D) float32, in the space the clustering saw.
        distance: (N,) float32, Euclidean distance of each image to its own centroid; NaN where there is none.
        objective: sum of squared distances of the images to their centroids.
    """

    assignment: np.ndarray
    centroids: Tensor
    distance: np.ndarray
    objective: float

    @property
    def k(self) -> int:
        """Number of clusters, empty ones included."""
        return len(self.centroids)

    @property
    def sizes(self) -> np.ndarray:
        """(K,) int64, images in each cluster."""
        return np.bincount(self.assignment[self.assignment >= 0], minlength=self.k)


def seeded(*key: int) -> torch.Generator:
    """A CPU generator that depends on `key` alone, such as (seed, epoch, step).

    Every random draw of a run comes from such a key, so that a resumed run repeats the draws of an
    undisturbed one without any generator's history.
    """
    import torch

    return torch.Generator().manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """A well-mixed 63-bit seed that depends on `key` alone."""
    state = np.random.SeedSequence([int(part) & 0xFFFFFFFF for part in key]).generate_state(2, np.uint32)
    return (int(state[0]) << 32 | int(state[1])) & 0x7FFFFFFFFFFFFFFF

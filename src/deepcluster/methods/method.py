"""What every method of deep clustering is: images with an index in, a loss out, clusters now and then.

A method is an ordinary `nn.Module`. It knows neither files, loaders nor devices: the engine hands it
features (`describe`) and batches, saves its state, and steps the optimizers it asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.types import Batch, Clustering


@dataclass(frozen=True)
class Features:
    """Features of every image that can be decoded, or of this process's share of them.

    Attributes:
        index: (M,) int64, ascending positions in the source; each decodable image exactly once, on one process. The
            shares follow each other in the order of the processes.
        features: (M, D) float32, in memory or memory-mapped.
    """

    index: np.ndarray
    features: np.ndarray


def check_ranges(*settings: tuple[str, object, bool, str]) -> None:
    """Refuses the first setting that is out of its range.

    Args:
        settings: name, value, whether it is in range, and the range in words.

    Raises:
        DeepClusterError: that one, by its name on the command line.
    """
    for name, value, good, words in settings:
        if not good:
            raise DeepClusterError(f"--method.{name} is {value}: give {words}.")


ExtractFeatures = Callable[[], Features]
"""Runs the backbone once over all images. Given to `refresh` by the engine."""


class Method(nn.Module, ABC):
    """A way to teach a backbone from clusters. Subclasses are final.

    `backbone` and everything a subclass keeps per image are made at construction, as parameters or buffers,
    so that a checkpoint holds them from the first step on.
    """

    backbone: Backbone
    assignment: Tensor
    group: ProcessGroup = SINGLE
    turns: int = 1
    """Classes that each cluster makes, such as one for every turn of its images."""

    def join(self, group: ProcessGroup) -> None:
        """From now on the method is that of several processes: each calls everything with its own part of the batch
        and of the features, all get the same clusters, and their losses and gradients are to be added up.

        Called once, before anything is trained or restored; what a method divides among processes it divides here.
        """
        self.group = group

    @property
    def own(self) -> list[nn.Parameter] | None:
        """Parameters that only this process has, perhaps none; all others are the same on each, their gradients to be
        summed. None where no process has any of its own."""
        return None

    def full_state_dict(self) -> dict[str, Any]:
        """`state_dict` of what all processes hold together; every process must ask, the first one gets it. Loading it
        gives each process its part, however many there are."""
        return self.state_dict()

    def full_optimizer_states(self) -> dict[str, dict[str, Any]]:
        """The states of `optimizers()` likewise."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()}

    @property
    def last_assignment(self) -> Tensor:
        """(N,) int64, the assignment that the last `refresh` told, to compare the next one with."""
        return self.assignment

    @property
    def feature_network(self) -> Backbone:
        """The network that describes images, for clustering and for whoever uses the trained model."""
        return self.backbone

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of one batch; `loss` is the one that is minimized. Those of all processes add up to the loss
        of the whole batch."""

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the clusters are to be computed anew before optimizer step `step` (counted from 0)."""
        return False

    def refresh(self, describe: ExtractFeatures, key: tuple[int, ...]) -> Clustering | None:
        """Groups the images anew and takes the groups as targets. `key` seeds every random draw."""
        return None

    @abstractmethod
    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """(length,) int64, the images to train on, in order."""

    def after_step(self, batch: Batch) -> None:
        """Called after each optimizer step, for methods that keep memories."""

    def measured(self) -> dict[str, float]:
        """Figures of the method's own for the epoch that ends, beside those of the loop; counted anew afterwards."""
        return {}

    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers the method owns beside the backbone's, such as the head's; stepped and saved with it."""


def scatter_to_dataset(
    n: int, index: np.ndarray, z: np.ndarray, labels: np.ndarray, centroids: Tensor, group: ProcessGroup
) -> Clustering:
    """Labels (M,) and centroids (K, P) of whitened rows (M, P), told by position in the source; of all processes."""
    own = np.full(len(index), np.nan, np.float32)
    for start in range(0, len(index), 65536):
        part = slice(start, start + 65536)
        near = torch.as_tensor(labels[part])
        offset = (torch.as_tensor(z[part]).float() - centroids[near]).norm(dim=1)
        own[part] = torch.where(near >= 0, offset, torch.nan).numpy()
    assignment, distance = np.full(n, -1, np.int64), np.full(n, np.nan, np.float32)
    index = group.gather_array(index)
    assignment[index], distance[index] = group.gather_array(labels), group.gather_array(own)
    return Clustering(assignment, centroids, distance, float(np.nansum(distance.astype(np.float64) ** 2)))

"""What every method of deep clustering is: images with an index in, a loss out, clusters now and then.

A method is an ordinary `nn.Module`. It knows neither files, loaders nor devices: the engine hands it
features (`describe`) and batches, saves its state, and steps the optimizers it asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.models.backbone import Backbone
from deepcluster.records import Batch, Clustering, DeepClusterError


@dataclass(frozen=True)
class Described:
    """Features of every image that can be decoded.

    Attributes:
        index: (M,) int64, ascending positions in the source; each decodable image exactly once.
        features: (M, D) float32, in memory or memory-mapped.
    """

    index: np.ndarray
    features: np.ndarray


def in_range(*settings: tuple[str, object, bool, str]) -> None:
    """Refuses the first setting that is out of its range.

    Args:
        settings: name, value, whether it is in range, and the range in words.

    Raises:
        DeepClusterError: that one, by its name on the command line.
    """
    for name, value, good, words in settings:
        if not good:
            raise DeepClusterError(f"--method.{name} is {value}: give {words}.")


Describe = Callable[[], Described]
"""Runs the backbone once over all images. Given to `refresh` by the engine."""


class Method(nn.Module, ABC):
    """A way to teach a backbone from clusters. Subclasses are final.

    `backbone` and everything a subclass keeps per image are made at construction, as parameters or buffers,
    so that a checkpoint holds them from the first step on.
    """

    backbone: Backbone
    assignment: Tensor

    @property
    def reported(self) -> Tensor:
        """(N,) int64, the assignment that the last `refresh` told, to compare the next one with."""
        return self.assignment

    @property
    def describer(self) -> Backbone:
        """The network that describes images, for clustering and for whoever uses the trained model."""
        return self.backbone

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of one batch; `loss` is the one that is minimized."""

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the clusters are to be computed anew before optimizer step `step` (counted from 0)."""
        return False

    def refresh(self, describe: Describe, key: tuple[int, ...]) -> Clustering | None:
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

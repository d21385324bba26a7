"""What can be described and evaluated: a run, a file of weights, or a backbone by its name.

This file does not know what a run folder holds; `engine/run.py` does.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.distributed import SINGLE
from deepcluster.engine.assignment import Assignment
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone

CACHE_GB = 20.0
RESULTS = Path("evaluations")
"""Where results about a network that is not a run are written, in the current folder."""


class Subject:
    """A network in evaluation mode that images are shown to.

    Args:
        name: as the user wrote it.
        model: backbone, perhaps with clusters.
        device: where it computes.
        results: the folder its evaluations are written to.

    Attributes:
        clustered: whether it has clusters, as a trained run does.
        mark: of a run, another text for another model; results say which one they are of.
        group: the processes that share the describing of images; each then has all of the result.
    """

    clustered = False
    mark = ""
    group = SINGLE

    def __init__(self, name: str, model: Model, device: str, results: Path) -> None:
        self.name = name
        self.model = model
        self.device = device
        self.results = results
        self.cache_gb, self.workers = CACHE_GB, 0

    @property
    def backbone(self) -> Backbone:
        """The network, in evaluation mode."""
        return self.model.backbone

    @property
    def image_size(self) -> int:
        """Side of the images the backbone sees, in pixels."""
        return self.model.backbone.image_size

    @property
    def whitening(self) -> Whitening:
        """From features to the space of the centroids; DeepClusterError where there is none."""
        raise DeepClusterError(
            f"{self.name} has no whitening, which comes with most runs: use its features as they are (or `Run.embed`)."
        )

    def source(self) -> ImageSource:
        """The training images of a run; DeepClusterError for a network alone, which does not know them."""
        raise DeepClusterError(f"{self.name} is no run and brings no images of its own: give --data.")

    def pixels(self, data: Any) -> Pixels:
        """Any images, decoded as this network needs them."""
        return load_pixels(
            open_images(data), short_side=short_side(self.image_size), cache_gb=self.cache_gb, workers=self.workers
        )

    def features(
        self,
        data: Any,
        tap: str | None = None,
        check: Callable[[int], None] = lambda images: None,
        only: np.ndarray | None = None,
    ) -> np.ndarray:
        """(N, D) float32 features of any images, or of those at `only` (N,), before whitening; NaN rows for images that
        cannot be decoded."""
        pixels = data if hasattr(data, "gather") else self.pixels(data)
        index, features = self.model.features(pixels, only, tap=tap, device=self.device, check=check, group=self.group)
        if not self.group.is_single:
            # a process without a share does not know how wide a tap is
            width = self.group.max_(torch.tensor(features.shape[1] if len(features) else 0))
            index = self.group.gather_array(index)
            features = self.group.gather_array(features.reshape(-1, int(width)))
        rows = np.arange(len(pixels)) if only is None else only
        if len(index) == len(rows):
            return features
        table = np.full((len(rows), features.shape[1]), np.nan, np.float32)
        table[np.searchsorted(rows, index)] = features
        return table

    def nearest(self, data: Any, check: Callable[[int], None] = lambda images: None) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int64 cluster and (N,) float32 distance to its center, of any images; -1 and NaN for those that cannot
        be decoded."""
        pixels = data if hasattr(data, "gather") else self.pixels(data)
        index, features = self.model.features(pixels, device=self.device, check=check, group=self.group)
        found = self.model.nearest(features)
        cluster, distance = np.full(len(pixels), -1, np.int64), np.full(len(pixels), np.nan, np.float32)
        index = self.group.gather_array(index)
        cluster[index], distance[index] = (self.group.gather_array(column) for column in found)
        return cluster, distance

    def embed(self, features: np.ndarray) -> np.ndarray:
        """(M, P) float32 rows in the space of the centroids, of (M, D) backbone features."""
        return self.model.embed(features)

    @property
    def centroids(self) -> Tensor:
        """(K, P) in the space of `embed`."""
        return self.model.centroids

    def assign(self, data: Any, check: Callable[[int], None] = lambda images: None) -> Assignment:
        """The cluster and distance of any images, new ones too.

        Args:
            data: what `open_images` takes: a folder, shards, an array, a list of paths.

        Raises:
            DeepClusterError: a network alone, which has no clusters.
        """
        if not len(self.centroids):
            raise DeepClusterError(
                f"{self.name} is a network without clusters: group images by it with `deepcluster cluster S --backbone"
                f" {self.name} --out RUN`, and give that run."
            )
        pixels = data if hasattr(data, "gather") else self.pixels(data)
        cluster, distance = self.nearest(pixels, check)
        return Assignment([pixels.source.path(position) for position in range(len(pixels))], cluster, distance)

    def untrained(self, seed: int = 0) -> Subject:
        """The same network before anything was learned: drawn at random with `seed`."""
        before = copy.copy(self)
        before.name, before.clustered = f"{self.name}, untrained", False
        before.results = self.results / "untrained"  # what was found about the trained one stays
        before.model = dataclasses.replace(self.model, backbone=self._drawn(seed))
        return before

    def _drawn(self, seed: int) -> Backbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_backbone(**self.backbone.config).eval()


def short_side(size: int) -> int | None:
    """Pixels that decoded images are kept at: enough for crops of `size`; tiny images are kept as they are."""
    return None if size <= 64 else round(size * 256 / 224)

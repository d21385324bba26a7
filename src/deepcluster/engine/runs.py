"""A finished or running run, read back from its folder: features and clusters of any images.

`model.safetensors` alone carries backbone, whitening and centroids, so new images are assigned without the
training data, the checkpoint or the preset.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.sources import ImageSource, open_images
from deepcluster.engine import checkpoint
from deepcluster.engine.assignment import Assignment
from deepcluster.engine.log import read_metrics
from deepcluster.engine.model import MODEL, Model
from deepcluster.models.backbone import Backbone
from deepcluster.records import DeepClusterError

NEEDED = {"preset": str, "images": int, "settings": dict, "source_fingerprint": str}
"""What every run.json says: name -> type."""


class Run:
    """A run folder. `run.metrics`, `run.assignment`, `run.backbone`, `run.assign("photos/")`.

    Args:
        folder: what `deepcluster train` wrote.
        device: where features are computed.
    """

    def __init__(self, folder: Path | str, device: str = "auto") -> None:
        self.folder = Path(folder)
        self.device = pick_device(device)
        self.config = read_config(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, preset={self.config['preset']!r}, epochs={len(self.metrics)})"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per finished epoch."""
        return read_metrics(self.folder)

    @property
    def assignment(self) -> np.ndarray:
        """(N,) int64, the cluster of each training image; -1 = cannot be decoded."""
        file = self.folder / "assignment.npy"
        if not file.exists():
            raise DeepClusterError(
                f"{self.folder} has no clusters yet: go on with `deepcluster train --resume {self.folder}`."
            )
        return _column(file, "iu")

    @property
    def distance(self) -> np.ndarray | None:
        """(N,) float32, Euclidean distance of each training image to its center; NaN = cannot be decoded."""
        file = self.folder / "distance.npy"
        return _column(file, "f") if file.exists() else None

    @cached_property
    def model(self) -> Model:
        """Backbone, whitening or neck, and centroids of the last clustering."""
        file = self.folder / MODEL
        if not file.exists():
            raise DeepClusterError(
                f"{self.folder} has no model yet: go on with `deepcluster train --resume {self.folder}`."
            )
        return Model.load(file)

    @property
    def backbone(self) -> Backbone:
        """The trained network, in evaluation mode."""
        return self.model.backbone

    @property
    def whitening(self) -> Whitening:
        """From features to the space of the centroids.

        Raises:
            DeepClusterError: a run of an online method, which has a neck in its place; `embed` serves both.
        """
        whitening = self.model.whitening
        if whitening is None:
            raise DeepClusterError(
                f"{self.folder} is a run of an online method, which whitens nothing: use its features as they are (or"
                " `Run.embed`)."
            )
        return whitening

    def embed(self, features: np.ndarray) -> np.ndarray:
        """(M, P) float32 unit rows in the space of the centroids, of (M, D) backbone features."""
        return self.model.embed(features)

    @property
    def centroids(self) -> Tensor:
        """(K, P) in the space of `embed`."""
        return self.model.centroids

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight (K, D) and bias (K,) of the (first) classifier over clusters in the last checkpoint; None where there
        is no checkpoint or no such classifier.

        It was trained on the clusters before the last ones, which `centroids` are of, and together with the weights of
        that checkpoint, which `backbone` has in a finished run without averaging. A cosine classifier is told by its
        unit directions without bias, which choose the same cluster for every image.
        """
        file = self.folder / "checkpoints" / "last.ckpt"
        if not file.exists():
            return None
        state = checkpoint.load(file)["method"]
        if "heads.0.directions" in state:
            directions = torch.nn.functional.normalize(state["heads.0.directions"], dim=1)
            return directions, torch.zeros(len(directions))
        if "heads.0.linear.weight" in state:
            return state["heads.0.linear.weight"], state["heads.0.linear.bias"]
        return None

    @property
    def image_size(self) -> int:
        """Side of the images the backbone sees, in pixels."""
        return self.model.backbone.image_size

    def source(self) -> ImageSource:
        """The training images, opened again."""
        return open_images(self.config["data"])

    def pixels(self, data: Any) -> Pixels:
        """Any images, decoded as this run needs them."""
        settings = self.config["settings"]["data"]
        source = open_images(data)
        return load_pixels(
            source,
            short_side=short_side(self.image_size),
            cache_gb=settings["cache_gb"],
            workers=settings["workers"],
        )

    def features(
        self, data: Any, tap: str | None = None, check: Callable[[int], None] = lambda images: None
    ) -> np.ndarray:
        """(N, D) float32 features of any images, before whitening; NaN rows for images that cannot be decoded."""
        pixels = data if hasattr(data, "gather") else self.pixels(data)
        index, features = self.model.features(pixels, tap=tap, device=self.device, check=check)
        if len(index) == len(pixels):
            return features
        table = np.full((len(pixels), features.shape[1]), np.nan, np.float32)
        table[index] = features
        return table

    def assign(self, data: Any, check: Callable[[int], None] = lambda images: None) -> Assignment:
        """The cluster and distance of any images, new ones too.

        Args:
            data: what `open_images` takes: a folder, shards, an array, a list of paths.
        """
        pixels = data if hasattr(data, "gather") else self.pixels(data)
        index, features = self.model.features(pixels, device=self.device, check=check)
        cluster, distance = np.full(len(pixels), -1, np.int64), np.full(len(pixels), np.nan, np.float32)
        cluster[index], distance[index] = self.model.nearest(features)
        return Assignment([pixels.source.path(position) for position in range(len(pixels))], cluster, distance)


def load_run(folder: Path | str, device: str = "auto") -> Run:
    """Opens a run folder.

    Raises:
        DeepClusterError: the folder holds no run.
    """
    return Run(folder, device)


def read_config(folder: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        DeepClusterError: the folder holds no run, or its run.json is damaged.
    """
    file = folder / "run.json"
    if not file.is_file():
        what = "is not a run folder (it has no run.json)" if folder.is_dir() else "does not exist"
        raise DeepClusterError(f"{folder} {what}: give the folder that `deepcluster train ... --out` wrote.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeepClusterError(f"{file} is damaged ({error}): restore it or train again.") from error
    wrong = [name for name, kind in NEEDED.items() if not isinstance(found, dict) or type(found.get(name)) is not kind]
    if wrong:
        raise DeepClusterError(
            f"{file} is damaged (it does not say the run's {', '.join(wrong)}): restore it or train again."
        )
    return found


def _column(file: Path, kinds: str) -> np.ndarray:
    """(N,) numbers of an .npy file, of one of NumPy's `kinds`.

    Raises:
        DeepClusterError: the file is cut short or is something else.
    """
    try:
        found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in kinds:
            raise ValueError("it does not hold one number for each image")
    except (OSError, ValueError, EOFError) as error:
        why = (str(error).splitlines() or ["cut short"])[0]
        raise DeepClusterError(
            f"{file} is damaged ({why}): write it anew from the last checkpoint by `deepcluster train --resume"
            f" {file.parent}`."
        ) from error
    return found


def short_side(size: int) -> int | None:
    """Pixels that decoded images are kept at: enough for crops of `size`; tiny images are kept as they are."""
    return None if size <= 64 else round(size * 256 / 224)


def pick_device(name: str) -> str:
    """ "auto" becomes the first GPU, or the CPU.

    Raises:
        DeepClusterError: a device this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise DeepClusterError(f"There is no device {name!r} on this machine: use --device auto or cpu.")
    return name

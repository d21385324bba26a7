"""A finished or running run, read back from its folder: features and clusters of any images.

`model.safetensors` alone carries backbone, whitening and centroids, so new images are assigned without the
training data, the checkpoint or the preset.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.kmeans import nearest_centroids
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.sources import ImageSource, open_images
from deepcluster.engine.log import read_metrics
from deepcluster.features.extract import extract
from deepcluster.files import write_text, write_whole
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone
from deepcluster.records import Clustering, DeepClusterError

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Assignment:
    """The cluster of each of N images.

    Attributes:
        path: N printable paths.
        cluster: (N,) int64, -1 = cannot be decoded.
        distance: (N,) float32 to the cluster's center, in whitened features; NaN where there is none.
    """

    path: list[str]
    cluster: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.cluster)

    def save(self, file: Path | str) -> Path:
        """Writes index,path,cluster,distance as .csv or .parquet, whole or not at all.

        Raises:
            DeepClusterError: another ending.
        """
        file = Path(file)
        if file.suffix == ".parquet":
            return write_whole(file, self._parquet)
        if file.suffix == ".csv":
            return write_whole(file, self._csv)
        raise DeepClusterError(f"Assignments are written as .csv or .parquet, not as {file.name!r}: change --out.")

    def _csv(self, file: Path) -> None:
        with open(file, "w", newline="", encoding="utf-8") as handle:
            rows = csv.writer(handle)
            rows.writerow(["index", "path", "cluster", "distance"])
            for index, path in enumerate(self.path):
                distance = "" if np.isnan(self.distance[index]) else f"{self.distance[index]:.6g}"
                rows.writerow([index, path, int(self.cluster[index]), distance])

    def _parquet(self, file: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = {
            "index": np.arange(len(self), dtype=np.int64),
            "path": self.path,
            "cluster": self.cluster,
            "distance": pyarrow.array(self.distance, from_pandas=True),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


@dataclass
class Model:
    """Backbone, whitening and (K, D) centroids: all that features and assignments need."""

    backbone: Backbone
    whitening: Whitening
    centroids: Tensor

    def features(
        self,
        pixels: Pixels,
        *,
        tap: str | None = None,
        device: str = "cpu",
        batch_size: int = 256,
        file: Path | None = None,
        check: Callable[[int], None] = lambda images: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Index (M,) and features (M, D) of the images that can be decoded; see `features.extract`."""
        self.backbone.to(device)
        return extract(
            self.backbone,
            pixels,
            size=self.backbone.image_size,
            mean=self.backbone.mean,
            std=self.backbone.std,
            batch_size=batch_size,
            device=device,
            tap=tap,
            file=file,
            check=check,
        )

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cluster (M,) int64 and Euclidean distance (M,) float32 of (M, D) backbone features."""
        return nearest_centroids(self.whitening.transform(features), self.centroids)

    def save(self, file: Path) -> None:
        """One safetensors file; the metadata rebuilds the backbone."""
        from safetensors.torch import save_file

        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        tensors |= {f"whitening.{name}": value for name, value in self.whitening.state_dict().items()}
        tensors["centroids"] = self.centroids
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"format": "pt", "backbone": json.dumps(self.backbone.config)}
        write_whole(file, lambda beside: save_file(plain, beside, metadata))

    @classmethod
    def load(cls, file: Path) -> Model:
        """The inverse of `save`.

        Raises:
            DeepClusterError: missing, damaged, or not written by `save`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as handle:
                config = json.loads((handle.metadata() or {})["backbone"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError) as error:
            raise DeepClusterError(f"{file} is not a model that deepcluster saved: {error}.") from error

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        backbone = build_backbone(**config)
        backbone.load_state_dict(part("backbone."))
        whitening = Whitening()
        whitening.load_state_dict(part("whitening."))
        return cls(backbone.eval(), whitening, tensors["centroids"])


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
        return np.load(file, allow_pickle=False)

    @cached_property
    def model(self) -> Model:
        """Backbone, whitening and centroids of the last clustering."""
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
        """From features to the space of the centroids."""
        return self.model.whitening

    @property
    def centroids(self) -> Tensor:
        """(K, D) in whitened features."""
        return self.model.centroids

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


def named_model(name: str, image_size: int) -> Model:
    """A pretrained backbone by name, without clusters.

    Raises:
        DeepClusterError: an unknown name, or weights that cannot be had.
    """
    backbone = build_backbone(name, image_size=image_size, pretrained=True).eval()
    return Model(backbone, Whitening(), torch.zeros(0, backbone.dim))


def read_config(folder: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        DeepClusterError: the folder holds no run.
    """
    file = folder / "run.json"
    if not file.is_file():
        what = "is not a run folder (it has no run.json)" if folder.is_dir() else "does not exist"
        raise DeepClusterError(f"{folder} {what}: give the folder that `deepcluster train ... --out` wrote.")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise DeepClusterError(f"{file} is damaged ({error}): restore it or train again.") from error


def write_snapshot(folder: Path, model: Model, clustering: Clustering) -> None:
    """assignment.npy and model.safetensors, of the same clustering."""
    assignment = np.asarray(clustering.assignment, np.int64)
    model.save(folder / MODEL)

    def write(file: Path) -> None:
        with open(file, "wb") as handle:
            np.save(handle, assignment, allow_pickle=False)

    write_whole(folder / "assignment.npy", write)


def write_bad_images(folder: Path, pixels: Pixels) -> None:
    """bad_images.csv: index, path, reason; written even when there are none."""
    lines = ["index,path,reason"]
    for index, reason in sorted(pixels.bad.items()):
        path = pixels.source.path(index).replace('"', '""')
        lines.append(f'{index},"{path}","{reason.replace(chr(34), chr(39))}"')
    write_text(folder / "bad_images.csv", "\n".join(lines) + "\n")


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

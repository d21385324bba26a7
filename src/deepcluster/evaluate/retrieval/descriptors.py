"""Images -> region vectors of length one, perhaps whitened -> one descriptor per image. Knows no ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize

from deepcluster.clustering.covariance import main_directions
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels
from deepcluster.data.open import open_images
from deepcluster.digest import digest
from deepcluster.engine.subject import Subject
from deepcluster.errors import BadImage, DeepClusterError, first_line
from deepcluster.evaluate.linear.features import tap_shapes
from deepcluster.evaluate.retrieval.images import ImageSubset
from deepcluster.evaluate.retrieval.rmac import aggregate, pooled
from deepcluster.evaluate.tensor_file import read_tensors
from deepcluster.features.block_reader import normalize_rows
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps
from deepcluster.resume import ResumeFile

KIND = "retrieval"
"""The entry of a file that holds a whitening."""
FLOOR = 1e-5
"""Smallest variance that a direction is divided by, relative to the largest."""


@dataclass
class RunningCovariance:
    """Mean and scatter of rows, updated block by block in float64 (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Includes rows (M, D)."""
        rows = rows.double()
        mean = rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        if not self.count:
            self.count, self.mean, self.scatter = len(rows), mean, scatter
            return
        total, shift = self.count + len(rows), mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def whitening(self, dims: int) -> Whitening:
        """To the `dims` main directions, or as many as there are.

        Variances below `FLOOR` times the largest count as that much, as in the papers' scripts. `Whitening.fit` zeroes
        such directions, which is better where the rows it learns from are whitened; here other rows follow.
        """
        values, directions = main_directions(self.scatter / self.count, min(dims, len(self.mean)))
        values = values.clamp_min(0)
        peak = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        scale = values.clamp_min(max(FLOOR * float(values[0]), torch.finfo(torch.float64).tiny)).rsqrt()
        state = {
            "mean": self.mean,
            "components": directions * torch.where(peak < 0, -1.0, 1.0) * scale[:, None],
            "variance": values,
            "l2": torch.tensor(True),
            "whiten": torch.tensor(True),
        }
        return Whitening().load_state_dict(state)


def load_whitening(file: str | Path) -> tuple[Whitening, dict[str, Any]]:
    """The whitening in a retrieval.safetensors, and the settings of its region vectors.

        whitening, made_by = load_whitening("runs/a/evaluation/retrieval.safetensors")
        whitening.transform(rows)      # (M, D) region vectors of length one -> (M, P), of length one

    Raises:
        DeepClusterError: the file is missing, damaged or something else.
    """
    made_by, tensors = read_tensors(file, KIND)
    return Whitening().load_state_dict(tensors), made_by


Advance = Callable[[int], None]
PIXELS_PER_BATCH = {"cpu": 1 << 20, "cuda": 1 << 23}
"""By kind of device: one picture of 1024 x 768 on a CPU, whose caches a larger batch leaves."""


class PooledMaps:
    """The last feature map of a network, of images at their own aspect ratio, pooled by `rmac.pooled`.

    Args:
        pool, levels, power: see `rmac.pooled`.
        tap: the layer whose maps are pooled; None = the last one that has a map, which for AlexNet and VGG is the last
            convolution after its ReLU and before the last max-pool.
        long_side: pixels that the longer side of an image is resized to.
        block: images that are decoded together, after which work can be resumed; those of one size go through the
            network together.

    Attributes:
        settings: all that the region vectors depend on, in plain values.
        summary: how they are made, for the user.

    Raises:
        DeepClusterError: the tap does not exist or is no map.
    """

    def __init__(
        self,
        subject: Subject,
        pool: str,
        *,
        tap: str | None = None,
        long_side: int = 1024,
        levels: int = 3,
        power: float = 3.0,
        block: int = 64,
    ) -> None:
        self.backbone = subject.backbone.to(subject.device).eval()
        self.device = torch.device(subject.device)
        self.tap = last_map(self.backbone, tap)
        self.pool, self.long_side, self.levels, self.power, self.block = pool, long_side, levels, power, block
        self.settings = {"features": pool, "tap": self.tap, "long_side": long_side, **_network(self.backbone)}
        self.settings |= {"levels": levels} if pool == "rmac" else {"power": power} if pool == "gem" else {}
        how = {
            "rmac": f"{levels} levels of regions, 40 % overlap",
            "mac": "maximum",
            "spoc": "mean",
            "gem": f"mean of powers of {power:g}",
        }[pool]
        self.summary = f"{pool} of {self.tap}: {how}; images with a longer side of {long_side} px"

    def regions(
        self, images: ImageSubset, start: int, stop: int, advance: Advance
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Indices (B,) and region vectors (B, R, C) of length one of the images start … stop - 1, in batches of any
        order; images that cannot be decoded are left out. `advance` receives the number of images done."""

        def read(index: int) -> np.ndarray | None:
            try:
                return images.sized(index, self.long_side)
            except BadImage:
                return None

        by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        with ThreadPoolExecutor(4) as threads:
            for index, picture in zip(range(start, stop), threads.map(read, range(start, stop)), strict=True):
                if picture is None:
                    advance(1)
                else:
                    by_shape.setdefault(picture.shape, []).append((index, picture))
        for (height, width, _), pictures in by_shape.items():
            size = max(1, PIXELS_PER_BATCH.get(self.device.type, 1 << 20) // (height * width))
            for first in range(0, len(pictures), size):
                batch = pictures[first : first + size]
                vectors = self.pooled_maps(np.stack([picture for _, picture in batch]))
                if vectors is not None:
                    yield [index for index, _ in batch], vectors
                advance(len(batch))

    @torch.inference_mode()
    def pooled_maps(self, pictures: np.ndarray) -> Tensor | None:
        """(B, R, C) float32 region vectors on the CPU, of pictures (B, H, W, 3) uint8; None where they are too small or
        thin for the network to have a map of them.

        Raises:
            DeepClusterError: the network accepts images of one size only.
        """
        images = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        try:
            with read_taps(self.backbone, [self.tap]) as outputs:
                self.backbone(normalize(images, list(self.backbone.mean), list(self.backbone.std)))
        except (RuntimeError, AssertionError) as error:
            message = str(error)
            if "too small" in message or "greater than actual input" in message:
                return None
            if isinstance(error, AssertionError) or ("size" in message and "memory" not in message):
                raise DeepClusterError(
                    f"{self.backbone.name} cannot process an image of {pictures.shape[2]}x{pictures.shape[1]} px"
                    f" ({first_line(error)}): use --features pool."
                ) from error
            raise
        maps = outputs[self.tap].float()
        if getattr(self.backbone.trunk, "output_fmt", "NCHW") == "NHWC":  # some networks of timm
            maps = maps.permute(0, 3, 1, 2)
        return pooled(maps, self.pool, levels=self.levels, power=self.power).cpu() if maps.numel() else None


class NetworkOutput:
    """The output of a network, or the mean of the layer `tap`, as the command `features` gives it, L2-normalized.

    Its attributes are those of `PooledMaps`.
    """

    block = 4096  # a multiple of the batch that features are computed in, so that blocks change no bit

    def __init__(self, subject: Subject, tap: str | None = None) -> None:
        self.subject, self.tap = subject, tap
        self.settings = {"features": "pool", "tap": tap, "image_size": subject.image_size, **_network(subject.backbone)}
        output = tap or "the output of the network"
        self.summary = f"pool: {output}, as the command `features` gives it, L2-normalized"
        self._decoded: tuple[ImageSubset, Pixels] | None = None

    def regions(
        self, images: ImageSubset, start: int, stop: int, advance: Advance
    ) -> Iterator[tuple[list[int], Tensor]]:
        """See `PooledMaps.regions`; R = 1."""
        if self._decoded is None or self._decoded[0] is not images:
            # The whole source as it is: arrays need no decoding, and decoded images are found in the cache.
            self._decoded = images, self.subject.pixels(images.source if images.is_complete else images)
        table = self.subject.features(self._decoded[1], tap=self.tap, only=np.arange(start, stop), check=advance)
        good = np.flatnonzero(np.isfinite(table).all(axis=1))
        if len(good):
            yield (good + start).tolist(), normalize_rows(torch.from_numpy(table[good]))[:, None]


Extractor = PooledMaps | NetworkOutput
"""Makes region vectors of images."""


def learn_whitening(
    extractor: Extractor, images: ImageSubset, dims: int, *, resume: ResumeFile, advance: Advance
) -> dict[str, Tensor]:
    """The whitening of the region vectors of some images to at most `dims` dimensions, as its state; DeepClusterError
    where no image has any."""
    state = resume.state or {"done": 0, "covariance": {}}
    covariance, done = RunningCovariance(**state["covariance"]), state["done"]
    advance(done)
    for start in range(done, len(images), extractor.block):
        stop = min(start + extractor.block, len(images))
        for _, vectors in extractor.regions(images, start, stop, advance):
            covariance.add(vectors.flatten(0, 1))
        if resume.due:
            resume.save({"done": stop, "covariance": vars(covariance)})
    if not covariance.count:
        raise DeepClusterError("No image to learn the whitening on can be used: give --whiten-on other images.")
    return covariance.whitening(dims).state_dict()


def compute_descriptors(
    extractor: Extractor,
    images: ImageSubset,
    whitening: Whitening | None,
    *,
    resume: ResumeFile | None = None,
    advance: Advance = lambda images: None,
) -> Tensor:
    """(M, P) float32 descriptors of length one; NaN rows for images that cannot be used."""
    state = (None if resume is None else resume.state) or {"done": 0, "table": torch.full((len(images), 1), torch.nan)}
    table: Tensor = state["table"]
    advance(state["done"])
    for start in range(state["done"], len(images), extractor.block):
        stop = min(start + extractor.block, len(images))
        for indices, vectors in extractor.regions(images, start, stop, advance):
            descriptors = aggregate(vectors, whitening)
            if descriptors.shape[1] != table.shape[1]:  # the first ones tell the width
                table = torch.full((len(images), descriptors.shape[1]), torch.nan)
            table[indices] = descriptors
        if resume is not None and resume.due:
            resume.save({"done": stop, "table": table})
    return table


def load_descriptor(subject: Subject, file: str | Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function from M pictures (H, W, 3) uint8 to the (M, P) descriptors that the protocol computes.

        describe = load_descriptor(dc.load_run("runs/a"), "runs/a/evaluation/retrieval.safetensors")
        similarity = describe([picture]) @ np.load("runs/a/evaluation/retrieval.npy").T

    Raises:
        DeepClusterError: the file holds no whitening, or one of another network's region vectors.
    """
    whitening, made_by = load_whitening(file)
    if made_by["weights"] != digest(subject.backbone):
        raise DeepClusterError(
            f"The whitening in {file} is for another network than {subject.name}: give the one it was learned with."
        )
    options = {name: made_by[name] for name in ("tap", "long_side", "levels", "power") if name in made_by}
    pool = made_by["features"]
    extractor = NetworkOutput(subject, **options) if pool == "pool" else PooledMaps(subject, pool, **options)

    def describe(pictures: Sequence[np.ndarray]) -> np.ndarray:
        images = ImageSubset(open_images(list(pictures)), np.arange(len(pictures)))
        return compute_descriptors(extractor, images, whitening).numpy()

    return describe


def last_map(backbone: Backbone, tap: str | None = None) -> str:
    """The deepest layer that outputs feature maps, or `tap`; DeepClusterError where that does not exist or has none."""
    shapes = tap_shapes(backbone, backbone.taps if tap is None else [tap])
    maps = [name for name, shape in shapes.items() if len(shape) == 3]
    if not maps:
        advice = "use --features pool" + ("" if tap is None else f", or --tap with one of {', '.join(backbone.taps)}")
        where = "" if tap is None else f" in {tap}"
        raise DeepClusterError(f"{backbone.name} has{where} no layer that gives maps, which regions are of: {advice}.")
    return maps[-1]


def _network(backbone: Backbone) -> dict[str, Any]:
    return {"backbone": backbone.config, "weights": digest(backbone)}

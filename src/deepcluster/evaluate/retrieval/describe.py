"""Images of a source -> rows of unit length, by the last map of a network or by its output.

This file knows neither ground truth nor what is kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.whitening import normalize_rows
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.retrieval.pictures import CROPS, Chosen, read_ahead
from deepcluster.evaluate.retrieval.rmac import pooled
from deepcluster.features.feature_file import weights_digest
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps

if TYPE_CHECKING:
    from deepcluster.data.cache import Pixels
    from deepcluster.engine.subject import Subject

Check = Callable[[int], None]
WINDOW = 64  # pictures among which those of one size are looked at together
PIXELS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 23}
"""Pixels of a batch by kind of device: one picture of 1024 x 768 on a CPU, whose caches a larger batch leaves."""


class Describer(Protocol):
    """What makes rows of images."""

    identity: dict[str, Any]
    """All that its rows depend on, in plain values."""
    part: int
    """Images that are described between two writes to disk."""

    def rows(self, chosen: Chosen, start: int, stop: int, check: Check) -> Iterator[tuple[list[int], Tensor]]:
        """Indices (B,) of images and their rows (B, R, C) of length one, for the images start … stop - 1 in batches of
        any order; those that cannot be decoded are missing. `check` is told how many are done."""
        ...


class Maps:
    """The last map of a network, of images at their own shape, pooled as `rmac.pooled` does it.

    Args:
        subject: any network.
        pool: one of `rmac.POOLS`.
        tap: the layer whose maps are read; None = the last one that has a map, which for AlexNet and VGG is the last
            convolution after its ReLU and before the last max-pool.
        long_side: pixels that the longer side of an image is resized to.
        crop: what becomes of boxes; one of `pictures.CROPS`.
        levels: of R-MAC.
        power: of gem.

    Raises:
        DeepClusterError: the tap does not exist or is no map.
    """

    part = WINDOW

    def __init__(
        self,
        subject: Subject,
        pool: str,
        *,
        tap: str | None = None,
        long_side: int = 1024,
        crop: str = CROPS[0],
        levels: int = 3,
        power: float = 3.0,
    ) -> None:
        self.backbone = subject.backbone.to(subject.device).eval()
        self.device = torch.device(subject.device)
        self.tap = last_map(self.backbone, tap)
        self.pool, self.long_side, self.crop, self.levels, self.power = pool, long_side, crop, levels, power
        self.identity = {"features": pool, "tap": self.tap, "long_side": long_side, "crop": crop}
        self.identity |= {"levels": levels} if pool == "rmac" else {"power": power} if pool == "gem" else {}
        self.identity |= _network(self.backbone)

    def rows(self, chosen: Chosen, start: int, stop: int, check: Check) -> Iterator[tuple[list[int], Tensor]]:
        """See `Describer`; pictures of one size go through the network together."""
        for first in range(start, stop, WINDOW):
            window = list(range(first, min(first + WINDOW, stop)))
            alike: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
            for index, picture in read_ahead(chosen, window, self.long_side, self.crop):
                if isinstance(picture, BadImage):
                    check(1)
                else:
                    alike.setdefault(picture.shape, []).append((index, picture))
            for (height, width, _), pairs in alike.items():
                step = max(1, PIXELS_AT_ONCE.get(self.device.type, 1 << 20) // (height * width))
                for place in range(0, len(pairs), step):
                    batch = pairs[place : place + step]
                    described = self.look(np.stack([picture for _, picture in batch]))
                    if described is not None:
                        yield [index for index, _ in batch], described
                    check(len(batch))

    @torch.inference_mode()
    def look(self, pictures: np.ndarray) -> Tensor | None:
        """(B, R, C) float32 rows on the CPU, of pictures (B, H, W, 3) uint8; None where they are so small or thin that
        the network has no map of them.

        Raises:
            DeepClusterError: the network takes images of one size only.
        """
        images = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        mean, std = (torch.tensor(three, device=self.device).view(3, 1, 1) for three in _normal(self.backbone))
        try:
            with read_taps(self.backbone, [self.tap]) as seen:
                self.backbone((images - mean) / std)
        except (RuntimeError, AssertionError) as error:
            said = str(error)
            if "too small" in said or "greater than actual input" in said:
                return None
            if isinstance(error, AssertionError) or ("size" in said and "memory" not in said):
                raise DeepClusterError(
                    f"{self.backbone.name} cannot look at an image of {pictures.shape[2]}x{pictures.shape[1]} px"
                    f" ({(said.splitlines() or ['it takes one size'])[0]}): use --features pool."
                ) from error
            raise
        maps = _channels_first(self.backbone, seen[self.tap]).float()
        if not maps.shape[2] or not maps.shape[3]:
            return None
        return pooled(maps, self.pool, levels=self.levels, power=self.power).cpu()


class Output:
    """The output of a network, or the mean of a layer, as command `features` gives it, made of length one.

    Args:
        subject: any network.
        tap: a layer in place of the output.
    """

    part = 4096  # a multiple of the batch that features are computed in: parts are equal to the whole to the bit

    def __init__(self, subject: Subject, tap: str | None = None) -> None:
        self.subject, self.tap = subject, tap
        self.identity = {"features": "pool", "tap": tap, "image_size": subject.image_size, **_network(subject.backbone)}
        self._decoded: tuple[Chosen, Pixels] | None = None

    def rows(self, chosen: Chosen, start: int, stop: int, check: Check) -> Iterator[tuple[list[int], Tensor]]:
        """See `Describer`; R = 1."""
        from deepcluster.data.cache import window

        if self._decoded is None or self._decoded[0] is not chosen:
            # all of a source as it is: arrays need no decoding, and what is decoded already is found again
            self._decoded = chosen, self.subject.pixels(chosen.source if chosen.is_whole else chosen)
        table = self.subject.features(window(self._decoded[1], start, stop), tap=self.tap, check=check)
        good = np.flatnonzero(np.isfinite(table).all(axis=1))
        if len(good):
            yield (good + start).tolist(), normalize_rows(torch.from_numpy(table[good]))[:, None]


@torch.inference_mode()
def last_map(backbone: Backbone, tap: str | None = None) -> str:
    """The deepest layer that gives maps, or `tap` where it does.

    Raises:
        DeepClusterError: there is none, or `tap` does not exist or gives no maps.
    """
    side = backbone.image_size
    device = next(backbone.parameters()).device
    with read_taps(backbone, backbone.taps if tap is None else [tap]) as seen:
        backbone(torch.zeros(1, 3, side, side, device=device))
        maps = [name for name in backbone.taps if name in seen and seen[name].ndim == 4]
    if not maps:
        what = "has no layer" if tap is None else f"has in {tap} no layer"
        raise DeepClusterError(
            f"{backbone.name} {what} that gives maps, which regions are taken from: use --features pool"
            + (f", or --tap with one of {', '.join(backbone.taps)}." if tap is not None else ".")
        )
    return maps[-1]


def _channels_first(backbone: Backbone, maps: Tensor) -> Tensor:
    """Some networks of timm give (B, H, W, C)."""
    return maps.permute(0, 3, 1, 2) if getattr(backbone.trunk, "output_fmt", "NCHW") == "NHWC" else maps


def _normal(backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(backbone.mean), tuple(backbone.std)


def _network(backbone: Backbone) -> dict[str, Any]:
    return {"backbone": backbone.config, "weights": weights_digest(backbone)}

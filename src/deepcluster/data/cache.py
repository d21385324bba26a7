"""Decode once: `load_pixels` puts a source's images into memory or into a memory-mapped file.

What does not fit the budget is decoded on demand instead.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.cache_entry import Entry, evict, marks_of, open_entry, write_entry
from deepcluster.data.decode_pool import Decoded, decode_batch, decode_batches
from deepcluster.data.resident import ImagesOnDevice, fits, held
from deepcluster.data.source import ImageSource
from deepcluster.data.storage import cache_folder
from deepcluster.digest import digest
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError, counted, warn
from deepcluster.io import remove_leftovers
from deepcluster.reading import parse_json

#: Bytes up to which decoded images simply live in memory.
SMALL = 256 << 20
#: Raised when what is stored changes its form.
FORMAT = 2
#: Images decoded at a time.
CHUNK = 128
#: Images beyond which a sample without a single good one is taken for all.
MANY = 100_000

Progress = Callable[[int, int], None]
Gathered = Sequence[np.ndarray | None]


@dataclass(eq=False, repr=False)
class StoredPixels:
    """Images one after another in one uint8 array, in memory or memory-mapped."""

    source: ImageSource
    pixels: np.ndarray  # flat uint8
    sizes: np.ndarray  # (N, 2) int64 height and width; 0, 0 for a bad one
    bad: dict[int, str]  # index -> reason, of the images that cannot be decoded
    entry: Entry | None = None  # where they are kept; None = in memory
    on_device: Tensor | None = None  # the same on a GPU, see `hold`

    def __post_init__(self) -> None:
        lengths = self.sizes.prod(1) * 3
        self.offsets = np.cumsum(lengths) - lengths  # (N,) int64, where each image starts
        self.good = np.flatnonzero(self.sizes[:, 0] > 0)  # (n,) int64 indices not known to be bad, ascending
        if not len(self.good):
            index, reason = next(iter(self.bad.items()))
            raise DeepClusterError(
                f"of {counted(len(self), 'image')} of {self.source.name} none can be decoded; "
                f"the first is {self.source.path(index)}: {reason}"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def hold(self, device: torch.device) -> None:
        """From now on images are gathered from a GPU, where there is room for all."""
        if self.on_device is None and fits(self.pixels.nbytes, device):
            if self.entry is not None:
                self.entry.check(self.good, self.source)
            self.on_device = held(self.pixels, int(self.sizes[:, 1].max()), device)

    def gather(self, index: np.ndarray) -> Gathered:
        """The images (h, w, 3) uint8 of these indices; None for a bad one. Not to be written to."""
        index = np.asarray(index)
        if self.on_device is not None:
            return ImagesOnDevice(self.on_device, self.offsets[index], self.sizes[index])
        pixels = self.pixels
        if self.entry is not None:
            self.entry.check(index, self.source)
        return [
            pixels[start : start + height * width * 3].reshape(height, width, 3) if height else None
            for start, (height, width) in zip(self.offsets[index].tolist(), self.sizes[index].tolist(), strict=True)
        ]

    def gather_all(self, batches: Sequence[np.ndarray]) -> Iterator[Gathered]:
        """`gather` of one batch of indices after another."""
        return map(self.gather, batches)


@dataclass(eq=False, repr=False)
class StreamedPixels:
    """Images decoded whenever they are asked for; bad ones are found on the way."""

    source: ImageSource
    short_side: int | None  # in pixels, see `ImageSource.read`
    workers: int = 0  # decoding processes that `gather_all` may start; 0 = as many as there are cores
    image_bytes: float = 200_000  # about how large a decoded image is
    bad: dict[int, str] = field(default_factory=dict)  # index -> reason, as far as they have been met

    def __len__(self) -> int:
        return len(self.source)

    @property
    def good(self) -> np.ndarray:
        good = np.ones(len(self), bool)  # sets would sort: seconds for 10^8 images
        good[np.fromiter(self.bad, np.int64, len(self.bad))] = False
        return np.flatnonzero(good)

    def hold(self, device: torch.device) -> None:
        """Nothing: what does not fit into the cache is no smaller on a GPU."""

    def gather(self, index: np.ndarray) -> Gathered:
        decoded = decode_batch(self.source, np.asarray(index), self.short_side)
        self.bad.update(decoded.reasons)
        return decoded.images()

    def gather_all(self, batches: Sequence[np.ndarray]) -> Iterator[Gathered]:
        for decoded in decode_batches(self.source, batches, self.short_side, self.workers, self.image_bytes):
            self.bad.update(decoded.reasons)
            yield decoded.images()


Pixels = StoredPixels | StreamedPixels
"""The images of a source, decoded and, where asked, shrunk."""


def load_pixels(
    source: ImageSource,
    *,
    short_side: int | None,
    cache_gb: float,
    workers: int = 0,
    directory: Path | None = None,
    progress: Progress = lambda done, total: None,
    small: int = SMALL,
) -> Pixels:
    """The images of `source`, decoded once if they fit.

    Up to `small` bytes live in memory, up to `cache_gb` in a file under the cache folder, where the least recently
    used entries make room. Beyond, or where the folder cannot be written to, images are decoded on demand.

    Args:
        source: see `open_images`.
        short_side: shrink larger images to this shorter side, in pixels; None keeps their size.
        cache_gb: budget of the cache folder in GB (1e9 bytes); 0 = never keep decoded images.
        workers: decoding processes; 0 = as many as there are cores.
        directory: instead of `cache_folder()`.
        progress: called with (images done, N) while decoding.
        small: bytes of decoded images that are kept in memory and not in a file.

    Raises:
        DeepClusterError: not one image of the source can be decoded, or, of a large source, of a sample of it.
    """
    ready = _as_they_are(source, short_side)
    if ready is not None:
        return ready
    budget = int(cache_gb * 1e9)
    estimate = _estimate(source, short_side)
    each = max(1.0, estimate / len(source))
    if estimate > budget:
        return StreamedPixels(source, short_side, workers, each)
    chunks = np.array_split(np.arange(len(source)), max(1, -(-len(source) // CHUNK)))
    decoded = _counted(
        decode_batches(source, chunks, short_side, workers, each, digested=estimate > small), len(source), progress
    )
    if estimate <= small:
        return _in_memory(source, decoded, estimate)
    place = "the image cache"
    try:
        folder = (directory or cache_folder()) / "pixels"
        place = f"{place} {folder}"
        marks = marks_of(source)  # before anything is read
        entry = folder / digest(FORMAT, source.fingerprint(), short_side)
        found = open_entry(entry, source, short_side, marks, tell=True)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            evict(folder, budget - estimate)
            if shutil.disk_usage(folder).free < estimate * 1.05:
                raise OSError(f"it has less than {estimate / 1e9:.1f} GB left")
            found = write_entry(entry, source, short_side, decoded, marks)
    except OSError as error:
        warn(
            f"{place} cannot be used ({error.strerror or error}): images are decoded again in each "
            "epoch, which is slower; point DEEPCLUSTER_CACHE at a folder with room"
        )
        return StreamedPixels(source, short_side, workers, each)
    return StoredPixels(source, found.pixels, found.sizes, found.bad, found)


def _in_memory(source: ImageSource, arriving: Iterable[Decoded], estimate: int) -> StoredPixels:
    """The images one after another, about `estimate` bytes, copied as they arrive: they are never in memory twice, and
    nothing small is kept from among them, between which what is freed could not be used again."""
    pixels, end = np.empty(estimate + estimate // 8, np.uint8), 0  # what is not written to takes no memory
    sizes = np.zeros((len(source), 2), np.int64)
    bad: dict[int, str] = {}
    for part in arriving:
        last = end + len(part.pixels)
        if last > len(pixels):
            larger = np.empty(2 * last, np.uint8)
            larger[:end] = pixels[:end]
            pixels = larger
        pixels[end:last] = part.pixels
        sizes[part.index] = part.sizes
        end = last
        bad |= part.reasons
    return StoredPixels(source, pixels[:end], sizes, bad)


def _as_they_are(source: ImageSource, short_side: int | None) -> StoredPixels | None:
    """A source that is one array of RGB images, none to be shrunk, needs no copy."""
    block: np.ndarray | None = getattr(source, "block", None)
    if block is None or (short_side is not None and min(block.shape[1:3]) > short_side):
        return None
    return StoredPixels(source, block.reshape(-1), np.tile(block.shape[1:3], (len(block), 1)), {})


def _estimate(source: ImageSource, short_side: int | None) -> int:
    """Bytes that the decoded images will take, from up to 48 of them, evenly spaced."""
    sample = np.unique(np.linspace(0, len(source) - 1, 48).astype(int))
    decoded = decode_batch(source, sample, short_side)
    good = len(sample) - len(decoded.reasons)
    if not good and len(source) > MANY:
        index, reason = next(iter(decoded.reasons.items()))
        raise DeepClusterError(
            f"none of {len(sample)} images from all over the {len(source):,} of {source.name} can be decoded; "
            f"the first is {source.path(index)}: {reason}"
        )
    return int(decoded.pixels.nbytes / max(good, 1) * len(source) * (1.0 if good == len(source) else 1.1))


def _counted(arriving: Iterable[Decoded], total: int, progress: Progress) -> Iterator[Decoded]:
    done = 0
    for decoded in arriving:
        yield decoded
        done += len(decoded.index)
        progress(done, total)


def agree_on_bad(pixels: Pixels, group: ProcessGroup) -> None:
    """Tells all processes which images any of them could not decode."""
    if not group.is_single:
        for text in group.gather_strings(json.dumps(pixels.bad)):
            pixels.bad.update({int(index): reason for index, reason in parse_json(text).items()})
        if isinstance(pixels, StoredPixels):
            pixels.good = np.setdiff1d(pixels.good, np.fromiter(pixels.bad, np.int64, len(pixels.bad)))

"""Decoding on demand, by the one DataLoader of the package: for the pixel cache, and what does not fit into it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from deepcluster.data.decode import decode
from deepcluster.data.source import Encoded, ImageSource
from deepcluster.digest import short_digest
from deepcluster.errors import FEW_HANDLES, BadImage, DeepClusterError

#: Fewer images than this are decoded where we stand: starting processes would take longer.
FEW = 256
#: Bytes that travel between processes at a time: what waits in shared memory stays small, as containers allow little.
PIECE = 4 << 20
#: Files that may have to be opened beside those of the workers.
SPARE = 16


@dataclass(frozen=True)
class Decoded:
    """Some images of a source, decoded."""

    index: np.ndarray  # (n,) int64 positions in the source
    pixels: np.ndarray  # uint8, the images one after another, each (h, w, 3)
    sizes: np.ndarray  # (n, 2) int64 height and width; 0, 0 for one that cannot be decoded
    reasons: dict[int, str]  # index -> why it cannot be decoded
    digests: np.ndarray  # (n,) uint64 of the bytes they were decoded from; 0 where those were not asked for

    def images(self) -> list[np.ndarray | None]:
        """The n pictures (h, w, 3) as views of `pixels`; None for one that cannot be decoded."""
        ends = np.cumsum(self.sizes.prod(1) * 3)
        return [
            None if not height else self.pixels[end - height * width * 3 : end].reshape(height, width, 3)
            for end, (height, width) in zip(ends.tolist(), self.sizes.tolist(), strict=True)
        ]


def decode_batch(
    source: ImageSource, index: Sequence[int] | np.ndarray, short_side: int | None, digested: bool = False
) -> Decoded:
    """Read the images `index` of `source`, one after another; with the digests of their bytes if it is `Encoded`."""
    pictures: list[np.ndarray] = []
    sizes = np.zeros((len(index), 2), np.int64)
    reasons: dict[int, str] = {}
    digests = np.zeros(len(index), np.uint64)
    for row, position in enumerate(index):
        try:
            if digested and isinstance(source, Encoded):
                data = source.raw(int(position))
                digests[row] = short_digest(data)
                picture = decode(data, short_side)
            else:
                picture = source.read(int(position), short_side)
        except BadImage as error:
            reasons[int(position)] = str(error)
            continue
        sizes[row] = picture.shape[:2]
        pictures.append(np.ascontiguousarray(picture).reshape(-1))
    pixels = np.concatenate(pictures) if pictures else np.zeros(0, np.uint8)
    return Decoded(np.asarray(index, np.int64), pixels, sizes, reasons, digests)


def decode_batches(
    source: ImageSource,
    batches: Sequence[np.ndarray],
    short_side: int | None,
    workers: int = 0,
    image_bytes: float = 200_000,
    digested: bool = False,
) -> Iterator[Decoded]:
    """Decode `batches` of indices in their order, in `workers` processes (0: as many as there are cores).

    The result does not depend on the number of workers. `image_bytes` says about how large a decoded image is;
    `digested` as in `decode_batch`.
    """
    many = sum(map(len, batches)) > FEW
    count = (workers or os.cpu_count() or 1) if many else 0
    if count <= 1:
        for index in batches:
            yield decode_batch(source, index, short_side, digested)
        return
    together = max(1, int(PIECE / image_bytes))
    pieces = _Pieces(source, batches, together, short_side, digested)
    count = min(count, len(pieces))
    require_handles(6 * count + int(pieces.counts.max()))  # pipes of workers, pieces ahead and those of a batch
    loader = DataLoader(
        pieces,
        batch_size=None,
        shuffle=False,
        num_workers=count,
        collate_fn=_to_travel,
        prefetch_factor=2,
        generator=torch.Generator(),  # else it draws from, and so moves on, the global random state
    )
    arriving = iter(loader)
    for number in pieces.counts.tolist():
        parts = [next(arriving) for _ in range(number)]
        index, sizes, digests = (np.concatenate([part[k] for part in parts]) for k in (0, 2, 3))
        pixels = np.concatenate([part[1].numpy() for part in parts])
        reasons = {at: why for part in parts for at, why in part[4].items()}
        yield Decoded(index, pixels, sizes, reasons, digests)


def require_handles(count: int) -> None:
    """Makes sure that this process may open `count` more files: a worker that cannot send a result drops it, and who
    waits for it waits forever.

    Raises:
        DeepClusterError: it may not, and may not raise its limit so far either.
    """
    try:
        import resource

        taken = len(os.listdir("/dev/fd"))
    except (ImportError, FileNotFoundError):  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed, unlimited = taken + count + SPARE, resource.RLIM_INFINITY
    if soft != unlimited and needed > soft:
        if hard != unlimited and needed > hard:
            raise DeepClusterError(FEW_HANDLES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class _Pieces(Dataset[Decoded]):
    """Item k is piece k of all batches, decoded; a batch is cut, when it is asked for, into pieces of about `together`
    images: millions of pieces cut in advance would take seconds and memory."""

    def __init__(
        self, source: ImageSource, batches: Sequence[np.ndarray], together: int, short_side: int | None, digested: bool
    ) -> None:
        self.source, self.batches, self.short_side, self.digested = source, batches, short_side, digested
        sizes = np.fromiter(map(len, batches), np.int64, len(batches))
        self.counts = np.maximum(1, -(-sizes // together))
        self.ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, k: int) -> Decoded:
        batch = int(np.searchsorted(self.ends, k, "right"))
        first = int(self.ends[batch] - self.counts[batch])
        piece = np.array_split(self.batches[batch], self.counts[batch])[k - first]
        return decode_batch(self.source, piece, self.short_side, self.digested)


def _to_travel(batch: Any) -> tuple[np.ndarray, torch.Tensor, np.ndarray, np.ndarray, dict[int, str]]:
    """A tensor travels through shared memory, which takes an open file; the small rest through a pipe."""
    return batch.index, torch.from_numpy(batch.pixels), batch.sizes, batch.digests, batch.reasons

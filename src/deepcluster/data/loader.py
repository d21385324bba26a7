"""Batches of views in a given order, made ahead in a background thread."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.cache import Gathered, Pixels
from deepcluster.data.resident import ImagesOnDevice
from deepcluster.data.transforms import Transform
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.random import seeded
from deepcluster.types import Batch


@dataclass(eq=False, repr=False)
class Loader:
    """Iterates over `Batch`es, the same ones each time, whatever the prefetch, the workers or the first one."""

    pixels: Pixels
    order: Tensor | np.ndarray | Sequence[int]  # (n,) indices to show; those that cannot be decoded are left out
    _: KW_ONLY
    batch_size: int  # the last batch may be smaller
    transform: Transform
    key: tuple[int, ...] = (0,)  # what the draws depend on, such as (seed, epoch); batch i draws from (*key, i)
    start: int = 0  # first batch to give, so that a resumed epoch goes on where it stood
    device: torch.device | str = "cpu"  # where views are made and left
    prefetch: int = 2  # batches made ahead; 0 = each is made when it is asked for, by the asking thread
    empty: bool = False  # give batches of which no image can be decoded, too; else they are left out
    offset: int = 0  # number of the first batch, where these are part of a longer pass; what is drawn follows it
    # each process gets a contiguous part of each batch; with `empty`, each gets as many batches as the others
    group: ProcessGroup = SINGLE

    def __post_init__(self) -> None:
        indices, size = np.asarray(self.order, np.int64), self.batch_size
        self.batches = [indices[first : first + size] for first in range(0, len(indices), size)]

    def __len__(self) -> int:
        """Batches still to come: those before `start` are not counted."""
        return max(0, len(self.batches) - self.start)

    def __iter__(self) -> Iterator[Batch]:
        # Empty batches are left out here, not where they are made: the thread must notice that it is to stop.
        batches = prefetched(self._make(), self.prefetch) if self.prefetch > 0 else self._make()
        with contextlib.closing(batches):
            for batch in batches:
                if len(batch.index) or self.empty:
                    yield batch

    def _make(self) -> Generator[Batch, None, None]:
        parts = [index[slice(*self.group.row_range(len(index), 1))] for index in self.batches[self.start :]]
        for number, images in enumerate(self.pixels.gather_all(parts)):
            yield self._batch(self.start + number, parts[number], images)

    def _batch(self, number: int, index: np.ndarray, images: Gathered) -> Batch:
        """This process's part of batch `number`; images that cannot be decoded are left out."""
        whole = len(self.batches[number])
        first, last = self.group.row_range(whole, 1)
        # A stand-in keeps the draws of all others where they are; it is taken out again at the end.
        shown: Sequence[np.ndarray]
        if isinstance(images, ImagesOnDevice):
            keep, shown = np.flatnonzero(images.sizes[:, 0]).tolist(), images.stand_ins()
        else:
            keep = [row for row, image in enumerate(images) if image is not None]
            shown = [_STAND_IN if image is None else image for image in images]
        shown = shown if keep else [_STAND_IN]
        place = (first, whole) if keep else (0, 1)
        views = self.transform(shown, seeded(*self.key, self.offset + number), self.device, *place)
        if len(keep) < len(shown):
            views = tuple(view[keep] for view in views)
        position = torch.arange(first, last)[keep]
        return Batch(torch.from_numpy(index[keep]), views, position, whole, number * self.batch_size)


_STAND_IN = np.zeros((1, 1, 3), np.uint8)


def prefetched(items: Iterator[Batch], depth: int) -> Generator[Batch, None, None]:
    """`items`, made up to `depth` ahead by a thread, which ends when they do, fail, or are no longer asked for."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "deepcluster-loader")
    # One core for this thread's tensor work: the others train. The number belongs to this thread, but threads started
    # later inherit it, so it is set back here.
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    ready = deque(pool.submit(next, items, None) for _ in range(depth + 1))
    try:
        while (item := ready.popleft().result()) is not None:
            ready.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)

"""Batches of views in a given order, made ahead in a background thread.

A `Loader` gives the same batches bit for bit whatever the prefetch, the workers or the batch it starts at.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.augment import augment, plain
from deepcluster.data.cache import Pixels, StreamedPixels
from deepcluster.data.decode_pool import stream
from deepcluster.data.views import IMAGENET_MEAN, IMAGENET_STD, Views, draw
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.random import seeded
from deepcluster.types import Batch


class Loader:
    """Iterates over `Batch`es; may be iterated again, with the same result.

    Args:
        pixels: the pictures, from `load_pixels`.
        order: (n,) int64 indices to show, in order; one that cannot be decoded is left out of its
            batch, which is then smaller.
        batch_size: images a batch; the last may be smaller.
        views: what random views to make; None = the plain view.
        size: height and width of the plain view, in pixels.
        key: what the draws of this pass depend on, such as (seed, epoch); batch i draws from (*key, i).
        start: first batch to give, so that a resumed epoch goes on where it stood.
        device: where views are made and left.
        drop_last: leave out a last batch that is smaller.
        prefetch: batches made ahead; 0 = each is made when it is asked for, by the asking thread.
        empty: give batches of which no image can be decoded, too; else they are left out.
        offset: number of the first batch, where these are part of a longer pass; what is drawn follows it.
        group: the processes that share each batch, a contiguous part each; with
            `empty`, each gets as many batches as the others.
        mean: of the plain view's normalization, in [0, 1]; random views have their own.
        std: likewise.
    """

    def __init__(
        self,
        pixels: Pixels,
        order: Tensor | np.ndarray | Sequence[int],
        *,
        batch_size: int,
        views: Views | None = None,
        size: int = 224,
        key: tuple[int, ...] = (0,),
        start: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        prefetch: int = 2,
        empty: bool = False,
        offset: int = 0,
        group: ProcessGroup = SINGLE,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.pixels = pixels
        indices = np.asarray(order, np.int64)
        count = len(indices) // batch_size if drop_last else -(-len(indices) // batch_size)
        self.batch_size = batch_size
        self.batches = [indices[k * batch_size : (k + 1) * batch_size] for k in range(count)]
        self.views = views
        self.size = size
        self.key = tuple(key)
        self.start = start
        self.device = torch.device(device)
        self.prefetch = prefetch
        self.empty = empty
        self.offset = offset
        self.group = group
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        """Batches still to come: those before `start` are not counted."""
        return max(0, len(self.batches) - self.start)

    def __iter__(self) -> Iterator[Batch]:
        # Empty batches are left out here, not where they are made: a long row of them must notice that it is left.
        batches = ahead(self._make(), self.prefetch) if self.prefetch > 0 else self._make()
        with contextlib.closing(batches):
            for batch in batches:
                if len(batch.index) or self.empty:
                    yield batch

    def _make(self) -> Generator[Batch, None, None]:
        for number, (index, images) in enumerate(self._images(), self.start):
            yield self._batch(number, index, images)

    def _images(self) -> Iterator[tuple[np.ndarray, list[np.ndarray | None]]]:
        batches = [index[slice(*self.group.row_range(len(index), 1))] for index in self.batches[self.start :]]
        pixels = self.pixels
        if not isinstance(pixels, StreamedPixels):
            for index in batches:
                yield index, pixels.gather(index)
            return
        for decoded in stream(pixels.source, batches, pixels.short_side, pixels.workers, pixels.image_bytes):
            pixels.bad.update(decoded.reasons)
            yield decoded.index, decoded.images()

    def _batch(self, number: int, index: np.ndarray, images: list[np.ndarray | None]) -> Batch:
        """This process's part of batch `number`; images that cannot be decoded are left out."""
        whole = len(self.batches[number])
        first, last = self.group.row_range(whole, 1)
        keep = [row for row, image in enumerate(images) if image is not None]
        position = torch.arange(first, last)[keep]
        if not keep:
            size, count = (self.size, 1) if self.views is None else (self.views.size, self.views.count)
            return Batch(
                torch.from_numpy(index[keep]),
                (torch.empty(0, 3, size, size, device=self.device),) * count,
                position,
                whole,
            )
        # A stand-in keeps the draws of all others where they are; it is taken out again at the end.
        full = [_STAND_IN if image is None else image for image in images]
        if self.views is None:
            views: tuple[Tensor, ...] = (plain(full, self.size, self.device, self.mean, self.std),)
        else:
            generator = seeded(*self.key, self.offset + number)
            sizes = np.ones((whole, 2), np.int64)  # what is drawn for an image does not depend on the others
            sizes[first:last] = [image.shape[:2] for image in full]
            views = tuple(
                augment(full, draw(self.views, sizes, generator).part(first, last), self.views, self.device)
                for _ in range(self.views.count)
            )
        if len(keep) < len(full):
            views = tuple(view[keep] for view in views)
        return Batch(torch.from_numpy(index[keep]), views, position, whole, number * self.batch_size)


_STAND_IN = np.zeros((1, 1, 3), np.uint8)
_END = object()


def ahead(items: Iterator[Batch], depth: int) -> Generator[Batch, None, None]:
    """`items`, made up to `depth` ahead by a thread, which ends when they do, fail, or nobody asks any more."""
    ready: queue.Queue = queue.Queue(depth)
    stop, started = threading.Event(), threading.Event()
    threads = torch.get_num_threads()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        # One core for this thread's tensor work: the others train. The number is a thread's own, but is also
        # what threads born later start from, so the caller sets it back.
        torch.set_num_threads(1)
        started.set()
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # handed to whoever iterates
            put(error)

    thread = threading.Thread(target=work, name="deepcluster-loader", daemon=True)
    thread.start()
    started.wait()
    torch.set_num_threads(threads)
    try:
        while True:
            item = ready.get()
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()

"""One piece of work per core, each core on its own rows.

PyTorch splits every single operation over the cores and lets them wait for each other at its end. For
chains of operations small enough for a core's cache that is a thousand meetings a second, and as soon as
any other process takes one core, all wait for it: ten times slower on a busy machine of two cores. Here
each thread walks the whole chain on rows of its own, and they meet once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from deepcluster.features.product import blas

T = TypeVar("T")

_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("_pool", default=None)


@contextmanager
def team() -> Iterator[None]:
    """Inside, single operations stay on one thread and `over_spans` uses as many as torch did before."""
    threads = torch.get_num_threads()
    if _pool.get() is not None:
        yield
        return
    with blas().limit(limits=1):
        if threads == 1:
            yield
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            token = _pool.set(pool)
            torch.set_num_threads(1)
            try:
                yield
            finally:
                _pool.reset(token)
                torch.set_num_threads(threads)


def over_spans(work: Callable[[int, int], T], count: int, span: int) -> list[T]:
    """[work(0, span), work(span, 2 span), ...] up to `count`, in parallel inside a `team`."""
    spans = [(start, min(start + span, count)) for start in range(0, count, span)]
    pool = _pool.get()
    if pool is None or len(spans) == 1:
        return [work(*each) for each in spans]
    return list(pool.map(lambda each: work(*each), spans))


def members() -> int:
    """Threads that `over_spans` uses here."""
    pool = _pool.get()
    return 1 if pool is None else pool._max_workers

"""One piece of work per core, each core on its own rows.

PyTorch splits every single operation over the cores and lets them wait for each other at its end. For
chains of operations small enough for a core's cache that is a thousand meetings a second, and as soon as
any other process takes one core, all wait for it: ten times slower on a busy machine of two cores. Here
each thread walks the whole chain on rows of its own, and they meet once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def over_spans(work: Callable[[int, int], T], count: int, span: int) -> list[T]:
    """[work(0, span), work(span, 2 span), ...] up to `count`, on as many threads as torch uses."""
    spans = [(start, min(start + span, count)) for start in range(0, count, span)]
    threads = min(torch.get_num_threads(), len(spans))
    if threads <= 1:
        return [work(*each) for each in spans]
    whole = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda each: work(*each), spans))
    finally:
        torch.set_num_threads(whole)  # threads that begin later inherit the number that was set last

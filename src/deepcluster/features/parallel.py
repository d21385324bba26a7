"""One piece of work per core, each core on its own rows; and, where an engine is at work, per part of a table.

PyTorch splits every single operation over the cores and lets them wait for each other at its end. For
chains of operations small enough for a core's cache that is a thousand meetings a second, and as soon as
any other process takes one core, all wait for it: ten times slower on a busy machine of two cores. Here
each thread walks the whole chain on rows of its own, and they meet once.

An engine (`engine/ray_engine.py`) runs what reads all rows of a table in other processes, part by part. Results are
exact sums or lie in rows, so that they do not depend on the parts; without an engine the whole table is one part, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

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


class Kept(Protocol):
    """An object for each part of a table, which stays with the part from call to call."""

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """What `method(*columns, *arguments)` of each object gives, in the order of the parts."""


class Engine(Protocol):
    """Runs pieces of work, in any order and anew where a process was lost: each gives the same every time, and changes
    nothing but files that it writes and, for `keep`, its own object."""

    def cuts(self, count: int, step: int) -> list[tuple[int, int]]:
        """First and past-the-last row of the parts of a table of `count` rows, which is read `step` rows at a time."""

    def run(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> list[Any]:
        """[work(*call, *shared) for call in calls]."""

    def keep(self, make: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> Kept:
        """make(*call, *shared) for each call, which are the columns of one part each."""


class _Here:
    """No engine: one part, in this process."""

    def cuts(self, count: int, step: int) -> list[tuple[int, int]]:
        return [(0, count)]

    def run(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> list[Any]:
        return [work(*call, *shared) for call in calls]

    def keep(self, make: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> Kept:
        return _KeptHere([(call, make(*call, *shared)) for call in calls])


class _KeptHere:
    def __init__(self, objects: list[tuple[tuple[Any, ...], Any]]) -> None:
        self.objects = objects

    def each(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(kept, method)(*columns, *arguments) for columns, kept in self.objects]


_HERE = _Here()
_engine: ContextVar[Engine] = ContextVar("_engine", default=_HERE)


@contextmanager
def spread_by(engine: Engine) -> Iterator[None]:
    """Inside, what reads whole tables runs by this engine."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


def is_spread() -> bool:
    """Whether an engine is at work: what its processes are to read should lie in files."""
    return _engine.get() is not _HERE


def over_calls(work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> list[Any]:
    """[work(*call, *shared) for call in calls], by the engine; see `Engine`. `work` is a function of a module."""
    return _engine.get().run(work, calls, *shared)


def over_rows(work: Callable[..., Any], columns: Sequence[Any], *shared: Any) -> list[Any]:
    """work(*columns, *shared) of each part of a table, in the order of the parts.

    Args:
        columns: of one length: `Points`, `Rows`, tables, arrays or tensors of N rows; each part gets its rows of them.
            What `work` writes to must be memory-mapped, where there is more than one part.
        shared: what all parts get whole.
    """
    engine, calls = _cut(columns)
    return (engine if len(calls) > 1 else _HERE).run(work, calls, *shared)


def keep_over_rows(make: Callable[..., Any], columns: Sequence[Any], *shared: Any) -> Kept:
    """make(*columns, *shared) of each part of a table, kept for calls of its methods with these columns."""
    engine, calls = _cut(columns)
    return (engine if len(calls) > 1 else _HERE).keep(make, calls, *shared)


def _cut(columns: Sequence[Any]) -> tuple[Engine, list[tuple[Any, ...]]]:
    engine, count = _engine.get(), len(columns[0])
    cuts = engine.cuts(count, getattr(columns[0], "step", 1))
    whole = len(cuts) == 1
    return engine, [tuple(each if whole else rows_of(each, *cut) for each in columns) for cut in cuts]


def rows_of(table: Any, first: int, last: int) -> Any:
    """The rows from `first` to before `last`, of which those in files are not read."""
    return table.span(first, last) if hasattr(table, "span") else table[first:last]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(sum of n, ...) the (n, ...) rows of parts, one after another."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))

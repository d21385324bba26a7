"""Features and clusters of large tables by Ray (the extra [ray]): on all cores of a machine, or on a Ray cluster.

Parts of a table are pure pieces of work, which read the rows from their files. Ray runs a piece again where a process
or a machine is lost, gives waiting ones to machines that join, and rebuilds what a lost machine held. Results are those
of one process, see `features/parallel.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepcluster.distributed import ALIGN, ProcessGroup
from deepcluster.engine.ray_session import load_ray, ray_session
from deepcluster.errors import DeepClusterError, ProcessLost
from deepcluster.features.block_reader import file_offset
from deepcluster.features.parallel import spread_by, team
from deepcluster.reading import map_rows

if TYPE_CHECKING:
    from deepcluster.features.table import Part

PARTS_EACH = 2
"""Parts of a table for each core, so that one that is late or lost holds up little."""
PART_ROWS = 1 << 20
"""Rows of a part, at most."""
TRIES = 4
"""How often a piece of work is begun before its loss is told."""


@contextmanager
def ray_engine(cores: int | None = None) -> Iterator[RayEngine]:
    """Inside, what reads whole tables is spread by Ray: by the one that runs in this process already, by the cluster at
    RAY_ADDRESS, or else by one that is started on this machine, and ends with the context.

    Args:
        cores: of the one that is started; None = all that this process may use.

    Raises:
        DeepClusterError: Ray is not installed, nobody answers at the address, or its machines have no deepcluster.
    """
    ray = load_ray()
    session = nullcontext() if ray.is_initialized() else ray_session(ray, cores or torch.get_num_threads())
    with session:
        engine = RayEngine(ray)
        with spread_by(engine):
            yield engine


class RayEngine:
    """An `Engine` of features/parallel.py by Ray's tasks, and actors that describe images; `ray` is the module, after
    its init."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        ray.util.register_serializer(np.memmap, serializer=_place, deserializer=_map)
        self._call = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_call)
        self._update = ray.remote(num_cpus=1, max_retries=TRIES - 1, num_returns=2)(_update)

    @property
    def cores(self) -> int:
        """Cores of all machines, now."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def cuts(self, count: int, step: int) -> list[tuple[int, int]]:
        """Parts of whole steps, if there are enough of them; otherwise as processes would divide the rows."""
        least = PARTS_EACH * self.cores
        if count < least * step:
            step = ALIGN
        parts = max(1, min(-(-count // step), max(least, -(-count // PART_ROWS))))
        return [ProcessGroup(part, parts).row_range(count, step) for part in range(parts)]

    def run(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> list[Any]:
        """[work(*call, *shared) for call in calls], each in a process of its own."""
        common = self.ray.put((work, shared))
        return self.results([self._call.remote(common, *call) for call in calls])

    def keep(self, make: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> _Kept:
        """Objects that lie in Ray's store between the calls of their methods."""
        return _Kept(self, make, calls, shared)

    def results(self, pending: Sequence[Any]) -> list[Any]:
        """Of pieces of work, in their order; the first error of any of them, in its own words."""
        try:
            found: list[Any] = self.ray.get(list(pending))
        except Exception as error:
            # the others end by themselves: Ray 2.60 crashes this process where a piece is cancelled while it ends
            raise self._said(error) from None
        return found

    def _said(self, error: Exception) -> Exception:
        """What to tell the user of an error."""
        errors = self.ray.exceptions
        if isinstance(error, errors.RayTaskError) and isinstance(error.cause, Exception):
            error = error.cause  # what the work itself raised, or what was wrong with what it was sent
        if isinstance(error, errors.RaySystemError):
            why = str(error).strip().splitlines()[-1]
            return DeepClusterError(
                f"A machine of Ray's cannot read what it is sent ({why}): install the same deepcluster, with the same"
                " packages, on all of them."
            )
        if isinstance(error, errors.RayError):
            return ProcessLost(
                f"A piece of work was lost with its process {TRIES} times ({type(error).__name__}), mostly because"
                " memory ran out: free some, or give Ray fewer cores of each machine."
            )
        return error

    def part_writers(
        self, described: tuple[Any, ...], device: str, weights: str, count: int
    ) -> Callable[[list[Part]], Iterator[int]]:
        """The `elsewhere` of `write_parts`; for the arguments see `describe.part_writer`, of which `described` are the
        first four. DeepClusterError where GPUs are asked for, and the machines have none."""
        from deepcluster.engine.describe import part_writer  # which takes long, and clustering has no use for

        there = self.ray.cluster_resources().get("GPU", 0) > 0
        if device.startswith("cuda") and not there:
            raise DeepClusterError(f"No machine of Ray's has a GPU for --device {device}: use --device auto or cpu.")
        gpus = there and device.startswith(("cuda", "auto"))
        return lambda parts: self.pooled(part_writer, (*described, device, weights, count), parts, gpus)

    def pooled(
        self,
        make: Callable[..., Callable[..., Any]],
        arguments: tuple[Any, ...],
        calls: Iterable[tuple[Any, ...]],
        gpus: bool,
    ) -> Iterator[Any]:
        """`make(*arguments)(*call)` for each call, as they are finished, by one actor for each core or GPU that there
        is at the time; `make` is called once by each actor.
        """
        kind, needs = ("GPU", {"num_cpus": 1, "num_gpus": 1}) if gpus else ("CPU", {"num_cpus": 1})
        actor, made = self.ray.remote(**needs)(_Worker), self.ray.put((make, arguments))
        waiting, idle = deque((call, TRIES) for call in calls), list[Any]()
        busy: dict[Any, tuple[Any, tuple[Any, ...], int]] = {}
        while waiting or busy:
            room = int(self.ray.cluster_resources().get(kind, 1))
            while waiting and (idle or len(busy) < max(1, room)):
                worker = idle.pop() if idle else actor.remote()
                call, tries = waiting.popleft()
                busy[worker.call.remote(made, *call)] = worker, call, tries
            for done in self.ray.wait(list(busy), timeout=5)[0]:
                worker, call, tries = busy.pop(done)
                try:
                    yield self.ray.get(done)
                except Exception as error:
                    if tries > 1 and isinstance(error, self.ray.exceptions.RayActorError):
                        waiting.appendleft((call, tries - 1))
                        continue
                    raise self._said(error) from None
                idle.append(worker)


class _Kept:
    """A `Kept` of features/parallel.py. Columns and all calls are kept too: a lost object is made again from them."""

    def __init__(
        self, engine: RayEngine, make: Callable[..., Any], calls: Iterable[tuple[Any, ...]], shared: tuple[Any, ...]
    ) -> None:
        self.engine, self.history = engine, [engine.ray.put((make, shared))]
        self.columns = [tuple(map(engine.ray.put, call)) for call in calls]
        self.objects = [engine._call.remote(self.history[0], *columns) for columns in self.columns]

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """What `method(*columns, *arguments)` of each object gives."""
        self.history.append(self.engine.ray.put((method, arguments)))
        both = [
            self.engine._update.remote(kept, self.history[-1], *columns)
            for kept, columns in zip(self.objects, self.columns, strict=True)
        ]
        self.objects = [kept for kept, _ in both]
        return self.engine.results([found for _, found in both])


class _Worker:
    """An actor with something that takes long to make, such as a network on its device."""

    work: Callable[..., Any] | None = None

    def call(self, made: tuple[Callable[..., Callable[..., Any]], tuple[Any, ...]], *call: Any) -> Any:
        self.work = self.work or made[0](*made[1])
        return self.work(*call)


def _call(common: tuple[Callable[..., Any], tuple[Any, ...]], *call: Any) -> Any:
    work, shared = common
    with team():
        return work(*call, *shared)


def _update(kept: Any, call: tuple[str, tuple[Any, ...]], *columns: Any) -> tuple[Any, Any]:
    method, arguments = call
    with team():
        return kept, getattr(kept, method)(*columns, *arguments)


def _place(table: np.memmap[Any, Any]) -> tuple[Any, ...]:
    """Where the rows of a memory-mapped table lie: they are read there, and never sent."""
    offset = file_offset(table)
    if offset is None:
        return (np.array(table),)
    return Path(str(table.filename)).absolute(), table.dtype, offset, table.shape, table.mode != "r"


def _map(place: tuple[Any, ...]) -> Any:
    return place[0] if len(place) == 1 else map_rows(*place)

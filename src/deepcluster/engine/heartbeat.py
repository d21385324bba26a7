"""Notices a machine that lost its power or its network, of which no message tells the others."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time

import torch.distributed as dist

from deepcluster.errors import DeepClusterError

LOST_AFTER = "DEEPCLUSTER_LOST_AFTER"
"""Variable with the seconds after which a silent process is given up."""
SILENCE = 300.0
"""Where it is not set. Connections outlive a network that is away for less, where torchrun waits as long."""
BEATS = 20
"""How often in that time a process says that it is there, and asks for others."""
DONE = "done"


class Heartbeat:
    """Says every few seconds that this process is there, in the store by which the processes have met, and hears
    whether others are: the first process all of them, each other one the first.

    Args:
        over: set when this process is done.
    """

    def __init__(self, over: threading.Event) -> None:
        self.over, self.silence = over, _silence()
        self._heard: dict[int, float] = {}  # when other processes had a new word; those never heard are not missed
        self._thread = threading.Thread(target=self._run, daemon=True, name="deepcluster: heartbeat")
        self._thread.start()

    def is_lost(self) -> bool:
        """Whether another process has been silent for too long."""
        return time.monotonic() - min(self._heard.values(), default=math.inf) > self.silence

    def join(self) -> None:
        """Waits a moment, so that others hear that this process is done."""
        self._thread.join(1)

    def _run(self) -> None:
        pause = self.silence / BEATS
        while not dist.is_initialized():
            if self.over.wait(pause):
                return
        store = dist.distributed_c10d._get_default_store()
        if hasattr(store, "clone"):  # calls of one connection wait for each other; torch 2.8 has but one
            store = store.clone()
        rank, size = dist.get_rank(), dist.get_world_size()
        others = range(1, size) if rank == 0 else [0]
        words: dict[int, bytes] = {}
        for number in itertools.count():
            over = self.over.is_set()
            try:
                store.set(_key(rank), DONE if over else str(number))
                new = {} if over else {other: store.get(_key(other)) for other in others}
            except RuntimeError:  # the store is away, as others then are
                new = {}
            now = time.monotonic()
            heard = {k: now if word != DONE.encode() else math.inf for k, word in new.items() if word != words.get(k)}
            self._heard, words = self._heard | heard, words | new
            if over:
                return
            self.over.wait(pause)


def _silence() -> float:
    given = os.environ.get(LOST_AFTER, str(SILENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise DeepClusterError(f"{LOST_AFTER} is {given!r}: give a number of seconds above 0.")
    return seconds


def _key(rank: int) -> str:
    return f"deepcluster alive {rank}"

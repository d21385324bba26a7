"""How long the rest of a run takes, from the time that its parts have taken so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepcluster.errors import counted
from deepcluster.methods.base import Method

KINDS = ("step", "clustering", "epoch")
"""Parts of a run: optimizer steps, clusterings with the features before them, and what else the end of an epoch takes,
such as its checkpoint."""
FIRST_WORD = 10.0
"""Seconds after the first step at which the time that is left is said on a line of its own."""
UNITS = (("minutes", 60), ("hours", 3600), ("days", 86400))
GRID = 100
"""Steps per epoch in which clusterings are counted, at most."""


class Clock:
    """Measures the parts of a run and adds up those still to come; `known` are seconds of `KINDS` that were measured
    before, used until the run itself has some."""

    def __init__(
        self, method: Method, epochs: int, steps_per_epoch: int, known: Mapping[str, float] | None = None
    ) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.due = clusterings_due(method, epochs, steps_per_epoch)
        self.known = dict(known or {})
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.count = dict.fromkeys(KINDS, 0)
        self.began: float | None = None  # of the first step
        self.said = "step" in self.known  # whoever measured it has said it
        self.last = time.perf_counter()

    def lap(self, kind: str) -> None:
        """The time since the last lap was one of `kind`."""
        now = time.perf_counter()
        if kind == "step" and self.began is None:
            self.began = self.last
        if kind == "step" and self.count[kind] == 1 and self.seconds[kind] > 2 * (now - self.last):
            self.seconds[kind] = now - self.last  # the first step also allocates, or compiles
        self.seconds[kind] += now - self.last
        self.count[kind] += 1
        self.last = now

    def each(self, kind: str) -> float:
        """Mean seconds of a part of this kind."""
        return self.seconds[kind] / self.count[kind] if self.count[kind] else self.known.get(kind, 0.0)

    def left(self, step: int) -> float:
        """Seconds until the end of the run, after `step` optimizer steps."""
        done = step / self.steps_per_epoch
        clusterings = len(self.due) - int(np.searchsorted(self.due, done - 1e-9)) + 1
        steps = self.epochs * self.steps_per_epoch - step
        parts = {"step": steps, "clustering": clusterings, "epoch": self.epochs - int(done)}
        return sum(count * self.each(kind) for kind, count in parts.items())

    def first_word(self, step: int) -> str:
        """The estimate of the whole run, once, when some steps are done; otherwise empty."""
        if self.said or self.began is None or time.perf_counter() - self.began < FIRST_WORD:
            return ""
        self.said = True
        return (
            f"about {duration(self.left(step))} left: {counted(self.epochs, 'epoch')} of"
            f" {counted(self.steps_per_epoch, 'step')}"
        )


def clusterings_due(method: Method, epochs: int, steps_per_epoch: int) -> np.ndarray:
    """(C,) ascending: epochs done before each clustering, the last one at the end of the run not counted."""
    grid = min(GRID, steps_per_epoch)
    return np.array([step / grid for step in range(epochs * grid) if method.due(step, grid)])


def known_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the rows of metrics.jsonl tell a resumed run of the time that its clusterings take."""
    found = [(row.get("seconds_features") or 0.0) + (row.get("seconds_cluster") or 0.0) for row in rows]
    found = [seconds for seconds in found if seconds > 0]
    return {"clustering": sum(found) / len(found)} if found else {}


def duration(seconds: float) -> str:
    """Seconds in words: 50 s, 7.5 minutes, 3.2 hours, 4.0 days."""
    if seconds < 90:
        return f"{seconds:.{int(seconds < 10)}f} s"
    unit, size = next(((unit, size) for unit, size in UNITS if seconds < 90 * size), UNITS[-1])
    return f"{seconds / size:.{int(seconds < 10 * size)}f} {unit}"

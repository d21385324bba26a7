"""Trainings one after another, written down after every epoch, so that a killed evaluation goes on to the bit.

This file does not know what the stages are for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.training import Training
from deepcluster.io import write_atomic

EachEpoch = Callable[[Training, int], dict[str, Any] | None]
"""Told of the epochs done; what it gives is remembered as the stage's notes, which it is given back by `notes`."""


class Stages:
    """What is done of an evaluation, in memory and beside its result.

    Args:
        file: where to.
        key: all that the numbers depend on; a file with another key is begun anew.
        screen: shows bars and a line an epoch.
        pause: called when the state after an epoch is on disk; may raise to stop.
    """

    def __init__(self, file: Path, key: Any, screen: Screen, pause: Callable[[], None] = lambda: None) -> None:
        self.file = file
        self.key = json.dumps(key, sort_keys=True, default=str)
        self.screen = screen
        self.pause = pause
        self.done: dict[str, Any] = {}
        self.current: dict[str, Any] | None = None
        self.notes: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        if not self.file.is_file():
            return
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            same = state["key"] == self.key
            done, current = state["done"], state["current"]
        except Exception as error:  # torch fails in many ways at files that are damaged or refused
            raise DeepClusterError(
                f"{self.file} is damaged and cannot be gone on from: remove it to begin anew."
            ) from error
        if same:
            self.done, self.current = done, current
            self.screen.say(f"{self.file} holds an unfinished evaluation of the same settings: going on from there")

    def run(
        self,
        name: str,
        begin: Callable[[], Training],
        finish: Callable[[Training], Any],
        each_epoch: EachEpoch | None = None,
    ) -> Any:
        """What `finish` gave or gives, plain values, when all epochs of the stage are done."""
        if name in self.done:
            return self.done[name]
        training = begin()
        first, self.notes = 0, {}
        if self.current is not None and self.current["name"] == name:
            training.load_state(self.current["training"])
            first, self.notes = self.current["epochs"], self.current["notes"]
        for epoch in range(first, training.epochs):
            with self.screen.bar(f"{name}, epoch {epoch + 1}/{training.epochs}", len(training.part)) as advance:
                loss = training.epoch(epoch, advance)
            self.screen.say(f"{name}: epoch {epoch + 1}/{training.epochs}  loss {loss:.4f}")
            self.notes = (each_epoch(training, epoch + 1) if each_epoch else None) or self.notes
            self.current = {
                "name": name,
                "epochs": epoch + 1,
                "training": training.state(),
                "notes": self.notes,
            }
            self._write()
            self.pause()
        self.done[name] = finish(training)
        self.current = None
        self._write()
        return self.done[name]

    def finished(self) -> None:
        """Takes the file away."""
        self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        state = {"key": self.key, "done": self.done, "current": self.current}
        write_atomic(self.file, lambda beside: torch.save(state, beside))

"""Screens that count the optimizer steps of an evaluation and end it after some."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deepcluster.engine.log import Bar, Screen
from deepcluster.errors import Interrupted


class Steps(Screen):
    """`count` optimizer steps are done; `act` is called with their number after each, before anything is saved."""

    def __init__(self, act: Callable[[int], object] = lambda count: None) -> None:
        super().__init__(quiet=True)
        self.count, self.act = 0, act

    @contextmanager
    def bar(self, what: str, total: int, unit: str = "images") -> Iterator[Bar]:
        screen = self

        class Counting(Bar):
            def __call__(self, images: int = 1) -> None:
                screen.count += images
                screen.act(screen.count)

        with super().bar(what, total, unit) as bar:
            yield Counting(bar.progress, bar.task) if unit == "batches" else bar


def stopping(after: int, error: BaseException | None = None) -> Steps:
    """Ends an evaluation after so many steps and what is saved of them, without a word."""

    def stop(count: int) -> None:
        if count > after:
            raise error or Interrupted("enough")

    return Steps(stop)


def interrupting(after: int) -> Steps:
    """Presses Ctrl-C within the last of so many steps."""
    return Steps(lambda count: os.kill(os.getpid(), signal.SIGINT) if count == after else None)

"""A preset: a whole run by name, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

from deepcluster.config import TrainRun


@dataclass(frozen=True)
class Preset:
    """Settings with a conscience.

    Attributes:
        run: every value.
        about: the source of the values, the command, the expected cost and score.
    """

    run: TrainRun
    about: str

    @property
    def summary(self) -> str:
        """The first sentence of `about`."""
        return self.about.strip().split("\n")[0]

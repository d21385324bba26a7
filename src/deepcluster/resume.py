"""One file of unfinished work, from which a killed evaluation goes on to the bit.

Work is a row of named stages, such as one training for each seed. The file holds the results of the finished stages
and the state of the one that was running. This module does not know what the stages do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_torch
from deepcluster.reading import load_torch

Result = TypeVar("Result")
FORM = 2
"""Of what stages save: a file of another form belongs to other work."""


class ResumeFile:
    """Unfinished work on disk, removed by `remove` when all of it is done. A file that belongs to other work (other
    settings, weights or images) is not used, and is replaced by the first `save`.

    Args:
        file: where to, such as RUN/evaluation/linear.state.
        depends_on: all that the results depend on; whatever `digest` takes.
        save_seconds: a running stage should save about this often; see `due`.
        say: receives one line when work is continued, or when the file belongs to other work.

    Raises:
        DeepClusterError: the file is damaged, or holds something else.
    """

    def __init__(
        self,
        file: Path,
        depends_on: Any,
        *,
        save_seconds: float = 300.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.file = file
        self.digest = digest(FORM, depends_on)
        self.save_seconds = save_seconds
        self._saved = time.monotonic()
        self._results: dict[str, Any] = {}
        self._stage: str | None = None  # the stage that `_state` is of
        self._state: dict[str, Any] | None = None
        self._running: str | None = None
        content = self._read()
        if content is not None and content["digest"] == self.digest:
            self._results, self._stage, self._state = content["results"], content["stage"], content["state"]
            say(f"{file} holds the state of the same evaluation: continuing from there")
        elif content is not None:
            say(
                f"{file} belongs to an evaluation with other settings, weights or images, or of another version:"
                " starting from the beginning"
            )

    def run(self, stage: str, work: Callable[[], Result]) -> Result:
        """The result of a stage: the saved one where it was finished, else what `work` returns.

        Args:
            stage: name, unique within this work.
            work: may call `state` and `save`; returns tensors and plain values only (loaded with `weights_only`).
        """
        if stage not in self._results:
            self._running = stage
            self._results[stage] = work()
            self._stage = self._state = self._running = None
            self._write()
        result: Result = self._results[stage]
        return result

    @property
    def state(self) -> dict[str, Any] | None:
        """The last saved state of the running stage; None at its beginning."""
        return self._state if self._stage == self._running else None

    @property
    def due(self) -> bool:
        """Whether the last save is `save_seconds` ago or more."""
        return time.monotonic() - self._saved >= self.save_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state of the running stage: tensors and plain values."""
        self._stage, self._state = self._running, state
        self._write()

    def remove(self) -> None:
        """Deletes the file: the work is done and its results are elsewhere."""
        self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {"digest": self.digest, "results": self._results, "stage": self._stage, "state": self._state}
        write_torch(self.file, content)
        self._saved = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        if not self.file.is_file():
            return None
        try:
            content = load_torch(self.file)
            return {name: content[name] for name in ("digest", "results", "stage", "state")}
        except Exception as error:  # torch fails in many ways at files that are damaged or want to run code
            raise DeepClusterError(
                f"{self.file} is damaged, so the evaluation cannot be continued: delete it to start from the beginning."
            ) from error

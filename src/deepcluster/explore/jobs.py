"""Background jobs: each has a title, a progress, and a result or an error message."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from deepcluster.errors import DeepClusterError


class Pending(Exception):
    """The result is still being computed; the job has its progress."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.title)
        self.job = job


class Stopped(Exception):
    """The explorer is being closed: the job ends here."""


class Job:
    """A computation in its own thread, started when it is first needed.

    Args:
        title: what the page calls it.
        work: computes the result; gets the job, whose `tell` it calls now and then.
    """

    def __init__(self, title: str, work: Callable[[Job], Any]) -> None:
        self.title, self._work = title, work
        self.state = "waiting"
        self.error = ""
        self.count = self.total = 0
        self.stage = title
        self.result: Any = None
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> Job:
        """Start it, unless it was started before."""
        with self._lock:
            if self.state == "waiting":
                self.state, self.error, self.count, self.total = "running", "", 0, 0
                self._ended.clear()
                self._thread = threading.Thread(target=self._run, name=f"explore: {self.title}", daemon=True)
                self._thread.start()
        return self

    def tell(self, count: int, total: int, stage: str | None = None) -> None:
        """Report progress; Stopped is raised where the job must end."""
        self.count, self.total = int(count), int(total)
        self.stage = stage or self.stage
        if self._stop.is_set():
            raise Stopped

    def wait(self, seconds: float | None = None) -> Any:
        """The result, as soon as it is available; None if that takes longer, a DeepClusterError with the reason if it
        failed."""
        self._ended.wait(seconds)
        if self.state == "failed":
            raise DeepClusterError(self.error)
        return self.result

    def need(self) -> Any:
        """The result of the job, which is started if it has not been; Pending while it is being computed, and a
        DeepClusterError if it failed."""
        self.start().wait(0.15)  # what takes an instant needs no second request
        if self.state != "done":
            raise Pending(self)
        return self.result

    def reset(self) -> None:
        """Let a failed job be started again."""
        with self._lock:
            if self.state == "failed":
                self.state = "waiting"

    def stop(self, seconds: float = 5.0) -> None:
        """Ask it to end, and wait a little for that."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {name: getattr(self, name) for name in ("title", "state", "stage", "count", "total", "error")}

    def _run(self) -> None:
        try:
            self.result = self._work(self)
            self.state = "done"
        except Stopped:
            self.state = "waiting"
        except Exception as error:  # whatever it is, the page must not wait forever
            self.error = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, (DeepClusterError, OSError, MemoryError)):
                self.error = f"{type(error).__name__}: {self.error}"
            self.state = "failed"
        finally:
            self._ended.set()

"""Long steps that go on behind the page: each has a name, a progress, and a result or a sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from deepcluster.errors import DeepClusterError


class Stopped(Exception):
    """The explorer is being closed: whoever works ends here."""


class Job:
    """One step in a thread of its own, begun when it is first needed.

    Args:
        title: what the page calls it.
        work: does it; is handed the job, whose `tell` it calls now and then.
        done: called with the result before it can be seen.
    """

    def __init__(self, title: str, work: Callable[[Job], Any], done: Callable[[Any], None] = lambda result: None):
        self.title, self._work, self._done = title, work, done
        self.state = "waiting"
        self.error = ""
        self.count = self.total = 0
        self.stage = title
        self.result: Any = None
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, *, again: bool = False) -> Job:
        """Begins it, where it has not been begun; `again` begins one that is over anew."""
        with self._lock:
            if self.state == "waiting" or (self.state in ("done", "failed") and again):
                self.state, self.error, self.count, self.total = "running", "", 0, 0
                self._ended.clear()
                self._thread = threading.Thread(target=self._run, name=f"explore: {self.title}", daemon=True)
                self._thread.start()
        return self

    @property
    def ready(self) -> bool:
        """Whether the result is there."""
        return self.state == "done"

    def tell(self, count: int, total: int, stage: str | None = None) -> None:
        """Says how far it is.

        Raises:
            Stopped: it is to end.
        """
        self.count, self.total = int(count), int(total)
        self.stage = stage or self.stage
        if self._stop.is_set():
            raise Stopped

    def wait(self, seconds: float | None = None) -> Any:
        """The result, as soon as it is there; None where it is not in time.

        Raises:
            DeepClusterError: it failed, for the reason that this says.
        """
        self._ended.wait(seconds)
        if self.state == "failed":
            raise DeepClusterError(self.error)
        return self.result

    def forget(self) -> None:
        """Makes a failed one wait to be begun again."""
        with self._lock:
            if self.state == "failed":
                self.state = "waiting"

    def stop(self, seconds: float = 5.0) -> None:
        """Asks it to end, and waits a little for that."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {
            "title": self.title, "state": self.state, "stage": self.stage, "count": self.count, "total": self.total,
            "error": self.error,
        }  # fmt: skip

    def _run(self) -> None:
        try:
            self.result = self._work(self)
            self._done(self.result)
            self.state = "done"
        except Stopped:
            self.state = "waiting"
        except Exception as error:  # whatever it is, the page must not wait for ever
            self.error = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, (DeepClusterError, OSError, MemoryError)):
                self.error = f"{type(error).__name__}: {self.error}"
            self.state = "failed"
        finally:
            self._ended.set()

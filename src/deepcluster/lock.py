"""A lock on a file that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcluster.errors import DeepClusterError

_held: set[int] = set()


def _close_in_child() -> None:
    """A process forked from the one that holds a lock, such as one that decodes images, must not hold it longer."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(file: Path, refusal: Callable[[str], str], no_locks: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds the lock that `file` stands for; the file is removed afterwards.

    Args:
        refusal: the sentence for whoever comes second, given who holds the lock: "process 12 on host".
        no_locks: called where the system or the disk has no locks; it then goes on without one.

    Raises:
        DeepClusterError: `refusal`, if another process holds it, or this one elsewhere.
        OSError: the file cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        no_locks()
        yield
        return
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 300, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise DeepClusterError(refusal(owner)) from None
        except OSError:  # some network file systems
            no_locks()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                break
        os.close(handle)  # whoever held it has just removed it
    _held.add(handle)
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        if handle in _held:  # not in a forked process
            _held.remove(handle)
            os.close(handle)

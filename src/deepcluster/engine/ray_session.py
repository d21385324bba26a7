"""Ray, started on this machine or joined at its address, without a word of its own on the screen."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepcluster.engine.signals import sigterm_interrupts
from deepcluster.errors import DeepClusterError, first_line
from deepcluster.io import scratch_folder

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray reports nothing to its makers, and prints nothing of its own."""
WAIT = 10.0
"""Seconds in which a cluster answers."""
SHORT = 8
"""Characters of the system's temporary folder up to which Ray can name its sockets in one of ours there."""


def load_ray() -> Any:
    """The module; DeepClusterError where it is not installed."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        return import_module("ray")
    except ImportError as error:
        raise DeepClusterError(f"Ray is not installed ({error}): pip install 'deepcluster[ray]'.") from error


@contextmanager
def ray_session(ray: Any, cores: int) -> Iterator[None]:
    """Ray runs as long as the context lasts: at RAY_ADDRESS, or here with so many cores. DeepClusterError where it does
    not start, nobody answers, or the cluster has another deepcluster."""
    short = len(tempfile.gettempdir()) <= SHORT
    # what a killed one left there goes with the next
    with _silenced(), scratch_folder(Path(tempfile.gettempdir() if short else "/tmp", "ray")) as folder:
        folder.chmod(0o700)
        _start(ray, str(folder), cores)
        worker: Any = import_module("ray._private.worker")
        worker._worker_logs_enabled = False  # what it prints to stdout of lost processes, whatever it was told
        try:
            with sigterm_interrupts():  # Ray has a handler of its own, with another status
                yield
        finally:
            ray.shutdown()
            worker._worker_logs_enabled = True


def _start(ray: Any, folder: str, cores: int) -> None:
    """Begins Ray here, with its files in `folder`, or joins the cluster at RAY_ADDRESS."""
    address = os.environ.get("RAY_ADDRESS", "local")
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address == "local":
            ray.init("local", num_cpus=cores, include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            _must_answer(address)
            ray.init(address, **quiet)
            _must_be_alike(ray, address)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, DeepClusterError):
            raise
        if address == "local":
            raise DeepClusterError(f"Ray does not start here ({first_line(error)}): see `ray start`.") from error
        raise _unreachable(address, f"{first_line(error)}; a cluster with a token needs RAY_AUTH_MODE=token") from error


@contextmanager
def _silenced() -> Iterator[None]:
    """What Ray's C++ prints to file descriptor 2 is dropped; Python's own stderr stays where it is."""
    sys.stderr.flush()
    before, kept = sys.stderr, os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with os.fdopen(kept, "w", encoding=before.encoding, errors=before.errors, closefd=False) as stream:
            if _descriptor(before) == 2:
                sys.stderr = stream
            yield
    finally:
        sys.stderr = before
        os.dup2(kept, 2)
        os.close(kept)


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, AttributeError):
        return None


def _must_answer(address: str) -> None:
    """Raises DeepClusterError for an address at which nobody listens: Ray would try for minutes, and print it."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "//" in host or not port.isdecimal():
        raise _unreachable(address, "it is no HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=WAIT).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, first_line(error)) from error


def _must_be_alike(ray: Any, address: str) -> None:
    """Raises DeepClusterError for a cluster without deepcluster, or with another one."""

    try:
        there = ray.get(ray.remote(num_cpus=1)(version).remote("deepcluster"))
    except Exception:  # whatever the cluster says: it has none that can be asked
        there = "none"
    here = version("deepcluster")
    if there != here:
        ray.shutdown()
        raise DeepClusterError(
            f"The Ray cluster at {address} has deepcluster {there}, and here it is {here}: install the same on all."
        )


def _unreachable(address: str, why: str) -> DeepClusterError:
    return DeepClusterError(
        f"No Ray cluster answers at RAY_ADDRESS {address} ({why}): give HOST:PORT of its first machine, or auto on one"
        " of its machines, or unset it to start Ray here."
    )

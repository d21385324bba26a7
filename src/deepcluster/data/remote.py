"""Shards that lie behind a URL, read through fsspec: `https://`, `s3://`, `gs://`, `memory://` and its others.

Exactly the bytes of a member are asked for: with random access, what lies beside them is not wanted next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from deepcluster.errors import DeepClusterError

T = TypeVar("T")

#: Seconds waited before each new try; then the read has failed.
WAITS = (0.1, 0.3, 1.0, 3.0)
#: Bytes fetched at a time while a shard is scanned from its beginning to its end.
AHEAD = 4 << 20
#: What tells one version of an object from another, under the names that the stores have for it.
STAMPS = ("ETag", "etag", "LastModified", "updated", "mtime", "created")


def is_url(place: str) -> bool:
    """Whether a shard's place is a URL and no path."""
    return "://" in place


def look(place: str) -> tuple[int, str]:
    """Bytes of the object, and a stamp that changes with it (empty where the store gives none).

    Raises:
        OSError: it does not exist or cannot be reached.
        DeepClusterError: fsspec, or its part for this kind of URL, is not installed.
    """
    system, path = _open_system(place)
    about = patiently(lambda: system.info(path))
    if about.get("size") is None:
        raise OSError("the server does not tell its size")
    return int(about["size"]), next((str(about[name]) for name in STAMPS if about.get(name)), "")


def read(place: str, start: int, count: int) -> bytes:
    """Up to `count` bytes from byte `start` on: fewer where the object ends.

    Raises:
        OSError: it does not exist, or could not be reached in several tries.
    """
    system, path = _open_system(place)
    data = patiently(lambda: system.cat_file(path, start=start, end=start + count))
    # A server that does not know ranges sends all there is.
    return data[start : start + count] if len(data) > count else data


def open_whole(place: str) -> BinaryIO:
    """The object as a file to be read from its beginning to its end, fetched ahead piece by piece."""
    system, path = _open_system(place)
    return patiently(lambda: system.open(path, "rb", block_size=AHEAD, cache_type="readahead"))


def matching(pattern: str) -> list[str]:
    """The URLs that match a pattern with `*`, unsorted."""
    system, path = _open_system(pattern)
    return [str(system.unstrip_protocol(found)) for found in patiently(lambda: system.glob(path))]


def patiently(work: Callable[[], T]) -> T:
    """`work()`, tried again after a while when it fails in a way that may pass.

    Raises:
        OSError: it failed for good.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except Exception as error:  # each store raises its own
            # Over HTTP, fsspec calls every failure to look "not found", and keeps the true one as its cause.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            status = getattr(cause, "status", None)
            if isinstance(cause, (FileNotFoundError, PermissionError, IsADirectoryError)) or status in (404, 410):
                raise
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if wait is None or refused:
                raise OSError((str(cause).splitlines() or [type(cause).__name__])[0][:200]) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _open_system(place: str) -> tuple[Any, str]:
    """fsspec's file system and the path within it; fsspec keeps one of each kind per process."""
    scheme = place.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise DeepClusterError(
            f"{place} cannot be read without another package ({error}): pip install 'deepcluster[remote]'"
        ) from None
    except ValueError:
        raise DeepClusterError(
            f"{place} cannot be read: fsspec knows no {scheme}:// (s3, gs, https … it does)"
        ) from None

"""Where shards are: paths and URLs, and the four things that are done with either."""

from __future__ import annotations

import glob
import os
import re
from typing import BinaryIO

from deepcluster.data import remote
from deepcluster.data.naming import natural_key
from deepcluster.data.remote import is_url
from deepcluster.errors import DeepClusterError


def look(place: str) -> tuple[int, str]:
    """Bytes of the file, and a stamp that changes when it does.

    Raises:
        OSError: it does not exist or cannot be reached.
    """
    if is_url(place):
        return remote.look(place)
    state = os.stat(place)
    return state.st_size, str(state.st_mtime_ns)


def read(place: str, start: int, count: int) -> bytes:
    """Up to `count` bytes from byte `start` on: fewer where the file ends.

    The file is opened for each read: that costs microseconds, and leaves nothing to share between threads, forks
    or pickles, nor thousands of shards open at once.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    if is_url(place):
        return remote.read(place, start, count)
    handle = os.open(place, os.O_RDONLY)
    try:
        return os.pread(handle, count, start)
    finally:
        os.close(handle)


def open_whole(place: str) -> BinaryIO:
    """The file, to be read from its beginning to its end."""
    return remote.open_whole(place) if is_url(place) else open(place, "rb")


def matching(pattern: str) -> list[str]:
    """The shards that `shard.tar`, `a/*.zip`, `train-{000..003}.tar` or the same behind a URL name, in natural order.

    A name without wildcards stands for itself, whether there is such a file or not.

    Raises:
        DeepClusterError: nothing matches.
    """
    found: list[str] = []
    for word in expand_braces(pattern if is_url(pattern) else os.path.expanduser(pattern)):
        if is_url(word):
            found += sorted(remote.matching(word), key=natural_key) if "*" in word else [word]
        elif os.path.isfile(word) or not glob.has_magic(word):
            found.append(word)
        else:
            found += sorted(glob.glob(word, recursive=True), key=natural_key)
    if not found:
        raise DeepClusterError(
            f"no file matches {pattern}: check the pattern, and quote it so that the shell leaves it alone"
        )
    return found


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `a-{x,y}.tar`, one name each, as a shell would."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inside = found.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = int(span[1]), int(span[2])
        width = max(len(span[1]), len(span[2])) if span[1].startswith("0") or span[2].startswith("0") else 0
        steps = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        words = [f"{number:0{width}d}" for number in steps]
    else:
        words = inside.split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for word in words for name in expand_braces(before + word + after)]

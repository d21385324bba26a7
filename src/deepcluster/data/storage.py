"""Where shards lie, paths and URLs, and what is done with either; and the folder of caches.

URLs (`https://`, `s3://`, `gs://`, `memory://` and others) are read through fsspec, exactly the bytes that are wanted:
under random access, those around them are not wanted next.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from deepcluster.data.naming import natural_key
from deepcluster.digest import digest, short_digest
from deepcluster.errors import DeepClusterError, first_line
from deepcluster.reading import regular_size

T = TypeVar("T")

#: Seconds waited before each new try of a remote request; then it has failed.
WAITS = (0.1, 0.3, 1.0, 3.0)
#: Bytes fetched at a time while a remote shard is scanned from its beginning to its end.
READ_AHEAD = 4 << 20
#: Seconds in which a disk may give two changes one time: those of FAT are the coarsest.
FRESH = 3.0
#: What tells one version of a remote object from another, under the names that the stores have for it.
VERSION_FIELDS = ("ETag", "etag", "LastModified", "updated", "mtime", "created")
#: Bytes of images up to which a fingerprint is of all of them.
HASHED = 1 << 30
#: Beyond, how many pieces of how many bytes are read, evenly spaced.
SAMPLED, PIECE = 1024, 1 << 16
#: What opening a file counts as, in bytes.
OPENED = 4096
#: Bytes that a thread reads at a time.
TOGETHER = 1 << 24
_contents: dict[str, str] = {}  # marks of files -> what `content` gave for them, in this process


def cache_folder() -> Path:
    """The folder named by the environment variable DEEPCLUSTER_CACHE, else ~/.cache/deepcluster.

    All of it may be deleted at any time: what is missing is made again.

    Raises:
        OSError: there is no home: a relative or empty one would put a cache into each working directory.
    """
    if named := os.environ.get("DEEPCLUSTER_CACHE"):
        return Path(os.path.expanduser(named))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as the XDG specification has it
        home = os.environ.get("HOME", os.path.expanduser("~"))
        if not os.path.isabs(home):
            raise OSError(f"HOME is {home!r} and no absolute path")
        base = os.path.join(home, ".cache")
    return Path(base, "deepcluster")


def make_room(entries: Iterable[tuple[Path, Path, Path]], room: int) -> None:
    """Removes least recently used entries of a cache until those left take at most `room` bytes.

    Args:
        entries: of each what is touched whenever it is used, the file that takes its room, and the file or folder that
            goes.
    """
    found = []
    for touched, file, entry in entries:
        with suppress(OSError):
            found.append((touched.stat().st_mtime, file.stat().st_size, entry))
    held = sum(size for _, size, _ in found)
    for used, size, entry in sorted(found):
        if held <= room or time.time() - used < 60:  # just made or opened, perhaps not mapped yet
            break
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink(missing_ok=True)
        held -= size


def is_url(place: str) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in place


def stat(place: str) -> tuple[int, str]:
    """Size in bytes, and a version that changes with the file (empty where a store gives none).

    Raises:
        OSError: it does not exist or cannot be reached.
        DeepClusterError: fsspec, or its part for this kind of URL, is not installed.
    """
    if not is_url(place):
        state = os.stat(place)
        return state.st_size, str(state.st_mtime_ns)
    system, path = _file_system(place)
    about = retry(lambda: system.info(path))
    if about.get("size") is None:
        raise OSError("the server does not tell its size")
    return int(about["size"]), next((str(about[name]) for name in VERSION_FIELDS if about.get(name)), "")


def mark(place: str, version: str = "") -> int:
    """64 bits that change whenever a file is written to or replaced, even if its old size and dates are put back, since
    nobody can set its inode and the time of its last change; of a URL, whenever its `version` does.

    0 where that is not certain: a store that gives no version, a file that cannot be asked, and within `FRESH` seconds
    of a change.
    """
    if is_url(place):
        return short_digest(f"{place} {version}".encode()) if version else 0
    if os.name == "nt":  # what is called the time of change there is that of creation
        return 0
    try:
        state = os.stat(place)
    except OSError:
        return 0
    if time.time() - state.st_ctime < FRESH:
        return 0
    return short_digest(f"{state.st_ino} {state.st_ctime_ns} {state.st_mtime_ns} {state.st_size}".encode())


def content(places: Sequence[str]) -> str:
    """Digest of what is in local files, wherever they lie and whatever their dates are; missing ones count as empty.

    Up to `HASHED` bytes, about 250,000 small files at most, all is read: a second for each gigabyte, or as long as the
    disk takes, and once in a process while the files stay as they are. Beyond, that would be minutes before each
    command; then it is of the size and time of each file, which `touch` and `rsync -t` can put back, and of samples.
    """
    marks = [mark(place) for place in places]
    key = digest(np.array(marks, np.uint64))
    if all(marks) and key in _contents:
        return _contents[key]
    states = [_size_and_time(place) for place in places]
    sizes = np.array([size for size, _ in states], np.int64)
    ends = np.cumsum(sizes)
    whole = not len(ends) or int(ends[-1]) + OPENED * len(places) <= HASHED
    if whole:
        pieces = [(k, at) for k, size in enumerate(sizes.tolist()) for at in range(0, size, TOGETHER)]
    else:
        spots = np.unique(np.linspace(0, ends[-1] - 1, SAMPLED).astype(np.int64)) if ends[-1] else ends[:0]
        files = np.searchsorted(ends, spots, "right")
        pieces = list(zip(files.tolist(), (spots - ends[files] + sizes[files]).tolist(), strict=True))

    def read(piece: tuple[int, int]) -> int:
        try:
            return short_digest(read_range(places[piece[0]], piece[1], TOGETHER if whole else PIECE))
        except OSError:
            return 0

    with ThreadPoolExecutor() as pool:  # reading and digests leave Python free
        starts = range(0, len(pieces), OPENED)
        read_pieces = [one for start in starts for one in pool.map(read, pieces[start : start + OPENED])]
    found = digest(sizes if whole else states, np.array(read_pieces, np.uint64))
    if all(marks):
        _contents[key] = found
    return found


def _size_and_time(place: str) -> tuple[int, int]:
    """0, 0 for what cannot be asked or is no regular file."""
    try:
        return regular_size(place), os.stat(place).st_mtime_ns
    except OSError:
        return 0, 0


def read_range(place: str, start: int, count: int) -> bytes:
    """Up to `count` bytes from byte `start` on: fewer where the file ends.

    A local file is opened for each read, which costs microseconds: nothing is shared between threads or processes.

    Raises:
        OSError: it does not exist or cannot be read (a URL: in several tries).
    """
    if not is_url(place):
        handle = os.open(place, os.O_RDONLY)
        try:
            return os.pread(handle, count, start)
        finally:
            os.close(handle)
    system, path = _file_system(place)
    data: bytes = retry(lambda: system.cat_file(path, start=start, end=start + count))
    # A server that does not support ranges sends the whole file.
    return data[start : start + count] if len(data) > count else data


def open_stream(place: str) -> BinaryIO:
    """The file, to be read from its beginning to its end; a remote one is fetched ahead piece by piece."""
    if not is_url(place):
        regular_size(place)  # a pipe would be waited for
        return open(place, "rb")
    system, path = _file_system(place)
    return cast(BinaryIO, retry(lambda: system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead")))


def expand(pattern: str) -> list[str]:
    """The shards that `shard.tar`, `a/*.zip`, `train-{000..003}.tar` or the same behind a URL name, in natural order.

    A name without wildcards stands for itself, whether there is such a file or not.

    Raises:
        DeepClusterError: nothing matches.
    """
    found: list[str] = []
    plain = pattern if is_url(pattern) else os.path.expanduser(pattern)
    for word in [plain] if os.path.isfile(plain) else expand_braces(plain):
        if not glob.has_magic(word) or (is_url(word) and "*" not in word) or os.path.isfile(word):
            found.append(word)
        elif is_url(word):
            system, path = _file_system(word)
            matches = retry(lambda system=system, path=path: system.glob(path))  # type: ignore[misc]
            found += sorted((str(system.unstrip_protocol(match)) for match in matches), key=natural_key)
        else:
            found += sorted(glob.glob(word, recursive=True), key=natural_key)
    if not found:
        raise DeepClusterError(
            f"no file matches {pattern}: check the pattern, and quote it so that the shell leaves it alone"
        )
    refuse_twice(found)
    return found


def refuse_twice(places: Sequence[str]) -> None:
    """Raises DeepClusterError where a place is named twice, since its images would be there twice."""
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise DeepClusterError(f"{twice[0]} is named twice: name each file once")


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `a-{x,y}.tar`, one name each, as a shell would."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inside = found.group(1)
    words = inside.split(",")
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(span[1]), int(span[2])
        width = max(map(len, span.groups())) if any(edge.startswith("0") for edge in span.groups()) else 0
        steps = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        words = [f"{number:0{width}d}" for number in steps]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for word in words for name in expand_braces(before + word + after)]


def retry(request: Callable[[], T]) -> T:
    """`request()`, tried again after a while when it fails in a way that may pass.

    Raises:
        OSError: it failed for good.
    """
    for wait in (*WAITS, None):
        try:
            return request()
        except Exception as error:  # each store raises its own
            # Over HTTP, fsspec calls every failure to stat "not found", and keeps the true one as its cause.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            status = getattr(cause, "status", None)
            if isinstance(cause, (FileNotFoundError, PermissionError, IsADirectoryError)) or status in (404, 410):
                raise
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if wait is None or refused:
                raise OSError(first_line(cause)) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _file_system(place: str) -> tuple[Any, str]:
    """fsspec's file system and the path within it; fsspec keeps one of each kind per process."""
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(place)
        return system, path
    except ImportError as error:
        raise DeepClusterError(
            f"{place} cannot be read without another package ({error}): pip install 'deepcluster[remote]'"
        ) from None
    except ValueError:
        scheme = place.partition("://")[0]
        raise DeepClusterError(
            f"{place} cannot be read: fsspec knows no {scheme}:// (it knows s3, gs, https and others)"
        ) from None

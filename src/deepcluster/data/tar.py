"""Tar shards read in place: one scan finds the byte offset of every image, then any image is one `pread`.

Random access is what lets a cluster point at its images; nothing is unpacked.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepcluster.data.cache_folder import cache_folder
from deepcluster.data.decode import decode
from deepcluster.data.naming import is_image_name, labels_from_parents, natural_key
from deepcluster.data.sources import ImageSource
from deepcluster.records import BadImage, DeepClusterError


@dataclass(frozen=True)
class Shard:
    """The images of one tar file, in the order of the file.

    Attributes:
        file: its path.
        names: member names.
        offsets: (n,) int64, first byte of each member's content.
        sizes: (n,) int64, bytes.
    """

    file: Path
    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray


class TarShards:
    """An `ImageSource` over the images of several tar files, shard after shard, each in the order of its file."""

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        self.name = name
        self._files = [shard.file for shard in shards]
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._names = [member for shard in shards for member in shard.names]
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        self.labels, self.classes = labels_from_parents(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        return f"{self._files[self._shard[index]].name}/{self._names[index]}"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        return decode(self.raw(index), short_side)

    def raw(self, index: int) -> bytes:
        """The encoded bytes of image `index`.

        The file is opened for each read: that costs microseconds, and leaves nothing to share between
        threads, forks or pickles, nor thousands of shards open at once.
        """
        size = int(self._sizes[index])
        try:
            handle = os.open(self._files[self._shard[index]], os.O_RDONLY)
            try:
                data = os.pread(handle, size, int(self._offsets[index]))
            finally:
                os.close(handle)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None
        if len(data) < size:
            raise BadImage("cut off: the tar file ends before this member does")
        return data

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in self._files:
            state = file.stat()
            digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        digest.update("\n".join(self._names).encode(errors="surrogateescape"))
        digest.update(self._offsets.tobytes())
        digest.update(self._sizes.tobytes())
        return digest.hexdigest()


def open_shards(pattern: str) -> ImageSource:
    """Open `shard.tar`, `a/*.tar` or `train-{000..003}.tar`.

    Raises:
        DeepClusterError: nothing matches, a shard is not a readable tar file, or none holds an image.
    """
    files: list[Path] = []
    for word in expand_braces(os.path.expanduser(pattern)):
        found = [word] if os.path.isfile(word) else sorted(glob.glob(word, recursive=True), key=natural_key)
        if not found and not glob.has_magic(word):
            raise DeepClusterError(f"the shard {word}, named by {pattern}, does not exist: check the pattern")
        files += [Path(file) for file in found]
    if not files:
        raise DeepClusterError(
            f"no file matches {pattern}: check the pattern, and quote it so that the shell leaves it alone"
        )
    wrong = [file for file in files if not file.name.lower().endswith(".tar")]
    if wrong:
        raise DeepClusterError(
            f"{wrong[0]}, matched by {pattern}, is no .tar file: patterns name tar shards; "
            "for image files give their folder"
        )
    shards = [index_tar(file) for file in files]
    if not any(shard.names for shard in shards):
        raise DeepClusterError(
            f"there is no image in the tar files of {pattern}: members need names such as class/name.jpg"
        )
    return TarShards(pattern, shards)


def index_tar(file: Path) -> Shard:
    """Where the images of one tar file lie; remembered in the cache folder until the file changes."""
    state = file.stat()
    key = hashlib.blake2b(
        f"1 {file.resolve()} {state.st_size} {state.st_mtime_ns}".encode(), digest_size=16
    ).hexdigest()
    stored = cache_folder() / "tar-index" / f"{key}.npz"
    try:
        with np.load(stored, allow_pickle=False) as table:
            names = table["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            return Shard(file, names[: len(table["offsets"])], table["offsets"], table["sizes"])
    except Exception:  # absent, or unreadable: the scan below replaces it
        pass
    shard = _scan(file)
    with contextlib.suppress(OSError):  # the index only saves time
        _store(shard, stored)
    return shard


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


def _scan(file: Path) -> Shard:
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else a million members stay in memory
                if member.isreg() and not member.issparse() and is_image_name(member.name):
                    names.append(member.name.removeprefix("./"))
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DeepClusterError(
            f"{file} cannot be read as an uncompressed tar file ({error}): fetch it again, or repack it as a plain .tar"
        ) from None
    return Shard(file, names, np.array(offsets, np.int64), np.array(sizes, np.int64))


def _store(shard: Shard, target: Path) -> None:
    """Write the index beside its place and rename it there: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = np.frombuffer("\0".join(shard.names).encode("utf-8", "surrogateescape"), np.uint8)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=".index-")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, names=names, offsets=shard.offsets, sizes=shard.sizes)
        os.replace(beside, target)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise

"""Images in tar and zip shards, each read in place by its index, however many shards there are.

A shard that is missing, or is not what it was, is reported once; its images are bad images and nothing else changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch

from deepcluster.data import remote, storage, tar
from deepcluster.data import zip as zip_shards
from deepcluster.data.cache_folder import cache_folder
from deepcluster.data.decode import decode
from deepcluster.data.members import TOO_LONG, Members
from deepcluster.data.naming import labels_from_parents
from deepcluster.data.source import ImageSource
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.io import write_atomic

#: Shards whose trouble is told one by one.
TOLD = 20


@dataclass(frozen=True)
class Kind:
    """How shards of one kind are read: see tar.py and zip.py.

    Attributes:
        unit: what offsets are kept in, in bytes.
        advice: what to do about one that cannot be read.
    """

    unit: int
    scan: Callable[[BinaryIO], Members]
    read: Callable[[Callable[[int, int], bytes], int, int], bytes]
    name: Callable[[Callable[[int, int], bytes], int], str]
    advice: str


KINDS = {
    ".tar": Kind(tar.UNIT, tar.scan_tar, tar.read_tar, tar.tar_name, "fetch it again, or repack it as a plain .tar"),
    ".zip": Kind(zip_shards.UNIT, zip_shards.scan_zip, zip_shards.read_zip, zip_shards.zip_name, "fetch it again"),
}


def kind_of(place: str) -> Kind | None:
    """The kind of a shard, by the ending of its path or URL; None for what is no shard."""
    return KINDS.get(PurePosixPath(place.partition("?")[0] if storage.is_url(place) else place).suffix.lower())


@dataclass(frozen=True)
class ShardList:
    """S shards, in order.

    Attributes:
        base: the folder that relative paths start from.
        paths: S paths or URLs.
        images: (S,) int64, images in each.
        bytes: (S,) int64, the size of each when its images were located.
        rows: (S,) int64, the row of the table where the images of each begin.
    """

    base: str
    paths: list[str]
    images: np.ndarray
    bytes: np.ndarray
    rows: np.ndarray

    def place(self, shard: int) -> str:
        """Where a shard is."""
        path = self.paths[shard]
        return path if storage.is_url(path) else os.path.join(self.base, path)


class Shards:
    """An `ImageSource` over the images of tar and zip shards, shard after shard.

    Args:
        name: as the user wrote the source.
        shards: the shards.
        table: (rows,) with the integer fields `offset`, in units of the shard's kind, and `length`, in bytes.
        stamp: the fingerprint.
        names: N member names; None = they are read from the shards when asked for.
        labels: (N,) integers or None.
        classes: class names.
        reopen: makes the same source anew: pickled in place of a table that is memory-mapped.
    """

    def __init__(
        self,
        name: str,
        shards: ShardList,
        table: np.ndarray,
        stamp: str,
        *,
        names: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        reopen: Callable[[], Shards] | None = None,
    ) -> None:
        self.name = name
        self.shards = shards
        self.labels = labels
        self.classes = classes
        self._table = table
        self._stamp = stamp
        self._names = names
        self._reopen = reopen
        self._starts = np.concatenate([[0], np.cumsum(shards.images)])
        self._lost: dict[int, str] = {}  # shard -> reason, as far as this process has met them
        self._looked: set[int] = set()  # remote shards that were what they should be
        # In memory that forked decoding processes share, so that a shard's trouble is told once and not by each.
        self._told = torch.zeros(len(shards.paths), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is not None:
            return self._reopen, ()
        remake = partial(Shards, names=self._names, labels=self.labels, classes=self.classes)
        return remake, (self.name, self.shards, self._table, self._stamp)

    def path(self, index: int) -> str:
        shard, within, offset, _ = self._locate(index)
        path = self.shards.paths[shard]
        if self._names is not None:
            return f"{PurePosixPath(path).name}/{self._names[index]}"
        try:
            self._check(shard)
            return f"{path}/{self._kind(shard).name(partial(storage.read, self.shards.place(shard)), offset)}"
        except (BadImage, OSError, tarfile.TarError):
            return f"{path}/#{within}"  # the shard cannot tell: its image's number in it

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        return decode(self.raw(index), short_side)

    def raw(self, index: int) -> bytes:
        """The encoded bytes of image `index`.

        Raises:
            BadImage: its shard is missing or has changed, or its bytes cannot be read.
        """
        shard, _, offset, length = self._locate(index)
        self._check(shard)
        if length >= TOO_LONG:
            raise BadImage("too large: 4 GiB or more")
        try:
            return self._kind(shard).read(partial(storage.read, self.shards.place(shard)), offset, length)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None

    def fingerprint(self) -> str:
        return self._stamp

    def _locate(self, index: int) -> tuple[int, int, int, int]:
        """Shard, number in it, byte offset and length of an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, "right")) - 1
        within = int(index - self._starts[shard])
        entry = self._table[int(self.shards.rows[shard]) + within]
        return shard, within, int(entry["offset"]) * self._kind(shard).unit, int(entry["length"])

    def _kind(self, shard: int) -> Kind:
        kind = kind_of(self.shards.paths[shard])
        assert kind is not None, "whoever made the list checked it"
        return kind

    def _check(self, shard: int) -> None:
        """Raises `BadImage` unless the shard is there and as large as it was; tells of it once."""
        if shard in self._looked:
            return
        place = self.shards.place(shard)
        reason = self._lost.get(shard)
        if reason is None:
            expected = int(self.shards.bytes[shard])
            try:
                size, _ = storage.look(place)
                reason = "" if size == expected else f"has {size:,} bytes and not {expected:,}: cut short, or changed"
            except (FileNotFoundError, NotADirectoryError):
                reason = "is missing"
            except OSError as error:
                reason = f"cannot be opened ({error.strerror or error})"
            if not reason:
                if storage.is_url(place):  # to ask a server before every read would double the wait
                    self._looked.add(shard)
                return
            self._lost[shard] = reason
            self._tell(shard, reason)
        raise BadImage(f"its shard {reason}")

    def _tell(self, shard: int, reason: str) -> None:
        if self._told[shard]:
            return
        self._told[shard] = 1
        count = int(self._told.sum())
        if count <= TOLD:
            more = "; further shards like it are not told one by one" if count == TOLD else ""
            warnings.warn(
                f"the shard {self.shards.place(shard)} {reason}; its {int(self.shards.images[shard]):,} images are "
                f"left out as bad images{more}",
                stacklevel=2,
            )


def open_shards(pattern: str) -> ImageSource:
    """Open `shard.tar`, `a/*.zip`, `train-{000..003}.tar`, or the same behind a URL.

    Raises:
        DeepClusterError: nothing matches, a named shard does not exist, or none holds an image.
    """
    found = storage.matching(pattern)
    wrong = [place for place in found if kind_of(place) is None]
    if wrong:
        raise DeepClusterError(
            f"{wrong[0]}, matched by {pattern}, is no .tar or .zip file: patterns name tar and zip shards; "
            "for image files give their folder"
        )
    looks = [_look(place, pattern) for place in found]
    members = [members_of(place, *look) for place, look in zip(found, looks, strict=True)]
    names = [name for shard in members for name in shard.names]
    troubles = [sentence_of(place, shard.trouble) for place, shard in zip(found, members, strict=True) if shard.trouble]
    if not names:
        raise DeepClusterError(
            troubles[0]
            if troubles
            else f"there is no image in the tar or zip files of {pattern}: members need names such as class/name.jpg"
        )
    for trouble in troubles:
        warnings.warn(f"{trouble}; images that were found in it are shown", stacklevel=2)
    counts = np.array([len(shard.names) for shard in members], np.int64)
    shards = ShardList("", found, counts, np.array([size for size, _ in looks], np.int64), np.cumsum(counts) - counts)
    labels, classes = labels_from_parents(names)
    stamp = _fingerprint(found, looks, members)
    return Shards(pattern, shards, table_of(found, members), stamp, names=names, labels=labels, classes=classes)


def table_of(found: Sequence[str], members: Sequence[Members]) -> np.ndarray:
    """(rows,) `offset` and `length` of the images of shards one after another; 8 bytes a row where that is enough."""
    units = [(kind_of(place) or KINDS[".tar"]).unit for place in found]
    offsets = [shard.offsets // unit for shard, unit in zip(members, units, strict=True)]
    largest = max((int(part.max()) for part in offsets if len(part)), default=0)
    table = np.zeros(sum(map(len, offsets)), row_type(largest))
    table["offset"] = np.concatenate(offsets)
    table["length"] = np.concatenate([shard.lengths for shard in members])
    return table


def row_type(largest: int) -> np.dtype:
    """Type of the table's rows: 8 bytes, or 12 where the largest offset needs more than four of them."""
    return np.dtype([("offset", "<u4" if largest < 2**32 else "<u8"), ("length", "<u4")])


def members_of(place: str, size: int, stamp: str) -> Members:
    """The images of one shard; remembered in the cache folder until the shard changes."""
    where = place if storage.is_url(place) else Path(place).resolve()
    key = hashlib.blake2b(f"2 {where} {size} {stamp}".encode(), digest_size=16).hexdigest()
    stored = cache_folder() / "shard-index" / f"{key}.npz"
    with contextlib.suppress(Exception):  # absent, or unreadable: the scan below replaces it
        return read_members(stored)
    members = scan(place)
    if members.trouble is None:
        with contextlib.suppress(DeepClusterError):  # the index only saves time
            write_members(members, stored)
    return members


def scan(place: str) -> Members:
    """The images of one shard, from the shard itself; what cannot be read is its `trouble`."""
    kind = kind_of(place)
    assert kind is not None

    def once() -> Members:
        with storage.open_whole(place) as stream:
            return kind.scan(stream)

    try:
        return remote.patiently(once) if storage.is_url(place) else once()
    except OSError as error:
        return Members.of([], f"cannot be read ({error.strerror or error})", 0)


def write_members(members: Members, file: Path) -> None:
    """The images of one shard as an .npz file."""
    names = np.frombuffer("\0".join(members.names).encode("utf-8", "surrogateescape"), np.uint8)

    def write(beside: Path) -> None:
        with open(beside, "wb") as handle:
            trouble = np.array(members.trouble or "")
            np.savez(handle, names=names, offsets=members.offsets, lengths=members.lengths, trouble=trouble)

    write_atomic(file, write)


def read_members(file: Path) -> Members:
    """The inverse of `write_members`."""
    with np.load(file, allow_pickle=False) as stored:
        names = stored["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
        offsets = stored["offsets"]
        return Members(names[: len(offsets)], offsets, stored["lengths"], str(stored["trouble"]) or None)


def sentence_of(place: str, trouble: str) -> str:
    """What is wrong with a shard, and what to do."""
    kind = kind_of(place)
    return f"{place} {trouble}: {kind.advice if kind else 'fetch it again'}"


def _look(place: str, pattern: str) -> tuple[int, str]:
    try:
        return storage.look(place)
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error})"
        raise DeepClusterError(f"the shard {place}, named by {pattern}, {why}: check the pattern") from None


def _fingerprint(found: Sequence[str], looks: Sequence[tuple[int, str]], members: Sequence[Members]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for place, (size, stamp) in zip(found, looks, strict=True):
        digest.update(f"{PurePosixPath(place).name}\0{size}\0{stamp}\n".encode(errors="surrogateescape"))
    digest.update("\n".join(name for shard in members for name in shard.names).encode(errors="surrogateescape"))
    for field in ("offsets", "lengths"):
        for shard in members:
            digest.update(getattr(shard, field).tobytes())
    return digest.hexdigest()

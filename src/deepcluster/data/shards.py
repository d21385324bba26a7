"""Images in tar and zip shards, each read in place by its index, however many shards there are.

A shard that is missing, or is not what it was, is reported once; its images are bad images and nothing else changes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from deepcluster.data import storage
from deepcluster.data.archive import Members, find_format, format_of, read_member, scan
from deepcluster.data.naming import labels_of_members, printable
from deepcluster.data.source import Encoded, ImageSource
from deepcluster.digest import digest
from deepcluster.errors import BadImage, DeepClusterError, counted, warn
from deepcluster.io import write_atomic
from deepcluster.reading import read_npz

#: Bytes that the members of scanned shards may take in the cache: those of some 30 million images.
INDEX_ROOM = 1 << 30
#: Missing or changed shards that are reported one by one.
REPORTED = 20


class Shard(NamedTuple):
    """A shard as it was when its images were located."""

    path: str  # or URL; a relative path starts from the folder of the manifest
    images: int
    bytes: int
    row: int  # the row of the table where its images begin
    stamp: str = ""  # changes with the shard, such as a file's time
    trouble: str = ""  # why it could not be read to its end; empty where it could


def fingerprint_of(shards: Sequence[Shard], *content: Any) -> str:
    """Digest of the names, sizes, versions and order of shards, and of `content`; opens nothing."""
    numbers = (np.array([shard[field] for shard in shards], np.int64) for field in (1, 2, 3))
    names = [shard.path.rpartition("/")[2] for shard in shards]
    return digest(names, [shard.stamp for shard in shards], *numbers, *content)


def content_of(shards: Sequence[Shard], *content: Any) -> str:
    """The same for shards that are at hand: those on disk count by what is in them, see `storage.content`."""
    here = [shard.path for shard in shards if not storage.is_url(shard.path)]
    timeless = [shard if storage.is_url(shard.path) else shard._replace(stamp="") for shard in shards]
    return fingerprint_of(timeless, storage.content(here), *content)


@dataclass(eq=False, repr=False)
class Shards(Encoded):
    """An `ImageSource` over the images of tar and zip shards, shard after shard."""

    name: str
    shards: list[Shard]
    table: np.ndarray  # (rows,) with the fields `offset`, in units of the shard's format, and `length`, in bytes
    content: str  # the fingerprint
    _: KW_ONLY
    base: str = ""  # the folder that relative paths start from
    names: Sequence[str] | None = None  # N member names; None = shards are scanned for them when asked for
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    reopen: Callable[[], Shards] | None = None  # pickled in place of a table that is memory-mapped

    def __post_init__(self) -> None:
        #: (shards + 1,) index of each shard's first image
        self.starts = np.concatenate([[0], np.cumsum([shard.images for shard in self.shards])])
        self._lost: dict[int, str] = {}  # shard -> reason, as far as this process has met them
        self._checked: set[int] = set()  # remote shards that were what they should be
        # In memory that forked decoding processes share, so that only one of them reports a shard.
        self._reported = np.frombuffer(mmap.mmap(-1, max(1, len(self.shards))), np.uint8)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reopen is not None:
            return self.reopen, ()
        rebuild = partial(Shards, base=self.base, names=self.names, labels=self.labels, classes=self.classes)
        return rebuild, (self.name, self.shards, self.table, self.content)

    def path(self, index: int) -> str:
        shard, within, offset, _ = self._locate(index)
        path = self.shards[shard].path
        if self.names is not None:
            return printable(f"{PurePosixPath(path).name}/{self.names[index]}")
        try:
            self._check(shard)
            # a remote shard is not read whole for a name
            names = _names(self.place(shard), self.shards[shard].bytes, self.shards[shard].stamp)
            return printable(f"{path}/{names[offset]}")
        except (BadImage, KeyError):
            return f"{path}/#{within}"  # the shard cannot be asked: the image's number in it

    def raw(self, index: int) -> bytes:
        """See `Encoded.raw`; bad as well where the shard is missing or has changed."""
        shard, _, offset, length = self._locate(index)
        self._check(shard)
        return read_member(self.place(shard), offset, length)

    def marks(self) -> np.ndarray:
        own = [storage.mark(self.place(number), shard.stamp) for number, shard in enumerate(self.shards)]
        return np.repeat(np.array(own, np.uint64), [shard.images for shard in self.shards])

    def fingerprint(self) -> str:
        return self.content

    def place(self, shard: int) -> str:
        """Path or URL of a shard."""
        path = self.shards[shard].path
        return path if storage.is_url(path) else os.path.join(self.base, path)

    def _locate(self, index: int) -> tuple[int, int, int, int]:
        """Shard, number in it, byte offset and length of an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        within = int(index - self.starts[shard])
        entry = self.table[self.shards[shard].row + within]
        return shard, within, int(entry["offset"]) * format_of(self.shards[shard].path).unit, int(entry["length"])

    def _check(self, shard: int) -> None:
        """Raises `BadImage` unless the shard is there and as large as it was; reports it once."""
        if shard in self._checked:
            return
        reason = self._lost.get(shard) or self._find_loss(shard)
        if reason:
            if shard not in self._lost:
                self._lost[shard] = reason
                self._report(shard, reason)
            raise BadImage(f"its shard {reason}")
        if storage.is_url(self.shards[shard].path):  # to ask a server before every read would double the wait
            self._checked.add(shard)

    def _find_loss(self, shard: int) -> str:
        expected = self.shards[shard].bytes
        try:
            size, _ = storage.stat(self.place(shard))
        except OSError as error:
            return loss_by(error)
        return "" if size == expected else f"has {size:,} bytes and not {expected:,}: cut short, or changed"

    def _report(self, shard: int, reason: str) -> None:
        if self._reported[shard]:
            return
        self._reported[shard] = 1
        count = int(self._reported.sum())
        if count <= REPORTED:
            more = "; further shards like it are not reported one by one" if count == REPORTED else ""
            warn(
                f"the shard {self.place(shard)} {reason}; its {counted(self.shards[shard].images, 'image')} "
                f"{'is' if self.shards[shard].images == 1 else 'are'} left out as bad{more}"
            )


def open_shards(pattern: str) -> ImageSource:
    """Open `shard.tar`, `a/*.zip`, `train-{000..003}.tar`, or the same behind a URL.

    The scan of a shard is remembered in the cache folder until the shard changes.

    Raises:
        DeepClusterError: nothing matches, a named shard does not exist, or none holds an image.
    """
    places = storage.expand(pattern)
    wrong = next((place for place in places if find_format(place) is None), None)
    if wrong is not None:
        raise DeepClusterError(
            f"{wrong}, matched by {pattern}, is no .tar or .zip file: patterns name tar and zip shards; "
            "for image files give their folder"
        )
    states = [_stat(place, pattern) for place in places]
    members = [cached_members(place, *state) for place, state in zip(places, states, strict=True)]
    evict_members()
    names = [name for one in members for name in one.names]
    sentences = [sentence_of(place, one.trouble) for place, one in zip(places, members, strict=True) if one.trouble]
    if not names:
        nothing = f"there is no image in the tar or zip files of {pattern}: members need names such as class/name.jpg"
        raise DeepClusterError((sentences or [nothing])[0])
    for sentence in sentences:
        warn(f"{sentence}; images that were found in it are shown")
    shards: list[Shard] = []
    for place, (size, stamp), one in zip(places, states, members, strict=True):
        row = shards[-1].row + shards[-1].images if shards else 0
        shards.append(Shard(place, len(one.names), size, row, stamp, one.trouble))
    offsets = np.concatenate([one.offsets // format_of(place).unit for place, one in zip(places, members, strict=True)])
    table = np.zeros(len(names), row_type(int(offsets.max())))
    table["offset"], table["length"] = offsets, np.concatenate([one.lengths for one in members])
    texts = [text for one in members for text in one.classes or [None] * len(one.names)]
    labels, classes = labels_of_members(names, texts)
    return Shards(pattern, shards, table, content_of(shards, names, table), names=names, labels=labels, classes=classes)


def row_type(largest: int) -> np.dtype[Any]:
    """Type of the table's rows: 8 bytes, or 12 where the largest offset needs more than four of them."""
    return np.dtype([("offset", "<u4" if largest < 2**32 else "<u8"), ("length", "<u4")])


def loss_by(error: OSError) -> str:
    """How a sentence about a shard that cannot be asked goes on after its name."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "is missing"
    return f"cannot be opened ({error.strerror or error})"


def sentence_of(place: str, trouble: str) -> str:
    """What is wrong with a shard, and what to do."""
    return f"{place} {trouble}: {format_of(place).advice}"


def cached_members(place: str, size: int, stamp: str, *, or_scan: bool = True) -> Members:
    """The members of a shard, which is scanned once; they are kept in the cache folder until it changes.

    Args:
        size, stamp: from `storage.stat`.
        or_scan: scan the shard where the cache does not have them; else there are none.
    """
    where = place if storage.is_url(place) else os.path.realpath(place)
    version = digest("classes", where, size, stamp, storage.mark(place, stamp))
    file = None
    with suppress(Exception):  # no cache, or nothing readable in it: the scan below replaces it
        file = storage.cache_folder() / "shard-index" / f"{version}.npz"
        stored = read_npz(file, advice="it is made again")
        texts = [stored[key].tobytes().decode("utf-8", "surrogateescape") for key in ("names", "classes")]
        known, own = (text.split("\0") for text in texts)
        with suppress(OSError):  # a cache shared read-only is fine
            os.utime(file)  # used just now: evicted last
        offsets = stored["offsets"]
        beside = [text or None for text in own] if len(own) == len(offsets) else None
        return Members(known[: len(offsets)], offsets, stored["lengths"], classes=beside)
    if not or_scan:
        return Members.none("")
    members = scan(place)
    if file is not None and not members.trouble:
        own = [text or "" for text in members.classes or []]
        joined = ["\0".join(column).encode("utf-8", "surrogateescape") for column in (members.names, own)]
        names, classes = (np.frombuffer(text, np.uint8) for text in joined)

        def write(place: Path) -> None:
            with open(place, "wb") as handle:
                np.savez(handle, names=names, classes=classes, offsets=members.offsets, lengths=members.lengths)

        with suppress(DeepClusterError, OSError):  # the cache only saves time
            write_atomic(file, write)
    return members


def evict_members() -> None:
    """Removes what was kept of shards that were not used for long, where they are too many; called once a command,
    since it looks at all that is kept."""
    with suppress(OSError):  # there is no cache
        files = list((storage.cache_folder() / "shard-index").glob("*.npz"))
        storage.make_room(((file, file, file) for file in files), INDEX_ROOM)


@lru_cache(maxsize=16)
def _names(place: str, size: int, stamp: str) -> dict[int, str]:
    """Offset -> name, since a manifest may have some of the images only."""
    members = cached_members(place, size, stamp, or_scan=not storage.is_url(place))
    return dict(zip(members.offsets.tolist(), members.names, strict=True))


def _stat(place: str, pattern: str) -> tuple[int, str]:
    try:
        return storage.stat(place)
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error})"
        raise DeepClusterError(f"the shard {place}, named by {pattern}, {why}: check the pattern") from None

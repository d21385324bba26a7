"""An entry of the image cache: found by the source's fingerprint, and believed only for the images it was made of.

A fingerprint reads little, so an entry has the mark of each file (`storage.mark`) and the digest of its bytes. Where a
mark is another, because files were copied, moved or changed, the bytes are compared: a thirtieth of the decoding. Each
image's pixels have a checksum that is compared when they are first asked for, not when the entry is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deepcluster.data.decode_pool import Decoded, decode_batch
from deepcluster.data.source import Encoded, ImageSource
from deepcluster.data.storage import make_room
from deepcluster.digest import short_digest
from deepcluster.errors import BadImage, DeepClusterError, warn
from deepcluster.io import beside, write_array
from deepcluster.reading import judged, read_json, read_npy, regular_size
from deepcluster.seal import json_seal, put_seal

#: Files of an entry.
PIXELS, IMAGES, META = "pixels.bin", "images.npy", "meta.json"
#: Images whose bytes are compared at a time.
TOGETHER = 4096
IMAGE = np.dtype([("height", "<i4"), ("width", "<i4"), ("crc", "<u4"), ("mark", "<u8"), ("digest", "<u8")])
"""What an entry says of each image: size, checksum of its pixels, mark of its file, digest of its bytes."""


class Entry:
    """Decoded images of a source, kept on disk.

    Attributes:
        pixels: flat uint8, memory-mapped, the images one after another; what is written to it stays in memory.
        sizes: (N, 2) int64 height and width; 0, 0 for a bad one.
        bad: index -> reason.
    """

    def __init__(self, folder: Path, short_side: int | None, images: np.ndarray, bad: dict[int, str]) -> None:
        self.folder, self.short_side, self.crc, self.bad = folder, short_side, images["crc"], bad
        self.sizes = np.stack([images["height"], images["width"]], 1).astype(np.int64)
        if self.sizes.min() < 0 or sorted(bad) != np.flatnonzero(self.sizes.prod(1) == 0).tolist():
            raise ValueError("its sizes are none")
        self.ends = np.cumsum(self.sizes.prod(1) * 3)
        if regular_size(folder / PIXELS) != self.ends[-1]:
            raise ValueError(f"{PIXELS} has another size")
        self.pixels = np.zeros(0, np.uint8)
        if self.ends[-1]:
            self.pixels = np.asarray(np.memmap(folder / PIXELS, np.uint8, mode="c"))  # read-only arrays make torch warn
        self.unseen = np.ones(len(images), bool)
        self.whole = True

    def check(self, index: np.ndarray, source: ImageSource) -> None:
        """Decodes those images again whose pixels are not what was written, and has the next run do so with all.

        Raises:
            DeepClusterError: such an image is not what it was, either.
        """
        for k in index[self.unseen[index]].tolist():
            end = int(self.ends[k])
            kept = self.pixels[end - int(self.sizes[k].prod()) * 3 : end]
            if zlib.crc32(kept.data) != self.crc[k]:
                if self.whole:
                    warn(f"the image cache {self.folder} is damaged: it is made again")
                    with contextlib.suppress(OSError):
                        (self.folder / META).unlink(missing_ok=True)
                    self.whole = False
                again = decode_batch(source, [k], self.short_side).pixels
                if zlib.crc32(again.data) != self.crc[k]:
                    raise DeepClusterError(
                        f"the image cache {self.folder} is damaged, and {source.path(k)} has changed: "
                        "give the command again"
                    )
                kept[:] = again
            self.unseen[k] = False


def marks_of(source: ImageSource) -> np.ndarray:
    """(N,) uint64, see `storage.mark`; 1 for a source that tells all by its fingerprint."""
    marks = getattr(source, "marks", None)
    return np.ones(len(source), np.uint64) if marks is None else np.asarray(marks())


def open_entry(
    folder: Path, source: ImageSource, short_side: int | None, marks: np.ndarray, *, tell: bool = False
) -> Entry | None:
    """A finished entry, or None when there is none of these images, or one that is damaged.

    Args:
        marks: from `marks_of`, taken before this.
        tell: warn of a damaged one.
    """
    if not (folder / META).exists():
        return None
    try:
        with judged(f"the image cache {folder}", "it is made again"):
            meta = read_json(folder / META, advice="it is made again")
            images = read_npy(folder / IMAGES, advice="it is made again", ndim=1, kinds="V")
            if images.dtype != IMAGE or len(images) != len(source):
                raise ValueError("it is of other images")
            entry = Entry(folder, short_side, images, {int(k): str(reason) for k, reason in meta["bad"].items()})
    except DeepClusterError as error:
        if tell:
            warn(str(error))
        return None
    if not _same_images(images, source, marks):
        return None
    with contextlib.suppress(OSError, DeepClusterError):  # a cache shared read-only is fine
        if (images["mark"] != marks).any():
            images["mark"] = marks
            write_array(folder / IMAGES, images)
        os.utime(folder / META)  # used just now: evicted last
    return entry


def _same_images(images: np.ndarray, source: ImageSource, marks: np.ndarray) -> bool:
    """Whether an entry was made of these images: by their marks, and by their bytes where the marks do not tell."""

    def same(k: int) -> bool:
        assert isinstance(source, Encoded)
        try:
            return bool(short_digest(source.raw(k)) == images["digest"][k])
        except BadImage:
            return bool(images["digest"][k] == 0)

    doubtful = np.flatnonzero((images["mark"] != marks) | (marks == 0)).tolist()
    if not doubtful or not isinstance(source, Encoded):
        return not doubtful
    with ThreadPoolExecutor() as pool:  # reading and digests leave Python free
        starts = range(0, len(doubtful), TOGETHER)
        return all(all(pool.map(same, doubtful[start : start + TOGETHER])) for start in starts)


def write_entry(
    entry: Path, source: ImageSource, short_side: int | None, arriving: Iterable[Decoded], marks: np.ndarray
) -> Entry:
    """Decode everything into a folder of our own, then rename it to `entry`; what was written is given."""
    own = beside(entry)
    own.mkdir()
    try:
        images = np.zeros(len(source), IMAGE)
        images["mark"] = marks
        bad: dict[int, str] = {}
        with open(own / PIXELS, "wb") as file:
            for decoded in arriving:
                file.write(decoded.pixels.data)
                at = decoded.index
                images["height"][at], images["width"][at] = decoded.sizes.T
                images["digest"][at] = decoded.digests
                images["crc"][at] = [0 if one is None else zlib.crc32(one.data) for one in decoded.images()]
                bad.update(decoded.reasons)
        with open(own / IMAGES, "wb+") as handle:
            np.save(handle, images)
            put_seal(handle)
        meta = {"source": source.name, "short_side": short_side, "bad": {str(k): why for k, why in bad.items()}}
        (own / META).write_text(json.dumps(meta | {"crc32": json_seal(meta)}))
        written = Entry(own, short_side, images, bad)  # mapped now: `entry` may soon be another process's
        written.folder = entry
        try:
            os.rename(own, entry)
        except OSError:
            if open_entry(entry, source, short_side, marks) is None:  # not what another process has just made
                shutil.rmtree(entry, ignore_errors=True)
                os.rename(own, entry)
        return written
    finally:
        shutil.rmtree(own, ignore_errors=True)


def evict(folder: Path, room: int) -> None:
    """Remove least recently used entries until those left take at most `room` bytes; open ones stay readable."""
    make_room(((meta, meta.parent / PIXELS, meta.parent) for meta in folder.glob(f"*/{META}")), room)

"""Thumbnails by index: made when they are asked for, kept on disk up to a bound."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepcluster.data.source import ImageSource
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.visualize.images import encoded, thumbnail

SIDES = (96, 192)
WHOLE = 1024
"""Shorter side of the large view, in pixels."""
TINY = 64
"""Images up to this side are sent as they are, and the page enlarges them without smoothing."""
KEPT = 1 << 30
"""Bytes of thumbnails on disk."""


class Thumbs:
    """JPEG and PNG pictures of a source's images.

    Args:
        folder: where they are kept.
        source: gives the source, or None where it cannot be read.
        keep: bytes on disk; folders of a thousand thumbnails that were not used for longest go first.
    """

    def __init__(self, folder: Path, source: Callable[[], ImageSource | None], keep: int = KEPT) -> None:
        self.folder, self._source, self.keep = folder, source, keep
        self._held: int | None = None
        self._lock = threading.Lock()

    def get(self, index: int, side: int) -> bytes | None:
        """The middle square of image `index`, of `side` pixels or less; None where it cannot be read."""
        file = self.folder / str(side) / f"{index // 1000:06d}" / f"{index}.bin"
        with contextlib.suppress(OSError):
            return file.read_bytes()
        picture = self.read(index, side)[0]
        if picture is None:
            return None
        found, _ = encoded(thumbnail(picture, min(side, *picture.shape[:2])), tiny=TINY)
        self._put(file, found)
        return found

    def full(self, index: int) -> bytes | None:
        """Image `index` as it is, shrunk where it is large; None where it cannot be read."""
        picture = self.read(index, WHOLE)[0]
        return None if picture is None else encoded(picture, tiny=TINY, quality=88)[0]

    def read(self, index: int, side: int | None) -> tuple[np.ndarray | None, str]:
        """The pixels of an image, or None and the reason why it cannot be read."""
        try:
            source = self._source()
            if source is None:
                return None, "the images are not there"
            return source.read(index, side), ""
        except (BadImage, DeepClusterError, OSError, ValueError, IndexError) as error:
            return None, " ".join(str(error).split()) or type(error).__name__

    def _put(self, file: Path, content: bytes) -> None:
        """Write to a temporary file and rename it; without fsync, since a thumbnail can be made again."""
        beside = file.with_name(f".{file.name}.{threading.get_ident()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content)
            os.replace(beside, file)
        except OSError:  # a full disk or a read-only run: the thumbnail was made all the same
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            return
        with self._lock:
            self._held = _bytes_in(self.folder) if self._held is None else self._held + len(content)
            if self._held <= self.keep:
                return
            # folders go, the longest untouched first, until a fifth of the room is free
            for folder in sorted(self.folder.glob("*/*"), key=lambda path: path.stat().st_mtime)[:-1]:
                if self._held > 0.8 * self.keep:
                    self._held -= _bytes_in(folder)
                    shutil.rmtree(folder, ignore_errors=True)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.bin"))


def placeholder() -> bytes:
    """A small gray picture with a cross, for an image that cannot be read."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (32, 32), (200, 200, 200))
    for line in ((8, 8, 23, 23), (8, 23, 23, 8)):
        ImageDraw.Draw(page).line(line, fill=(110, 110, 110), width=2)
    return encoded(np.asarray(page), tiny=TINY)[0]


def kind(content: bytes) -> str:
    """The media type of a picture."""
    return "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"

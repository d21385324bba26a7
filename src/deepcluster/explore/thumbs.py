"""Thumbnails by index: made when they are asked for, the last ones kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from deepcluster.data.decode import MOST_PIXELS
from deepcluster.data.source import ImageSource
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.visualize.images import encoded, thumbnail

SIDES = (96, 192)
WHOLE = 1024
"""Shorter side of the large view, in pixels."""
TINY = 64
"""Images up to this side are sent as they are, and the page enlarges them without smoothing."""
PIXELS = 1 << 26
"""Of a picture that is shown or looked for: one of 81 million, of 300 kB, takes a gigabyte and seconds of a waiting
person. Larger JPEGs are shrunk as they are read and fit."""
AT_ONCE = threading.Semaphore(2)
"""Pictures that are decoded at once, which bounds memory; requests have 40 threads."""
KEPT = 10_000
"""Thumbnails in memory: some 5 kB each. The browser keeps those it has seen."""


class Thumbs:
    """JPEG and PNG pictures of a source's images.

    Args:
        source: gives the source, or None where it cannot be read.

    Attributes:
        get: index, side -> the middle square of an image, of `side` pixels or less; BadImage where it cannot be read.
    """

    def __init__(self, source: Callable[[], ImageSource | None]) -> None:
        self._source = source
        self.get = lru_cache(KEPT)(self._thumbnail)

    def _thumbnail(self, index: int, side: int) -> bytes:
        picture = self.read(index, side)
        return encoded(thumbnail(picture, min(side, *picture.shape[:2])), tiny=TINY)[0]

    def full(self, index: int) -> bytes:
        """Image `index` as it is, shrunk where it is large; BadImage where it cannot be read."""
        return encoded(self.read(index, WHOLE), tiny=TINY, quality=88)[0]

    def read(self, index: int, side: int) -> np.ndarray:
        """The pixels of an image; BadImage with the reason where it cannot be read."""
        try:
            if (source := self._source()) is None:
                raise BadImage("the images are not there")
            with patient():
                return source.read(index, side)
        except (DeepClusterError, OSError, ValueError, IndexError) as error:
            raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


@contextmanager
def patient() -> Iterator[None]:
    """Pictures that are decoded within are few at once and of at most `PIXELS`; larger ones are bad images."""
    with AT_ONCE:
        before = MOST_PIXELS.set(PIXELS)
        try:
            yield
        finally:
            MOST_PIXELS.reset(before)


def placeholder() -> bytes:
    """A small gray picture with a cross, for an image that cannot be read."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (32, 32), (200, 200, 200))
    for line in ((8, 8, 23, 23), (8, 23, 23, 8)):
        ImageDraw.Draw(page).line(line, fill=(110, 110, 110), width=2)
    return encoded(np.asarray(page), tiny=TINY)[0]

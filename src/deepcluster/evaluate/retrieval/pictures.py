"""Some images of a source, whole or cut to a box, made ready for a network at their own shape.

This file knows nothing of networks or of ground truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from deepcluster.data.decode import shrink
from deepcluster.data.source import ImageSource
from deepcluster.errors import BadImage

CROPS = ("resize-then-crop", "crop-then-resize", "no")
"""What becomes of a query's box: the image is resized and then cut to the scaled box, so that things keep the size
they have in the database (the papers' habit); it is cut first, and the cut resized; it is not cut."""
AHEAD = 16  # pictures decoded while the ones before them are looked at


class Chosen:
    """An `ImageSource` of some images of another, in the order given, each perhaps cut to a box.

    Args:
        source: any images.
        rows: (M,) int64 indices of it.
        boxes: (M, 4) left, top, right and bottom in pixels; None = whole images.
    """

    def __init__(self, source: ImageSource, rows: np.ndarray, boxes: np.ndarray | None = None) -> None:
        self.name = source.name
        self.labels = None if source.labels is None else source.labels[rows]
        self.classes = source.classes
        self.source, self.rows, self.boxes = source, np.asarray(rows, np.int64), boxes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether these are all images of the other source, uncut and in its order."""
        return self.boxes is None and np.array_equal(self.rows, np.arange(len(self.source)))

    def path(self, index: int) -> str:
        """The path in the other source."""
        return self.source.path(int(self.rows[index]))

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8, cut to its box, then shrunk. Raises: BadImage."""
        if self.boxes is None:
            return self.source.read(int(self.rows[index]), short_side)
        picture = cut(self.source.read(int(self.rows[index])), self.boxes[index])
        return np.asarray(shrink(Image.fromarray(picture), short_side))

    def fingerprint(self) -> str:
        """The other source's where it is all of it, so that what is kept of that is found again."""
        if self.is_whole:
            return self.source.fingerprint()
        digest = hashlib.blake2b(self.source.fingerprint().encode(), digest_size=16)
        digest.update(self.rows.tobytes())
        digest.update(b"" if self.boxes is None else self.boxes.astype(np.float64).tobytes())
        return digest.hexdigest()

    def sized(self, index: int, long_side: int, crop: str = CROPS[0]) -> np.ndarray:
        """(H, W, 3) uint8, enlarged or shrunk so that the longer side is `long_side`, and cut as `crop` says.

        Raises:
            BadImage: the image cannot be decoded.
        """
        if self.boxes is None or crop == "no":
            return resize(self.source.read(int(self.rows[index])), long_side)
        if crop == "crop-then-resize":
            return resize(self.read(index), long_side)
        picture = self.source.read(int(self.rows[index]))
        scale = long_side / max(picture.shape[:2])
        return cut(resize(picture, long_side), self.boxes[index] * scale)


def resize(picture: np.ndarray, long_side: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 at a longer side of `long_side`, bilinear (antialiased where it shrinks)."""
    height, width = picture.shape[:2]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def cut(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of a picture (H, W, 3) within a box of four, rounded to pixels, that lies in the picture.

    Raises:
        BadImage: no pixel does.
    """
    left, top, right, bottom = (max(0, round(float(edge))) for edge in box)
    part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    if not part.size:
        raise BadImage(f"its box {[round(float(edge), 1) for edge in box]} lies outside of it")
    return part


def read_ahead(
    chosen: Chosen, indices: Sequence[int], long_side: int, crop: str = CROPS[0]
) -> Iterator[tuple[int, np.ndarray | BadImage]]:
    """Index and picture of each, in order, decoded by threads a few ahead; the reason in place of a bad one."""

    def read(index: int) -> np.ndarray | BadImage:
        try:
            return chosen.sized(index, long_side, crop)
        except BadImage as reason:
            return reason

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(read, index) for index in indices[:AHEAD]]
        for place, index in enumerate(indices):
            if place + AHEAD < len(indices):
                waiting.append(threads.submit(read, indices[place + AHEAD]))
            yield index, waiting[place].result()
            waiting[place] = None  # type: ignore[call-overload]  # pictures are large

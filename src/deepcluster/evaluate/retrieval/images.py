"""Some images of a source, perhaps cropped to boxes, at their own aspect ratio. Knows no networks or ground truth."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from deepcluster.data.cache_entry import marks_of
from deepcluster.data.decode import shrink
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.errors import BadImage

Crop = Literal["resize-then-crop", "crop-then-resize", "no"]
"""What is done with a query's box; resized first, as in the papers, objects keep the size they have in the database."""


class ImageSubset:
    """An `ImageSource` of some images of another, by (M,) int64 rows in the order given, each perhaps cropped to a box:
    (M, 4) left, top, right and bottom in pixels, which `sized` uses as `crop` says."""

    def __init__(
        self, source: ImageSource, rows: np.ndarray, boxes: np.ndarray | None = None, crop: Crop = "resize-then-crop"
    ) -> None:
        self.name = source.name
        self.labels = None if source.labels is None else source.labels[rows]
        self.classes = source.classes
        self.source, self.rows, self.crop = source, np.asarray(rows, np.int64), crop
        self.boxes = None if crop == "no" else boxes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether these are all images of the source, uncropped and in its order."""
        return self.boxes is None and np.array_equal(self.rows, np.arange(len(self.source)))

    def path(self, index: int) -> str:
        """The path in the source."""
        return self.source.path(int(self.rows[index]))

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8, cropped to its box, then shrunk. Raises: BadImage."""
        if self.boxes is None:
            return self.source.read(int(self.rows[index]), short_side)
        picture = crop_to_box(self.source.read(int(self.rows[index])), self.boxes[index])
        return np.asarray(shrink(Image.fromarray(picture), short_side))

    def sized(self, index: int, long_side: int) -> np.ndarray:
        """(H, W, 3) uint8, enlarged or shrunk to a longer side of `long_side`, and cropped as `crop` says; BadImage
        where it cannot be decoded, or its box lies outside of it."""
        if self.boxes is None or self.crop != "resize-then-crop":
            return resize(self.read(index), long_side)
        picture = self.source.read(int(self.rows[index]))
        scale = long_side / max(picture.shape[:2])
        return crop_to_box(resize(picture, long_side), self.boxes[index] * scale)

    def marks(self) -> np.ndarray:
        """(M,) uint64, see `marks_of`."""
        return marks_of(self.source)[self.rows]

    def fingerprint(self) -> str:
        """The source's where this is all of it, so that what is cached for the source is found."""
        if self.is_complete:
            return self.source.fingerprint()
        boxes = [] if self.boxes is None else [self.boxes.astype(np.float64), self.crop]
        return digest(self.source.fingerprint(), self.rows, *boxes)


def resize(picture: np.ndarray, long_side: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a longer side of `long_side`, bilinear (antialiased where it shrinks)."""
    height, width = picture.shape[:2]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def crop_to_box(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of a picture (H, W, 3) within a box (4,) of left, top, right and bottom, rounded to pixels; BadImage
    where there is none."""
    left, top, right, bottom = (max(0, round(float(edge))) for edge in box)
    part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    if not part.size:
        raise BadImage(f"its box {[round(float(edge), 1) for edge in box]} lies outside of it")
    return part

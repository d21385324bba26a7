"""What is known of one image of PASCAL VOC: objects with boxes from its XML, classes of pixels from its mask."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deepcluster.errors import BadImage

#: Pixels that a box may reach outside its image unnoticed: sets number pixels from 0 or 1, and end at W or W + 1.
TOLERANCE = 1.5
VOID = 255
"""Of a mask: pixels at borders and of difficult objects, which are not scored."""


@dataclass(frozen=True)
class Annotation:
    """The n objects of one annotation file, in order."""

    names: list[str]  # of their classes
    boxes: np.ndarray  # (n, 4) float32, see `Objects`; NaN where the box is broken
    difficult: np.ndarray  # (n,) bool
    problems: list[str]  # one reason for each thing that was broken and left out

    def objects(self, classes: Sequence[str]) -> Objects:
        """Those with a box whose class is one of `classes`."""
        labels = np.array([classes.index(name) if name in classes else -1 for name in self.names], np.int64)
        usable = (labels >= 0) & np.isfinite(self.boxes).all(axis=1)
        return Objects(self.boxes[usable], labels[usable], self.difficult[usable])


@dataclass(frozen=True)
class Objects:
    """The n objects of one image whose boxes can be used.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels counted from 0, where x2 and y2 are exclusive: the file's
            xmin - 1, ymin - 1, xmax, ymax, as VOC counts pixels from 1 and includes the last. A width is x2 - x1,
            which VOC's own code writes as xmax - xmin + 1. torchvision has the same convention.
        labels: (n,) int64, positions in `VOC.classes`.
        difficult: (n,) bool, objects that count neither as found nor as missed.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def parse_annotation(data: bytes) -> Annotation:
    """Reads one annotation; an object with a broken box keeps its class, which the image still shows. BadImage where it
    is not XML, or not an annotation."""
    if b"<!ENTITY" in data:
        raise BadImage("declares entities, which an annotation has no use for")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise BadImage(f"is not XML ({error})") from None
    if root.tag != "annotation":
        raise BadImage(f"is not an annotation (it begins with <{root.tag}>)")
    height, width = (_integer(root.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (height, width) if height > 0 and width > 0 else (0, 0)
    names: list[str] = []
    boxes: list[tuple[float, ...]] = []
    difficult: list[bool] = []
    problems: list[str] = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        if not name:
            problems.append(f"object {number} has no name; it is left out")
            continue
        try:
            box, clipped = _box(element.find("bndbox"), size)
            if clipped:
                problems.append(f"object {number} ({name}) has a box that reaches outside its image; it is clipped")
        except ValueError as error:
            problems.append(f"object {number} ({name}) {error}; its box is left out")
            box = (math.nan,) * 4
        names.append(name)
        boxes.append(box)
        difficult.append((element.findtext("difficult") or "").strip().lower() in ("1", "true"))
    return Annotation(names, np.array(boxes, np.float32).reshape(-1, 4), np.array(difficult, bool), problems)


def _box(element: ElementTree.Element | None, size: tuple[int, int]) -> tuple[tuple[float, ...], bool]:
    """x1, y1, x2, y2 within the image, and whether much was clipped. Raises: ValueError: why there is no such box."""
    if element is None:
        raise ValueError("has no box")
    texts = [(element.findtext(side) or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"has a box that is not four numbers ({', '.join(texts)})")
    left, top, right, bottom = numbers
    if right <= left or bottom <= top:  # a box of one point or one line is a slip of the hand, not an object
        raise ValueError(f"has a box without area ({', '.join(texts)})")
    x1, y1, x2, y2 = left - 1, top - 1, right, bottom
    height, width = size if size[0] else (math.inf, math.inf)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise ValueError(f"has a box outside its image ({', '.join(texts)})")
    clipped = x1 < -TOLERANCE or y1 < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE
    return (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)), clipped


def _integer(text: str | None) -> int:
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        return 0


def read_mask(data: bytes) -> np.ndarray:
    """(H, W) uint8 of a palette PNG: its indices, not its colors. A color PNG is looked up in VOC's palette; BadImage
    for any other picture."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            if picture.mode in ("P", "L"):
                return np.array(picture, np.uint8)
            colors = np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise BadImage(f"its mask is not a readable PNG ({error})") from None
    codes = voc_palette().astype(np.int64) @ (65536, 256, 1)
    order = np.argsort(codes)
    wanted = colors.astype(np.int64) @ (65536, 256, 1)
    mask: np.ndarray = order[np.searchsorted(codes, wanted, sorter=order).clip(max=255)]
    if (codes[mask] != wanted).any():
        raise BadImage("its mask has colors that are not in VOC's palette")
    return mask.astype(np.uint8)


def voc_palette() -> np.ndarray:
    """(256, 3) uint8, the colors of VOC's masks: the bits of an index go to red, green and blue in turn."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return palette.astype(np.uint8)

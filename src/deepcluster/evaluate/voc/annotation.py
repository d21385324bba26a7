"""One Annotations/ID.xml of PASCAL VOC: objects with boxes, and what is wrong with it.

Nothing here knows where the files lie or what is scored.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from deepcluster.errors import BadImage

#: Pixels that a box may reach outside without a word: sets number pixels from 0 or from 1, and end at W or W + 1.
SLACK = 1.5


@dataclass(frozen=True)
class Found:
    """One object as it stands in the file.

    Attributes:
        name: of its class.
        box: x1, y1, x2, y2 in pixels counted from 0, x2 and y2 exclusive; None where the box is broken.
        difficult, truncated: VOC's marks.
    """

    name: str
    box: tuple[float, float, float, float] | None
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class Annotation:
    """What one file says.

    Attributes:
        found: its objects, in order.
        size: height and width of the image as the file has them; (0, 0) where it does not.
        problems: one reason for each thing that was broken and left out.
    """

    found: tuple[Found, ...]
    size: tuple[int, int]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Objects:
    """The n objects of one image whose boxes can be used.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels counted from 0, where x2 and y2 are exclusive: the file's
            xmin - 1, ymin - 1, xmax, ymax, as VOC counts pixels from 1 and includes the last. A width is x2 - x1, and
            is what VOC's own code has as xmax - xmin + 1. It is torchvision's convention, too.
        labels: (n,) int64, positions in `VOC.classes`.
        difficult: (n,) bool, objects that neither count as found nor as missed.
        truncated: (n,) bool, objects that reach beyond the image.
        size: height and width of the image as annotated; (0, 0) where that is not told.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)


def parse(data: bytes) -> Annotation:
    """Reads one annotation; an object with a broken box keeps its name, which still says that it is there.

    Raises:
        BadImage: it is no XML, or no annotation.
    """
    if b"<!ENTITY" in data:
        raise BadImage("declares entities, which an annotation has no use for")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise BadImage(f"is no XML ({error})") from None
    if root.tag != "annotation":
        raise BadImage(f"is no annotation (it begins with <{root.tag}>)")
    height, width = (_whole(root.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (height, width) if height > 0 and width > 0 else (0, 0)
    found, problems = [], []
    for number, part in enumerate(root.findall("object"), start=1):
        name = (part.findtext("name") or "").strip()
        if not name:
            problems.append(f"object {number} has no name; it is left out")
            continue
        try:
            box, cut = _box(part.find("bndbox"), size)
            if cut:
                problems.append(f"object {number} ({name}) has a box that reaches outside its image; it is cut")
        except ValueError as error:
            problems.append(f"object {number} ({name}) {error}; its box is left out")
            box = None
        found.append(Found(name, box, _flag(part, "difficult"), _flag(part, "truncated")))
    return Annotation(tuple(found), size, tuple(problems))


def objects_of(annotation: Annotation, number: dict[str, int]) -> Objects:
    """Those objects with a box whose class has a number."""
    kept = [one for one in annotation.found if one.box is not None and one.name in number]
    return Objects(
        boxes=np.array([one.box for one in kept], np.float32).reshape(-1, 4),
        labels=np.array([number[one.name] for one in kept], np.int64),
        difficult=np.array([one.difficult for one in kept], bool),
        truncated=np.array([one.truncated for one in kept], bool),
        size=annotation.size,
    )


def _box(part: ElementTree.Element | None, size: tuple[int, int]) -> tuple[tuple[float, float, float, float], bool]:
    """x1, y1, x2, y2 within the image, and whether much was cut. Raises: ValueError: why that cannot be."""
    if part is None:
        raise ValueError("has no box")
    texts = [(part.findtext(side) or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        raise ValueError(f"has a box that is not four numbers ({', '.join(texts)})") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"has a box that is not four numbers ({', '.join(texts)})")
    if right <= left or bottom <= top:  # a box of one point or one line is a slip of the hand, not an object
        raise ValueError(f"has a box without area ({', '.join(texts)})")
    x1, y1, x2, y2 = left - 1, top - 1, right, bottom
    height, width = size
    if not height:
        return (max(x1, 0), max(y1, 0), x2, y2), x1 < -SLACK or y1 < -SLACK
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise ValueError(f"has a box outside its image ({', '.join(texts)} in {width} x {height})")
    cut = x1 < -SLACK or y1 < -SLACK or x2 > width + SLACK or y2 > height + SLACK
    return (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)), cut


def _flag(part: ElementTree.Element, name: str) -> bool:
    return (part.findtext(name) or "").strip().lower() in ("1", "true")


def _whole(text: str | None) -> int:
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        return 0

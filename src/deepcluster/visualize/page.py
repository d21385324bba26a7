"""Pages of pixels: words above a picture, pictures beside and below each other.

This file knows arrays and letters, and nothing of what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepcluster.visualize import style
from deepcluster.visualize.grid import PAPER

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

NARROW = 560
"""Pixels that a page with words is wide at least: narrower ones would break every line."""


def line(text: str, width: int, *, size: int = 14, bold: bool = False, color: str = style.INK) -> np.ndarray:
    """(H, width, 3) uint8 single line of text, ended by three dots where it is too long."""
    from PIL import Image, ImageDraw

    letters = _font(size, bold)
    if letters.getlength(text) > width - 8:
        while text and letters.getlength(text + "...") > width - 8:
            text = text[:-1]
        text = text.rstrip() + "..."
    found = Image.new("RGB", (width, round(size * 1.7)), style.PAPER)
    ImageDraw.Draw(found).text((4, round(size * 0.3)), text, fill=color, font=letters)
    return np.asarray(found)


def paragraph(text: str, width: int, *, size: int = 13, color: str = style.QUIET) -> np.ndarray:
    """(H, width, 3) uint8 text, broken between words."""
    letters, rows, row = _font(size, False), [], ""
    for word in text.split():
        longer = f"{row} {word}".strip()
        if row and letters.getlength(longer) > width - 8:
            rows.append(row)
            longer = word
        row = longer
    return below([line(each, width, size=size, color=color) for each in [*rows, row]], gap=0)


def titled(picture: np.ndarray, title: str, text: str = "", *, margin: int = 10) -> np.ndarray:
    """A picture below a bold title and a paragraph that says what is seen, with a white margin around."""
    width = max(picture.shape[1], NARROW)
    parts = [line(title, width, size=17, bold=True)]
    if text:
        parts.append(paragraph(text, width))
    return np.pad(below([*parts, picture], gap=4), ((margin, margin), (margin, margin), (0, 0)), constant_values=PAPER)


def below(pictures: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """(H, W, 3) pictures under each other, flush left."""
    width = max(picture.shape[1] for picture in pictures)
    parts = []
    for number, picture in enumerate(pictures):
        space = gap if number else 0
        sides = ((space, 0), (0, width - picture.shape[1]), (0, 0))
        parts.append(np.pad(picture, sides, constant_values=PAPER))
    return np.concatenate(parts)


def beside(pictures: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """(H, W, 3) pictures next to each other, flush with the top."""
    height = max(picture.shape[0] for picture in pictures)
    parts = []
    for number, picture in enumerate(pictures):
        space = gap if number else 0
        sides = ((0, height - picture.shape[0]), (space, 0), (0, 0))
        parts.append(np.pad(picture, sides, constant_values=PAPER))
    return np.concatenate(parts, axis=1)


def framed(picture: np.ndarray, color: str, width: int = 3) -> np.ndarray:
    """The same (H, W, 3) picture with its outermost pixels in one color."""
    from PIL import ImageColor

    found = picture.copy()
    for edge in (found[:width], found[-width:], found[:, :width], found[:, -width:]):
        edge[:] = ImageColor.getrgb(color)[:3]
    return found


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of an (H, W, 3) picture as a square of `factor` x `factor`."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


@cache
def _font(size: int, bold: bool) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / f"DejaVuSans{'-Bold' * bold}.ttf", size)

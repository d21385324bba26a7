"""Images on a page, as (H, W, 3) uint8 arrays: thumbnails, grids, text, frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from deepcluster.visualize import style
from deepcluster.visualize.letters import drawable, font_file

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

WHITE, PALE = 255, 232
"""The page, and what fills the place of a missing image."""
NARROWEST = 560
"""Least width of a page with text, in pixels: narrower ones would break every line."""


def thumbnail(image: np.ndarray | None, side: int) -> np.ndarray:
    """The central square of an (H, W, 3) image as (side, side, 3); a pale square for None, an image that is gone.

    A tiny image is enlarged without smoothing, so that its pixels stay what they are.
    """
    if image is None:
        return np.full((side, side, 3), PALE, np.uint8)
    short = min(image.shape[:2])
    top, left = (image.shape[0] - short) // 2, (image.shape[1] - short) // 2
    return _resized(image[top : top + short, left : left + short], side, side)


def letterboxed(image: np.ndarray, side: int) -> np.ndarray:
    """An (H, W, 3) image scaled to fit into a pale square in its own proportions."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    small = _resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
    spare = [side - length for length in small.shape[:2]]
    return np.pad(small, [*((each // 2, each - each // 2) for each in spare), (0, 0)], constant_values=PALE)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image at another size; enlarged twice or more, its pixels become squares."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    filter_ = Image.Resampling.NEAREST if height >= 2 * image.shape[0] else Image.Resampling.LANCZOS
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), filter_, reducing_gap=3.0 if height < image.shape[0] else None))


def encoded(image: np.ndarray, *, tiny: int, quality: int = 82) -> tuple[bytes, Literal["png", "jpeg"]]:
    """An (H, W, 3) image as PNG where no side is longer than `tiny`, as JPEG otherwise, and which of them it is."""
    from PIL import Image

    kind: Literal["png", "jpeg"] = "png" if max(image.shape[:2]) <= tiny else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, quality=quality)
    return buffer.getvalue(), kind


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of an (H, W, 3) image as a square of `factor` x `factor`."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def framed(image: np.ndarray, color: str, width: int = 3) -> np.ndarray:
    """A copy of an (H, W, 3) image with its outermost pixels in one color."""
    from PIL import Image, ImageOps

    inner = Image.fromarray(image[width:-width, width:-width])
    return np.asarray(ImageOps.expand(inner, border=width, fill=color))


def padded(image: np.ndarray, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    """An (H, W, 3) image with white margins."""
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), constant_values=WHITE)


def stacked(images: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """(H, W, 3) images below each other, flush left, `gap` pixels apart."""
    width = max(image.shape[1] for image in images)
    return np.concatenate(
        [padded(image, top=gap if n else 0, right=width - image.shape[1]) for n, image in enumerate(images)]
    )


def side_by_side(images: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """(H, W, 3) images next to each other, flush with the top, `gap` pixels apart."""
    return np.swapaxes(stacked([np.swapaxes(image, 0, 1) for image in images], gap), 0, 1)


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """(H, W, 3) uint8 images in rows of `columns`, with `gap` white pixels between and around them.

    Smaller images are padded at the right and below to the size of the largest.
    """
    if not images:
        return np.full((gap, gap, 3), WHITE, np.uint8)
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    cells = [padded(one, bottom=height - one.shape[0], right=width - one.shape[1]) for one in images]
    columns = max(1, min(columns, len(images)))
    rows = [side_by_side(cells[start : start + columns], gap) for start in range(0, len(cells), columns)]
    return padded(stacked(rows, gap), top=gap, bottom=gap, left=gap, right=gap)


def text_line(text: str, width: int, *, size: int = 14, bold: bool = False, color: str = style.INK) -> np.ndarray:
    """(H, width, 3) single line of text, ended by three dots where it is too long; see `drawable`."""
    from PIL import Image, ImageDraw

    text, end = drawable(text[: width + 1], bold), ""
    while text and _length(text + end, size, bold) > width - 8:
        text, end = text[:-1].rstrip(), "..."
    found = Image.new("RGB", (width, round(size * 1.7)), style.PAPER)
    left, baseline = 4.0, round(size * 0.3) + _font(font_file(" ", bold), size).getmetrics()[0]
    for font, part in _runs(text + end, size, bold):
        ImageDraw.Draw(found).text((left, baseline), part, fill=color, font=font, anchor="ls")
        left += font.getlength(part)
    return np.asarray(found)


def paragraph(text: str, width: int) -> np.ndarray:
    """(H, width, 3) text, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = not lines[-1] or _length(drawable(longer), 13) <= width - 8
        lines[-1:] = [longer] if fits else [lines[-1], word]
    return stacked([text_line(line, width, size=13, color=style.QUIET) for line in lines], gap=0)


def titled(image: np.ndarray, title: str, text: str) -> np.ndarray:
    """An image below a bold title and a paragraph that explains it, with a white margin around."""
    width = max(image.shape[1], NARROWEST)
    head = [text_line(title, width, size=17, bold=True), paragraph(text, width)]
    return padded(stacked([*head, image], gap=4), top=10, bottom=10, left=10, right=10)


def _length(text: str, size: int, bold: bool = False) -> float:
    return sum(font.getlength(part) for font, part in _runs(text, size, bold))


def _runs(text: str, size: int, bold: bool) -> list[tuple[FreeTypeFont, str]]:
    """Drawable text in parts that one font has, each with its font."""
    parts = groupby(text, lambda letter: font_file(letter, bold))
    return [(_font(file, size), "".join(letters)) for file, letters in parts]


@cache
def _font(file: Path | None, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    assert file is not None, "text is made drawable first"
    return ImageFont.truetype(file, size)

"""Bytes in, image out: (H, W, 3) uint8 RGB as a person would see it, or `BadImage` with a reason."""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from deepcluster.data.damage import CUT_OFF, find_damage, without_end
from deepcluster.data.depth import deepened, grey, has_deep_planes, has_signs, is_deep, significant_bits
from deepcluster.data.formats import BYTES, FORMATS, HEAD, PIXELS, format_of_head
from deepcluster.data.libtiff import listen
from deepcluster.errors import BadImage
from deepcluster.reading import read_bytes, regular_size

#: A filter for Pillow's warnings: what they say is the reason of a bad image, or does not touch the picture. It is put
#: in and taken out by hand, since threads would undo each other's `warnings.catch_warnings`.
SILENT = ("ignore", None, Warning, re.compile(r"PIL\b|pillow_heif"), 0)

MOST_PIXELS: ContextVar[int] = ContextVar("MOST_PIXELS", default=PIXELS)
"""Pixels of a picture at most, a JPEG's after the shrinking that costs nothing. Where a person waits, it is set
to fewer."""

for name in ("PIL", "pillow_heif"):  # so are their logs, which without a handler would go to the screen
    logging.getLogger(name).addHandler(logging.NullHandler())

ORIENTATION = 0x0112  # EXIF tag
#: EXIF orientation -> how the stored image is turned so that it stands upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes | str | Path, short_side: int | None = None) -> np.ndarray:
    """The image in `data`: (H, W, 3) uint8 RGB, upright, on white where it is transparent.

    Values of more than 8 bits are scaled by the rule of `deepcluster.data.depth`.

    Args:
        data: the bytes of a file, or its path.
        short_side: in pixels; a larger image is shrunk so that its shorter side has this length
            (antialiased), a smaller one is left alone.

    Raises:
        BadImage: the file is missing, no regular file, beyond `BYTES` or `PIXELS`, empty, cut off, damaged or no image.
    """
    if not isinstance(data, bytes):
        data = encoded(data)
    if not data:
        raise BadImage("empty file")
    if len(data) > BYTES:
        raise BadImage(f"too large: {len(data):,} bytes, and {BYTES:,} are the most that is read")
    said = listen()
    filters: Any = warnings.filters
    filters.insert(0, SILENT)
    try:
        picture = _read(data, short_side, said)
    except BadImage:
        raise
    except MemoryError:
        raise BadImage("too large: there is not enough memory for its pixels") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if said and reason.startswith("decoder error"):
            reason = f"damaged: {said[0]}"
        elif "truncated" in reason.lower():
            reason = "cut off: " + reason
        raise BadImage(reason[:200]) from None
    finally:
        with suppress(ValueError):
            filters.remove(SILENT)
    return np.array(shrink(picture, short_side))  # a copy: Pillow's own memory is read-only, which torch warns of


def encoded(file: str | Path) -> bytes:
    """The bytes of an image file. Raises BadImage: it is missing, no regular file, or beyond `BYTES`."""
    try:
        return read_bytes(file, BYTES)
    except (OSError, ValueError) as error:
        raise BadImage(getattr(error, "strerror", None) or str(error)) from None


def _read(data: bytes, short_side: int | None, said: list[str]) -> Image.Image:
    """The picture, larger than `short_side` where need be. Raises BadImage, and anything else that Pillow raises."""
    with _open(data, stream := _Watched(opened := without_end(data))) as image:
        if short_side is not None and image.format == "JPEG":
            _draft(image, short_side)
        if image.width * image.height > (most := MOST_PIXELS.get()):
            raise BadImage(f"too large: {image.width:,} x {image.height:,} pixels, and {most:,} are the most here")
        if has_deep_planes(image):
            raise BadImage("more than 8 bits in channels that lie apart: save it with its channels interleaved")
        deep = is_deep(image)
        stream.ran_dry = False
        image.load()
        if ImageFile.LOAD_TRUNCATED_IMAGES and stream.ran_dry:  # set by another library, for the whole process
            raise BadImage(CUT_OFF)
        if opened is data and (damage := find_damage(image, data, _open)):
            raise BadImage(damage)
        if said:
            raise BadImage(f"damaged: {said[0]}"[:200])
        if image.format == "PNG":
            image.info["significant_bits"] = significant_bits(data)
        return to_rgb(deepened(image, lambda: _open(data)) if deep else image)


def upright_size(file: str | Path) -> tuple[int, int]:
    """Height and width of the image in a file as `decode` would give it, from its first bytes alone.

    Raises:
        BadImage, and anything else that Pillow raises: it is none.
    """
    regular_size(file)
    with open(file, "rb") as stream, _open(stream.read(HEAD), stream) as image:
        height, width = image.height, image.width
        return (width, height) if _orientation(image) >= 5 else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded Pillow image as upright 8-bit RGB, composited on white where it is transparent."""
    orientation = _orientation(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        picture = image
    elif image.mode.startswith(("I", "F")) or has_signs(image):
        picture = grey(image).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        picture = Image.new("RGB", image.size, (255, 255, 255))
        picture.paste(rgba, mask=rgba.getchannel("A"))
    else:
        picture = image.convert("RGB")  # L, 1, P, CMYK (Pillow undoes Adobe's inversion), YCbCr, LAB, HSV
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def shrink(image: Image.Image, short_side: int | None) -> Image.Image:
    """`image`, shrunk (antialiased bilinear) to a shorter side of `short_side` pixels; never enlarged."""
    width, height = image.size
    if short_side is None or min(width, height) <= short_side:
        return image
    scale = short_side / min(width, height)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the image
        return 1


def _draft(image: Image.Image, short_side: int) -> None:
    """Let the JPEG decoder shrink by 2, 4 or 8 where the result stays at least `short_side`: several times faster."""
    width, height = image.size
    scale = short_side / min(width, height)
    if scale <= 0.5:
        image.draft(None, (int(np.ceil(width * scale)), int(np.ceil(height * scale))))


def _open(data: bytes, stream: IO[bytes] | None = None) -> Any:
    """Opens an image as `Image.open` does, but for its limit of pixels, which is one of the whole process and not ours.

    The formats are asked in our order; the one that the first bytes announce is asked alone.
    """
    stream = io.BytesIO(data) if stream is None else stream
    kind = format_of_head(data[:HEAD])
    known = _formats()
    if kind == "HEIF" and kind not in Image.OPEN and not _learn_heif():
        raise BadImage("HEIC: install deepcluster[heic]")
    if kind is not None and kind not in Image.OPEN:
        raise BadImage(f"{kind}: the Pillow installed here does not read it, upgrade it")
    for name in known if kind is None else (kind,):
        factory, accept = Image.OPEN[name]
        stream.seek(0)
        try:
            if accept is not None and (not (answer := accept(data[:16])) or isinstance(answer, str)):
                continue
            image: Any = factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
        if image.width * image.height > PIXELS:
            raise BadImage(f"too large: {image.width:,} x {image.height:,} pixels, and {PIXELS:,} are the most")
        return image
    raise BadImage(
        "not an image in a known format" if kind is None else f"{kind} image that is damaged, or of a kind not read"
    )


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def _learn_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


class _Watched(io.BytesIO):
    """Bytes that remember whether anybody read past their end."""

    ran_dry = False

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self.ran_dry = self.ran_dry or (not part and size != 0)
        return part

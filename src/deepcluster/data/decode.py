"""Bytes in, image out: (H, W, 3) uint8 RGB as a person would see it, or `BadImage` with a reason.

This file knows image formats; it knows nothing of folders, indices or caches.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from deepcluster.data.formats import FORMATS
from deepcluster.errors import BadImage

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

    Args:
        data: the bytes of a file, or its path.
        short_side: in pixels; a larger image is shrunk so that its shorter side has this length
            (antialiased), a smaller one is left alone.

    Raises:
        BadImage: the file is missing, empty, cut off, damaged or no image at all.
    """
    if not isinstance(data, bytes):
        try:
            data = Path(data).read_bytes()
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None
    if not data:
        raise BadImage("empty file")
    stream = _Watched(data)
    try:
        with Image.open(stream, formats=_formats()) as image:
            if short_side is not None and image.format == "JPEG":
                _draft(image, short_side)
            stream.ran_dry = False
            image.load()
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                _check_whole(image, stream)
            if image.format in ("JPEG", "MPO") and _grey_tail(image, data):
                raise BadImage("damaged: the picture ends in grey where data is missing")
            picture = to_rgb(image)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except Image.DecompressionBombError:
        raise BadImage("too large: more pixels than Pillow's safety limit") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "truncated" in reason.lower():
            reason = "cut off: " + reason
        raise BadImage(reason[:200]) from None
    return np.array(shrink(picture, short_side))  # a copy: Pillow's own memory is read-only, which torch warns of


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded Pillow image as upright 8-bit RGB, composited on white where it is transparent."""
    orientation = _orientation(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        picture = image
    elif image.mode.startswith(("I", "F")):
        picture = Image.fromarray(_by_range(np.asarray(image))).convert("RGB")
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


def _by_range(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth as uint8: 16-bit by its full range, others by the range they live in."""
    if values.dtype != np.float32 and values.max(initial=0) <= 65535 and values.min(initial=0) >= 0:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


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


def _check_whole(image: Image.Image, stream: _Watched) -> None:
    """Find a cut-off file although another library told Pillow, process-wide, to load those half-grey."""
    if stream.ran_dry:
        raise BadImage("cut off: the file ends before its picture does")
    if image.format == "PNG":
        with Image.open(io.BytesIO(stream.getvalue()), formats=["PNG"]) as again:
            again.verify()


def _grey_tail(image: Image.Image, data: bytes) -> bool:
    """Whether a JPEG ends in the mid-grey rows that libjpeg paints, without an error, for data it lacks.

    An image may end in that very grey by right. Then its last bytes code grey, and taking them away changes
    nothing above; where data is missing, the last bytes code the last good part, and taking them away changes
    that. The rows must be enough to hold a whole row of blocks.
    """
    missing = {"L": 128, "RGB": (128, 128, 128)}.get(image.mode)
    width, height = image.size
    if (
        missing is None
        or width < 64
        or any(image.getpixel((x, height - 1)) != missing for x in (0, width // 2, width - 1))
    ):
        return False
    pixels = np.asarray(image).reshape(height, -1)
    above = height - int((pixels == 128).all(1)[::-1].cumprod().sum())
    end = data.rfind(b"\xff\xd9")
    if not 0 < above <= height - 24 or end < 0:
        return False
    try:
        with Image.open(io.BytesIO(data[: end - 4] + b"\xff\xd9"), formats=["JPEG"]) as shorter:
            shorter.draft(None, image.size)
            return not np.array_equal(np.asarray(shorter).reshape(height, -1)[:above], pixels[:above])
    except Exception:
        return True


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _Watched(io.BytesIO):
    """Bytes that remember whether anybody read past their end."""

    ran_dry = False

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self.ran_dry = self.ran_dry or (not part and size != 0)
        return part

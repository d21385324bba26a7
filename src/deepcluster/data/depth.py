"""Grey and color values of more than 8 bits become 8 bits by the range of the data, not of the file's container.

The rule, first what applies:

1. The file's own range: a TIFF's SMinSampleValue and SMaxSampleValue (MinSampleValue, MaxSampleValue), the full
   range of PGM and JPEG 2000, the bits that a PNG's sBIT chunk tells; but not where the values themselves exceed it.
2. Negative values, or values above 65,535: from the smallest value of the image to its largest.
3. Floats within [0, 1]: that range. Floats up to 64 that are not whole numbers: from the smallest to the largest.
4. All others: 0 to the largest value of 8, 10, 12, 14 or 16 bits, whichever is the first to hold the image's largest.
   Images of one camera so share a scale, which stretching each by its own values would not give.

NaN, infinities, a GDAL_NODATA mark, and -9999 and the like far below all other values count for no range.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.errors import BadImage

BITS = (8, 10, 12, 14, 16)
#: Values that stand for "nothing measured here" where every other value is far above them.
MARKS = (-2147483648, -99999, -32768, -32767, -9999, -999)
#: Floats beyond are marks too: the largest float, 1e20 squared and what else is written for "nothing".
HUGE = 1e30

Range = tuple[float, float]


def to_uint8(values: np.ndarray, declared: Range | None = None, nodata: float | None = None) -> np.ndarray:
    """Values (H, W) of any type as uint8 of the same shape, by the rule above; NaN and marks become 0. BadImage where
    there is nothing else.

    Args:
        values: of one band.
        declared: smallest and largest value that the file itself tells.
        nodata: the value that the file uses for "nothing measured here".
    """
    valid = _valid(values, nodata)
    seen = values if valid.all() else values[valid]
    if not seen.size:
        raise BadImage("nothing was measured in it: every pixel is NaN, or the value that stands for nothing")
    low, high = _range(seen, declared)
    scaled = np.empty(values.shape, np.uint8)
    step = max(1, (1 << 20) // max(1, values.shape[1]))
    for row in range(0, len(values), step):  # some rows at a time: float64 takes eight times the memory
        part = (values[row : row + step].astype(np.float64) - low) * (255 / max(high - low, 1e-12))
        part[~valid[row : row + step] & ~(part == np.inf)] = 0
        scaled[row : row + step] = np.rint(part.clip(0, 255))
    return scaled


def _valid(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """(H, W) bool: values that were measured."""
    valid: np.ndarray = np.isfinite(values)
    if values.dtype.kind == "f":
        valid &= np.abs(values) < HUGE
    if nodata is not None:
        valid &= values != nodata
    for mark in MARKS:
        here = values == mark
        if here.any():
            rest = values[valid & ~here]
            if rest.size and rest.min() > mark / 2:
                valid &= ~here
    return valid


def _range(seen: np.ndarray, declared: Range | None) -> Range:
    low, high = float(seen.min()), float(seen.max())
    if declared is not None and declared[0] <= low and high <= declared[1]:
        return declared
    if low < 0 or high > 65535:
        return low, high
    if seen.dtype.kind == "f":
        if high <= 1:
            return 0.0, 1.0
        if high < 64 and (seen != np.rint(seen)).any():
            return low, high
    return 0.0, next(float(2**bits - 1) for bits in BITS if high < 2**bits)


def grey(image: Image.Image) -> Image.Image:
    """A loaded image of mode I, I;16, F or of signed values as L, by what its file tells of the range; see the rule."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow has no such mode: large values would be negative
    if image.mode == "L":
        values = values.view(np.int8)
    clear = image.info.get("transparency")  # a PNG's value that is no grey
    if clear is not None and (values == clear).all():
        return Image.new("L", image.size, 255)
    scaled = to_uint8(values, _declared(image, values), _number(tags.get(42113) if clear is None else clear))
    if clear is not None:
        scaled[values == clear] = 255
    return Image.fromarray(255 - scaled if tags.get(262) == 0 else scaled)  # "white is zero"


def has_signs(image: Image.Image) -> bool:
    """Whether a grey image of 8 bits has signed values, which Pillow takes for others."""
    return image.mode == "L" and getattr(image, "tag_v2", {}).get(339) == (2,)


def has_deep_planes(image: Image.Image) -> bool:
    """Whether each channel lies by itself in more than 8 bits, which Pillow would read as if they were 8."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(284) == 2 and len(image.getbands()) > 1 and max(tags.get(258, (8,))) > 8


def _declared(image: Image.Image, values: np.ndarray) -> Range | None:
    if image.format in ("PPM", "JPEG2000") and values.dtype.kind != "f":
        return 0.0, 65535.0  # Pillow has scaled them by the file's own range
    if bits := image.info.get("significant_bits"):
        # As PNG wants it, few bits are scaled up to 16; where they are not, the values themselves stay below.
        return 0.0, float(2**bits - 1) if values.max(initial=0) < 2**bits else 65535.0
    tags = getattr(image, "tag_v2", {})
    for smallest, largest in ((340, 341), (280, 281)):
        high = _number(tags.get(largest))
        low = _number(tags.get(smallest, 0))
        if low is not None and high is not None and np.isfinite([low, high]).all() and low < high:
            return low, high
    bits = tags.get(258, (0,))[0]
    return (0.0, float(2**bits - 1)) if values.dtype.kind == "u" and bits in BITS[1:-1] else None


def _number(tag: object) -> float | None:
    """A tag's value, or its first one, as a number; None where it is none."""
    with suppress(TypeError, ValueError, IndexError, ZeroDivisionError):
        return float(tag[0] if isinstance(tag, tuple) else str(tag).strip("\0 "))
    return None


def significant_bits(png: bytes) -> int | None:
    """Bits of each sample that matter, by the sBIT chunk of a PNG; None where it has none."""
    at = png.find(b"sBIT", 0, max(0, png.find(b"IDAT")))
    found = max(png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")][:4], default=0) if at > 0 else 0
    return found if 0 < found <= 16 else None


def is_deep(image: Any) -> bool:
    """Whether an image that is not loaded yet has 16 bits in each of several channels, of which Pillow keeps eight."""
    return image.format in ("PNG", "TIFF") and len(image.getbands()) > 1 and ";16" in _raw_mode(image)


def deepened(image: Image.Image, reopen: Callable[[], Any]) -> Image.Image:
    """A loaded image of 16 bits in each channel, with the bits that Pillow dropped where they are all there is.

    Pillow keeps the upper byte of each value. When that one is nearly empty, the lower byte is read as well, by
    opening the file again as if it were of the other byte order.
    """
    colors = min(3, len(image.getbands()))
    upper = np.asarray(image)
    if upper[..., :colors].max(initial=0) >= 64:
        return image
    with suppress(ValueError, OSError, KeyError, SystemError), reopen() as again:
        raw = _raw_mode(again)
        again.tile = [_with_raw_mode(tile, _other_byte(raw)) for tile in again.tile]
        lower = np.asarray(again)
        if raw.startswith("LA"):  # read as four bytes: upper and lower of grey, upper and lower of alpha
            upper, lower = lower[..., [0, 0, 0, 2]], lower[..., [1, 1, 1, 3]]
        values = upper.astype(np.uint16) << 8 | lower
        bits = image.info.get("significant_bits")
        declared = (0.0, float(2**bits - 1)) if bits else None
        color = to_uint8(values[..., :colors].reshape(len(values), -1), declared).reshape(*values.shape[:2], colors)
        alpha = [to_uint8(values[..., k])[..., None] for k in range(colors, values.shape[2])]
        whole = Image.fromarray(np.concatenate([color, *alpha], 2))
        whole.info = image.info
        return whole
    return image


def _raw_mode(image: Any) -> str:
    """How Pillow unpacks the tiles of an image that is not loaded yet, such as `RGB;16B`."""
    how = image.tile[0][3] if image.tile else ""
    return str(how if isinstance(how, str) else how[0])


def _with_raw_mode(tile: Any, mode: str) -> Any:
    changed = (*tile[:3], mode if isinstance(tile[3], str) else (mode, *tile[3][1:]))
    return type(tile)(*changed) if hasattr(tile, "_fields") else changed


def _other_byte(raw: str) -> str:
    name, _, order = raw.partition(";16")
    if name == "LA":
        return "RGBA"
    native = "L" if sys.byteorder == "little" else "B"
    return f"{name};16{'B' if (native if order == 'N' else order) == 'L' else 'L'}"

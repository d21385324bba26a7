"""Masks of PASCAL VOC: palette PNGs whose indices are classes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from deepcluster.errors import BadImage

VOID = 255
"""Of a mask: pixels at borders and of difficult objects, which are not scored."""


def read_mask(data: bytes) -> np.ndarray:
    """(H, W) uint8 of a palette PNG: its indices, not its colors. A color PNG is looked up in VOC's palette.

    Raises:
        BadImage: it is no such picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            if picture.mode in ("P", "L"):
                return np.array(picture, np.uint8)
            colors = np.asarray(picture.convert("RGB")).astype(np.int64)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise BadImage(f"its mask is no PNG that can be read ({error})") from None
    palette = voc_palette().astype(np.int64) @ (65536, 256, 1)
    order = np.argsort(palette)
    wanted = colors @ (65536, 256, 1)
    place = order[np.searchsorted(palette, wanted, sorter=order).clip(max=255)]
    if (palette[place] != wanted).any():
        raise BadImage("its mask has colors that are not in VOC's palette")
    return place.astype(np.uint8)


def voc_palette() -> np.ndarray:
    """(256, 3) uint8, the colors of VOC's masks: the bits of an index dealt to red, green and blue in turn."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return palette.clip(max=255).astype(np.uint8)

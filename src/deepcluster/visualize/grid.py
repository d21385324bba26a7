"""Images laid out on a page, as plain arrays.

This file knows pixels only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PAPER = 255


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """The middle square of an (H, W, 3) uint8 image as (side, side, 3).

    A tiny image is enlarged without smoothing, so that its pixels stay what they are.
    """
    from PIL import Image

    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + short, left : left + short]))
    if short == side:
        return np.asarray(square)
    how = Image.Resampling.NEAREST if 2 * short <= side else Image.Resampling.LANCZOS
    return np.asarray(square.resize((side, side), how, reducing_gap=3.0 if short > side else None))


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 4, paper: int = PAPER) -> np.ndarray:
    """Images of one size in rows of `columns`, `gap` pixels apart.

    Args:
        images: (H, W, 3) uint8 each.
        paper: gray value of the page, 0 to 255.

    Returns:
        (rows * (H + gap) + gap, columns * (W + gap) + gap, 3) uint8.
    """
    if not images:
        return np.full((gap, gap, 3), paper, dtype=np.uint8)
    height, width = images[0].shape[:2]
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), paper, dtype=np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        page[top : top + height, left : left + width] = image
    return page

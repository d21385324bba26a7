"""What is an image is told by the ending of a name, or by a file's first bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deepcluster.data.formats import FORMATS, HEAD, format_of_head, has_image_ending


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "DDS"])
def test_formats_are_known_by_their_first_bytes(kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, kind)
    assert format_of_head(stream.getvalue()[:HEAD]) == kind and kind in FORMATS


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp41isom", None),  # a film
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"BMW and other cars, a list", None),
        (b"P3 is a good grade", None),
        (b"%PDF-1.7", None),
        (b"", None),
        (b"PK\3\4", None),
    ],
)
def test_marks_of_no_file_at_hand(head: bytes, kind: str | None) -> None:
    assert format_of_head(head) == kind


def test_endings() -> None:
    assert has_image_ending("a/IMG_1.HEIC") and has_image_ending("x.JPG")
    assert not has_image_ending("x.jpg_large") and not has_image_ending("d41d8cd98f00")

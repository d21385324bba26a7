"""Small whole pictures of every format that is read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mutate import Kind, with_png_checksums
from PIL import Image

from deepcluster.data.decode import decode


def picture(mode: str = "RGB", side: tuple[int, int] = (40, 28)) -> Image.Image:
    """Shapes, a ramp and noise."""
    width, height = side
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    rgb = np.stack([x * 5, y * 7, (x // 8 + y // 8) % 2 * 180], 2) + noise
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _deep(dtype: str) -> Image.Image:
    ramp = np.arange(40 * 28).reshape(28, 40) * 50.0
    return Image.fromarray(ramp.astype(dtype))


def _encoded() -> Iterator[tuple[str, bytes]]:
    rgb, exif = picture(), Image.Exif()
    exif[0x0112] = 6
    yield "baseline.jpg", saved(rgb, "JPEG", exif=exif)
    yield "progressive.jpg", saved(rgb, "JPEG", progressive=True, quality=90)
    yield "restarts.jpg", saved(rgb, "JPEG", restart_marker_blocks=2)
    yield "cmyk.jpg", saved(picture("CMYK"), "JPEG")
    yield "two.mpo", saved(rgb, "MPO", save_all=True, append_images=[rgb])
    yield "rgb.png", saved(rgb, "PNG")
    yield "alpha.png", saved(picture("RGBA"), "PNG")
    yield "palette.png", saved(picture("P"), "PNG", transparency=3)
    yield "grey16.png", saved(_deep("uint16"), "PNG")
    yield "bits.png", saved(picture("1"), "PNG")
    yield "still.gif", saved(picture("P"), "GIF")
    yield "moving.gif", saved(picture("P"), "GIF", save_all=True, append_images=[picture("P").rotate(90)])
    yield "rgb.bmp", saved(rgb, "BMP")
    yield "palette.bmp", saved(picture("P"), "BMP")
    yield "lossy.webp", saved(rgb, "WEBP")
    yield "lossless.webp", saved(picture("RGBA"), "WEBP", lossless=True)
    for packed in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield f"{packed}.tif", saved(rgb, "TIFF", compression=packed)
    yield "fax.tif", saved(picture("1"), "TIFF", compression="group4")
    yield "deep.tif", saved(_deep("uint16"), "TIFF", compression="tiff_lzw")
    yield "float.tif", saved(_deep("float32"), "TIFF")
    yield "pages.tif", saved(rgb, "TIFF", save_all=True, append_images=[rgb], big_tiff=True)
    yield "a.jp2", saved(rgb, "JPEG2000")
    yield "a.avif", saved(rgb, "AVIF")
    yield "a.ppm", saved(rgb, "PPM")
    yield "a.tga", saved(rgb, "TGA", compression="tga_rle")
    yield "a.ico", saved(rgb, "ICO", sizes=[(16, 16), (32, 32)])
    yield "a.pcx", saved(rgb, "PCX")
    yield "a.sgi", saved(rgb, "SGI")
    yield "a.dds", saved(rgb, "DDS")
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    yield "a.heic", saved(rgb, "HEIF")


def pictures() -> list[Kind]:
    """Every format in several forms."""

    def small(place: Path) -> Any:
        return decode(place, 14 if place.stat().st_size % 2 else None)

    return [
        Kind(name, whole, small, mend=with_png_checksums if name.endswith(".png") else None)
        for name, whole in _encoded()
    ]

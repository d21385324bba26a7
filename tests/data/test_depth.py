"""Values of more than 8 bits are scaled by the range of the data, not of the container."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from deepcluster.data.decode import decode
from deepcluster.data.depth import to_uint8
from deepcluster.errors import BadImage

RAMP = np.tile(np.arange(256), (8, 1))


def saved(values: np.ndarray, kind: str = "TIFF", **tags: tuple[int, object]) -> bytes:
    """Tags are given as `tNUMBER=(type, value)`."""
    stream = io.BytesIO()
    options = {}
    if tags:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for name, (form, value) in tags.items():
            info.tagtype[int(name[1:])] = form
            info[int(name[1:])] = value
        options["tiffinfo"] = info
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def png16(values: np.ndarray, bits: int = 0) -> bytes:
    """A PNG of 16 bits in each channel, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    marks = chunk(b"sBIT", bytes([bits] * channels)) if bits else b""
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + marks + ends


@pytest.mark.parametrize("dtype", [np.uint16, ">u2", np.int32, np.float32])
@pytest.mark.parametrize("factor", [1, 4, 16, 64, 257])
def test_known_depths(dtype: str, factor: int) -> None:
    picture = decode(saved((RAMP * factor).astype(dtype)))
    assert len(np.unique(picture)) >= 255 and picture.min() == 0 and picture.max() >= 254
    np.testing.assert_allclose(picture[..., 1], RAMP, atol=1)


def test_images_of_one_camera_share_a_scale() -> None:
    bright, dark = (decode(saved((RAMP * k).astype(np.uint16), "PNG")).astype(float) for k in (16, 8))
    np.testing.assert_allclose(dark, bright / 2, atol=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_twelve_bits_in_each_of_several_channels(channels: int) -> None:
    values = np.repeat(RAMP[..., None] * 16, channels, 2)
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque
    picture = decode(png16(values))
    np.testing.assert_allclose(picture[..., 0], RAMP, atol=1)


def test_own_tags_come_first() -> None:
    dark = (RAMP * 2).astype(np.uint16)
    assert decode(saved(dark, t341=(3, 4095))).max() == round(510 * 255 / 4095)
    assert decode(saved(dark, t341=(3, 100))).max() == round(510 * 255 / 1023)  # a tag that the values belie
    assert decode(png16(dark[..., None], bits=12)).max() == round(510 * 255 / 4095)


@pytest.mark.parametrize("mark", [-9999, np.nan, -3.4e38, np.inf])
def test_marks_do_not_stretch_the_range(mark: float) -> None:
    values = (RAMP * 16).astype(np.float32)
    values[0, :9] = mark
    picture = decode(saved(values))
    np.testing.assert_allclose(picture[1:, :, 0], RAMP[1:], atol=1)
    assert (picture[0, :9] == (255 if mark == np.inf else 0)).all()
    values[0, :9] = 20000
    picture = decode(saved(values, t42113=(2, "20000")))
    np.testing.assert_allclose(picture[1:, :, 0], RAMP[1:], atol=1)


def test_floats_and_negative_values() -> None:
    unit = (RAMP / 510).astype(np.float32)
    np.testing.assert_allclose(decode(saved(unit))[..., 0], RAMP / 2, atol=1)
    assert decode(saved(unit * 3)).max() == 255  # a little above 1: not 2 of 255 shades
    signed = (RAMP - 100).astype(np.int32)
    np.testing.assert_array_equal(decode(saved(signed))[..., 0], RAMP)
    full = np.linspace(-32768, 32767, 256).astype(np.int32)[None]  # its least value is no mark
    np.testing.assert_allclose(to_uint8(full)[0], np.arange(256), atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -3.4e38])
def test_a_picture_of_nothing_is_a_bad_image(value: float) -> None:
    with pytest.raises(BadImage, match="nothing was measured in it"):
        decode(saved(np.full((8, 8), value, np.float32)))


def test_the_clear_value_of_a_grey_png_is_white() -> None:
    """A tRNS chunk in 16 bits."""
    values = (RAMP * 16).astype(np.uint16)
    values[:, 200:] = 60_000
    content = png16(values[..., None])
    chunk = b"tRNS" + struct.pack(">H", 60_000)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    at = content.index(b"IDAT") - 4
    found = decode(content[:at] + chunk + content[at:])[0, :, 0]
    assert (found[200:] == 255).all() and len(np.unique(found[:200])) > 190  # nor does it count for the range


def test_signed_values_of_8_bits() -> None:
    found = decode(saved((RAMP - 128).astype(np.int8).view(np.uint8), t339=(3, 2)))
    np.testing.assert_array_equal(found[..., 0], RAMP)


def test_deep_channels_that_lie_apart_are_refused() -> None:
    """Pillow reads them as if they were of 8 bits."""
    plane = (RAMP * 257).astype("<u2").tobytes()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    places, lengths = tuple(8 + k * len(plane) for k in range(4)), (len(plane),) * 3
    for tag, value in ((256, 256), (257, 8), (258, (16,) * 3), (259, 1), (262, 2), (273, places[:3]), (277, 3),
                       (278, 8), (279, lengths), (284, 2)):  # fmt: skip
        tags[tag] = value
    content = b"II*\0" + struct.pack("<I", places[3]) + 3 * plane + tags.tobytes(places[3])
    with pytest.raises(BadImage, match="interleaved"):
        decode(content)


def test_floats_of_a_portable_float_map() -> None:
    content = b"Pf\n256 8\n-1.0\n" + (RAMP / 255).astype("<f4").tobytes()
    np.testing.assert_array_equal(decode(content)[..., 0], RAMP)

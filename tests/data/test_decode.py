"""Every kind of picture becomes RGB as a person would see it; damaged ones say why."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from deepcluster.data.decode import decode
from deepcluster.errors import BadImage


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    """A smooth picture, wider than tall, that no two flips or turns leave alone."""
    y, x = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([x * 4, y * 5, 255 - x - y], 2).clip(0, 255).astype(np.uint8))


def test_rgb_is_kept(photo: Image.Image) -> None:
    picture = decode(encoded(photo, "PNG"))
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, np.asarray(photo))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_and_bilevel(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 4), (200, 0, 0, 255))
    image.paste((10, 20, 30, 0), (0, 0, 4, 4))
    image.putpixel((7, 0), (0, 0, 0, 128))
    image = image.convert(mode)
    picture = decode(encoded(image, "PNG"))
    assert (picture[:, :4] == 255).all()
    assert picture[2, 6].tolist() == np.asarray(image.convert("RGBA"))[2, 6, :3].tolist()
    assert abs(int(picture[0, 7, 0]) - 127) <= 1


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (6, 2), 0)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 0, 1, 2] * 2)
    assert tuple(decode(encoded(image, "PNG"))[0, 1]) == (255, 0, 0)
    clear = decode(encoded(image, "PNG", transparency=1))
    assert tuple(clear[0, 1]) == (255, 255, 255) and tuple(clear[0, 2]) == (0, 0, 255)
    assert tuple(decode(encoded(image, "GIF", transparency=2))[0, 2]) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    picture = decode(encoded(Image.fromarray(values), kind))
    np.testing.assert_allclose(picture[..., 0], values / 257, atol=0.51)
    assert (picture[..., 0] == picture[..., 2]).all()


def test_wide_integers_and_floats_by_their_range() -> None:
    wide = np.linspace(-1000, 1_000_000, 64).astype(np.int32).reshape(8, 8)
    assert (decode(encoded(Image.fromarray(wide), "TIFF"))[[0, -1], [0, -1], 0] == [0, 255]).all()
    unit = np.linspace(0, 0.5, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_allclose(decode(encoded(Image.fromarray(unit), "TIFF"))[..., 1], unit * 255, atol=0.51)
    unit[0, 0] = np.nan
    assert decode(encoded(Image.fromarray(unit), "TIFF"))[0, 0, 0] == 0


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_has_the_right_colors(photo: Image.Image, kind: str) -> None:
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    picture = decode(encoded(photo.convert("CMYK"), kind, **options))
    assert np.abs(picture.astype(int) - np.asarray(photo)).mean() < 6  # an inverted one is off by a hundred


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(photo: Image.Image, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    assert expected.shape[:2] == ((48, 64) if orientation < 5 else (64, 48))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "green", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert tuple(decode(data)[3, 3]) == (255, 0, 0)


@pytest.mark.parametrize("allowed", [False, True], ids=["pillow as it is", "LOAD_TRUNCATED_IMAGES set by somebody"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_cut_off_files_are_bad_never_half_gray(
    photo: Image.Image, kind: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
    data = encoded(noisy, kind)
    decode(data)
    for share in (0.05, 0.4, 0.75, 0.95):
        with pytest.raises(BadImage):
            decode(data[: int(len(data) * share)])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed


def test_jpeg_whose_middle_is_missing() -> None:
    """libjpeg paints what is missing grey and says nothing; the file even ends as it should."""
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    data = encoded(noisy, "JPEG")
    with pytest.raises(BadImage, match=r"missing|cut off"):
        decode(data[: len(data) // 2] + b"\xff\xd9")
    noisy.paste((128, 128, 128), (0, 96, 128, 128))  # grey by right
    assert decode(encoded(noisy, "JPEG"))[-1, 0, 0] == 128
    assert decode(encoded(Image.new("RGB", (64, 64), (128, 128, 128)), "JPEG")).shape == (64, 64, 3)


def test_corrupt_png(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImage):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"these are words", "not an image"), (b"\xff\xd8\xff", "image"), (b"\x89PNG\r\n\x1a\n", "image")],
)
def test_reasons(data: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "words.jpg"
    file.write_bytes(data)
    for given in (data, file, str(file)):
        with pytest.raises(BadImage, match=reason) as caught:
            decode(given)
        assert 0 < len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        decode(tmp_path / "none.png")


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    monkeypatch.setattr("deepcluster.data.decode.PIXELS", 100)
    with pytest.raises(BadImage, match="too large"):
        decode(encoded(photo, "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (30, 20), (500, 500), (1000, 20)])
def test_short_side_shrinks_and_never_enlarges(kind: str, size: tuple[int, int]) -> None:
    y, x = np.mgrid[: size[1], : size[0]]
    smooth = np.stack([x * 255 // size[0], y * 255 // size[1], 0 * x], 2).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), kind)
    picture = decode(data, 48)
    scale = min(1.0, 48 / min(size))
    assert picture.shape[:2] == (round(size[1] * scale), round(size[0] * scale))
    small = Image.fromarray(decode(data)).resize(picture.shape[1::-1], Image.Resampling.BILINEAR)
    assert np.abs(picture.astype(int) - np.asarray(small)).max() <= 8

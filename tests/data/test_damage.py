"""Damage is told by a file's structure: whole pictures pass whatever they show, cut ones never do."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from deepcluster.data import decode as module
from deepcluster.data.decode import decode
from deepcluster.data.folder import Files
from deepcluster.errors import BadImage

Y, X = np.mgrid[:96, :128]
NOISE = np.random.default_rng(0).normal(0, 12, (96, 128, 3))
PHOTO = (np.stack([X * 2.0, Y * 2.5, X + Y], -1) + NOISE).clip(0, 255).astype(np.uint8)
GREY_END = PHOTO.copy()
GREY_END[48:] = 128


def saved(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [{}, {"restart_marker_rows": 1}])
def test_jpeg_by_its_scans_and_not_by_its_pixels(mode: str, progressive: bool, restarts: dict[str, int]) -> None:
    for pixels in (PHOTO, GREY_END, np.full_like(PHOTO, 128)):
        for quality in (30, 90):
            data = saved(pixels, "JPEG", mode, quality=quality, progressive=progressive, **restarts)
            assert decode(data, 24).shape == (24, 32, 3) and decode(data).shape == PHOTO.shape
            for left in (len(data) - 1, len(data) - 2, len(data) // 2, len(data) // 10):
                with pytest.raises(BadImage):
                    decode(data[:left])
    data = saved(PHOTO, "JPEG", mode, progressive=progressive, **restarts)
    with pytest.raises(BadImage):  # an end mark where the file was cut
        decode(data[: (data.find(b"\xff\xda") + len(data)) // 2 if not progressive else len(data) // 3] + b"\xff\xd9")


@pytest.mark.parametrize("options", [{"subsampling": 2}, {"subsampling": 0, "optimize": True}, {"mode": "L"}])
def test_jpeg_cut_in_its_last_block_and_given_an_end_mark(options: dict[str, Any]) -> None:
    """What libjpeg fills up with zeros there is no grey that could be seen."""
    passed = []
    for place in range(0, 40, 8):
        data = saved(np.roll(PHOTO, place, 1), "JPEG", quality=90, **options)
        decode(data)
        for left in range(len(data) - 30, len(data) - 2):
            with contextlib.suppress(BadImage):
                passed.append(decode(data[:left] + b"\xff\xd9"))
    assert len(passed) <= 20  # of 140


def test_jpeg_with_a_piece_taken_out_between_restart_markers() -> None:
    data = saved(PHOTO, "JPEG", restart_marker_rows=1)
    with pytest.raises(BadImage, match="missing"):
        decode(data[: data.find(b"\xff\xd1")] + data[data.find(b"\xff\xd3") :])


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {}), ("BMP", {}), ("AVIF", {}), ("PPM", {}), ("TIFF", {})]
    + [("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
)
def test_cut_at_any_place(
    kind: str,
    options: dict[str, str],
    allowed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    data = saved(PHOTO, kind, **options)
    decode(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for left in (len(data) - 1, len(data) - 2, len(data) - 13, len(data) // 2, len(data) // 7):
            with pytest.raises(BadImage):
                decode(data[:left])
    assert not told
    assert not capfd.readouterr().err


@pytest.mark.parametrize("allowed", [False, True])
def test_cut_gif_is_bad_or_whole(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    data = saved(PHOTO, "GIF")
    for left in range(len(data) - 1, 0, -97):
        try:
            np.testing.assert_array_equal(decode(data[:left]), decode(data))
        except BadImage:
            continue
        assert left > len(data) - 100


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {"compression": "tiff_deflate"})])
def test_checksums_are_asked(kind: str, options: dict[str, str]) -> None:
    data = bytearray(saved(PHOTO, kind, **options))
    with Image.open(io.BytesIO(data)) as image:
        tags = getattr(image, "tag_v2", None)
    begin, end = (8, tags[273][-1] + tags[279][-1]) if tags else (50, data.rfind(b"IEND") - 4)  # what holds the pixels
    for place in (*np.random.default_rng(1).integers(begin, end, 300), end - 1):
        data[place] ^= 1 << place % 8
        with pytest.raises(BadImage):
            decode(bytes(data))
        data[place] ^= 1 << place % 8


def test_damaged_fax_page_is_no_page_of_noise(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(PHOTO, "TIFF", "1", compression="group4"))
    decode(bytes(data))
    data[len(data) // 3 : len(data) // 3 + 60] = b"\xff" * 60
    with pytest.raises(BadImage, match="Fax4Decode: Bad code word"):
        decode(bytes(data))
    assert not capfd.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX's special files")
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        bound.bind("socket.jpg")
        os.chdir(here)
    reasons = {}

    def read() -> None:
        names = sorted(path.name for path in tmp_path.iterdir())
        source = Files("x", tmp_path, names)
        source.fingerprint()
        for number, name in enumerate(names):
            with pytest.raises(BadImage, match="regular file") as caught:
                source.read(number)
            reasons[name] = str(caught.value)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert len(reasons) == 4  # and none hangs


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(BadImage, match="214,748,364,800 bytes"):
        decode(tmp_path / "sparse.jpg")
    monkeypatch.setattr(module, "BYTES", 100)
    with pytest.raises(BadImage, match="too large"):
        decode(bytes(101))
    monkeypatch.undo()
    wide = bytearray(saved(PHOTO, "JPEG"))
    size = wide.index(b"\xff\xc0") + 5  # of the frame: height and width
    wide[size : size + 4] = b"\xff\xf0" * 2
    for short_side in (None, 8):  # which reads a JPEG at an eighth of its size, but all of it
        with pytest.raises(BadImage, match="too large: 65,520 x 65,520 pixels"):
            decode(bytes(wide), short_side)


def test_many_pixels_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # warns beyond, and refuses beyond twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(saved(PHOTO, "PNG")).shape == PHOTO.shape


def test_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    with monkeypatch.context() as without:
        without.setattr(module, "_learn_heif", lambda: False)
        without.delitem(Image.OPEN, "HEIF", raising=False)
        with pytest.raises(BadImage, match=r"install deepcluster\[heic\]"):
            decode(stub)
    pytest.importorskip("pillow_heif").register_heif_opener()
    assert np.abs(decode(saved(PHOTO, "HEIF", quality=95)).astype(int) - PHOTO).mean() < 8
    with pytest.raises(BadImage, match="damaged"):
        decode(stub)

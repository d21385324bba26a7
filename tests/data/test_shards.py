"""Tar and zip shards: equal to tarfile and zipfile byte for byte; broken, missing and remote ones."""

from __future__ import annotations

import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data import archive as archives
from deepcluster.data import shards, storage
from deepcluster.data.archive import read_member, scan
from deepcluster.data.cache import StreamedPixels, load_pixels
from deepcluster.data.indexing import index_shards
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.shards import Shards
from deepcluster.data.transforms import CenterCrop
from deepcluster.errors import BadImage, DeepClusterError


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def make_tar(file: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def make_zip(file: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def shards_of(source: object) -> Shards:
    assert isinstance(source, Shards)
    return source


class OneWay(io.RawIOBase):
    """A stream that cannot be sought in: zipfile then writes sizes and checksum behind each member."""

    def __init__(self, file: Path) -> None:
        self.file = open(file, "wb")  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self.file.write(data)  # type: ignore[arg-type]

    def close(self) -> None:
        self.file.close()


def write_zip(file: Path, form: str) -> None:
    """A zip file of one of the forms that there are."""
    method = zipfile.ZIP_STORED if "stored" in form else zipfile.ZIP_DEFLATED
    if "prefix" in form:
        file.write_bytes(b"#!/bin/sh\n" * 50)
    with zipfile.ZipFile(OneWay(file) if "one way" in form else file, "a" if "prefix" in form else "w", method) as made:
        made.comment = b"a comment"
        for k, name in enumerate(["./cat/1.png", "dog/ünï-2.png", "dog/notes.txt", "dog/", "cat/.x.png", "cat/3.png"]):
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            if "extra" in form:
                info.extra = struct.pack("<HH", 0xCAFE, 900) + bytes(900)
            with made.open(info, "w", force_zip64="zip64" in form) as member:
                member.write(b"" if name.endswith("/") else png(k))


@pytest.mark.parametrize(
    "form",
    ["deflated", "stored", "stored one way", "deflated one way", "stored zip64", "deflated extra", "stored prefix"],
)
def test_zip_by_offset_equals_zipfile(tmp_path: Path, form: str) -> None:
    write_zip(tmp_path / "a.zip", form)
    make_zip(tmp_path / "b.zip", {"cat/4.png": png(9)})
    for repeat in range(2):  # scanned, then from the stored index
        source = shards_of(open_images(str(tmp_path / "{a,b}.zip")))
        assert len(source) == 4 and np.array(source.classes)[source.labels].tolist() == ["cat", "dog", "cat", "cat"]
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            for k, name in enumerate(["./cat/1.png", "dog/ünï-2.png", "cat/3.png"]):
                assert source.raw(k) == archive.read(name) == png([0, 1, 5][k]), repeat
                assert source.path(k) == f"a.zip/{name.removeprefix('./')}"
        assert source.raw(3) == png(9) and source.read(3).shape == (10, 12, 3)


def flipped(file: Path, at: int, bits: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= bits
    file.write_bytes(data)


def test_bad_zip_members_are_bad_images_and_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as made:
        for k in range(5):
            made.writestr(f"{k}.png", png(k), zipfile.ZIP_BZIP2 if k == 3 else k % 2 * zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(file) as archive:
        at = [member.header_offset for member in archive.infolist()]
    flipped(file, at[0] + 60, 1)  # a byte of the content
    flipped(file, at[1] + 6, 1)  # says that it is encrypted
    flipped(file, at[4], 1)  # the header's signature
    source = shards_of(open_images(str(file)))
    for k, reason in {0: "checksum", 1: "encrypted", 3: "packed by method 12", 4: "no zip header"}.items():
        with pytest.raises(BadImage, match=reason):
            source.read(k)
    assert source.raw(2) == png(2)


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(5000))
    found = scan(str(tmp_path / "a.zip"))
    place = str(tmp_path / "a.zip"), int(found.offsets[0]), int(found.lengths[0])
    assert read_member(*place) == bytes(5000)
    monkeypatch.setattr(archives, "LARGEST", 4999)
    with pytest.raises(BadImage, match="too large"):
        read_member(*place)


def test_an_offset_beyond_four_gigabytes_takes_twelve_bytes(tmp_path: Path) -> None:
    from deepcluster.data.indexing import index_shards

    file = tmp_path / "a.zip"
    with open(file, "wb") as large:
        large.truncate(5 << 30)  # a hole
    with zipfile.ZipFile(file, "a") as made:
        made.writestr("x/1.png", png(1))
        made.writestr("x/2.png", png(2))
    make_zip(tmp_path / "b.zip", {"x/3.png": png(3)})
    index_shards([str(tmp_path / "a.zip"), str(tmp_path / "b.zip")], tmp_path / "m.json", workers=1)
    for source in (open_images(tmp_path / "m.json"), open_images(str(tmp_path / "{a,b}.zip"))):
        assert [shards_of(source).raw(k) for k in range(3)] == [png(1), png(2), png(3)]
        assert shards_of(source).table.itemsize == 12
    assert shards_of(open_images(str(tmp_path / "b.zip"))).table.itemsize == 8


def test_broken_shards_are_reported_and_the_others_read(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"x/1.png": png(1), "x/2.png": png(2), "x/3.png": png(3)})
    make_tar(tmp_path / "b.tar", {"x/4.png": png(4), "x/5.png": png(5)})
    (tmp_path / "c.tar").write_bytes(b"words" * 300)
    with tarfile.open(tmp_path / "a.tar") as archive:
        end = archive.getmember("x/3.png").offset_data
    os.truncate(tmp_path / "a.tar", end + 5)
    with tarfile.open(tmp_path / "b.tar") as archive:
        flipped(tmp_path / "b.tar", archive.getmember("x/5.png").offset + 3, 7)
    with pytest.warns(UserWarning) as told:
        source = shards_of(open_images(str(tmp_path / "*.tar")))
    said = [str(one.message) for one in told]
    assert len(said) == 3 and "a.tar is cut short" in said[0] and "b.tar has a damaged header" in said[1]
    assert "c.tar cannot be read as an uncompressed tar" in said[2]
    assert [source.raw(k) for k in range(len(source))] == [png(1), png(2), png(4)]


def test_images_of_a_missing_shard_are_bad_and_the_others_unchanged(tmp_path: Path) -> None:
    members = {name: {f"x/{name}{k}.png": png(k) for k in range(200)} for name in "abc"}
    for name in "abc":
        make_tar(tmp_path / f"{name}.tar", members[name])
    whole = Loader(load_pixels(open_images(str(tmp_path / "*.tar")), short_side=None, cache_gb=0), range(600),
                   batch_size=50, transform=CenterCrop(8))  # fmt: skip
    expected = {int(i): view for batch in whole for i, view in zip(batch.index, batch.views[0], strict=True)}
    source = open_images(str(tmp_path / "*.tar"))
    (tmp_path / "b.tar").unlink()
    with pytest.warns(UserWarning, match="b.tar is missing; its 200 images are left out"):
        pixels = load_pixels(source, short_side=None, cache_gb=0, workers=2)
    assert isinstance(pixels, StreamedPixels)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = {
            int(i): view
            for batch in Loader(pixels, range(600), batch_size=50, transform=CenterCrop(8))
            for i, view in zip(batch.index, batch.views[0], strict=True)
        }
    assert not told  # load_pixels had told of it, and the decoding processes know
    assert sorted(pixels.bad) == list(range(200, 400)) and pixels.bad[250] == "its shard is missing"
    np.testing.assert_array_equal(pixels.good, np.setdiff1d(np.arange(600), np.arange(200, 400)))
    assert sorted(found) == pixels.good.tolist()
    assert all(bool((found[i] == expected[i]).all()) for i in found)


def test_shards_can_be_pickled(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"x/1.png": png(1), "y/2.png": png(2)})
    source = shards_of(open_images(str(tmp_path / "a.tar")))
    again = pickle.loads(pickle.dumps(source))
    assert again.raw(1) == png(2) and again.path(1) == "a.tar/y/2.png" and again.fingerprint() == source.fingerprint()
    with pytest.raises(IndexError):
        source.read(2)


# ------------------------------------------------------------------------------------------------------- remote


class Ranges(http.server.BaseHTTPRequestHandler):
    """Files of a folder, with ranges; `stumbles` requests fail first."""

    folder: Path
    stumbles = 0
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        kind = type(self)
        file = kind.folder / self.path.lstrip("/")
        span = self.headers.get("Range")
        kind.asked.append(f"{self.command} {self.path} {span}")
        if kind.stumbles:
            kind.stumbles -= 1
            self.send_error(503)
            return
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        first, last = 0, len(data) - 1
        if span:
            begin, _, end = span.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end) if end else last, last)
        self.send_response(206 if span else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if with_body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Ranges.folder, Ranges.stumbles = tmp_path / "served", 0
    Ranges.folder.mkdir()
    Ranges.asked.clear()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()
    thread.join()


def test_shards_behind_http(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    images = [png(k) for k in range(5)]
    make_tar(Ranges.folder / "a-0.tar", {f"cat/{k}.png": images[k] for k in range(3)})
    Ranges.stumbles = 2
    make_zip(Ranges.folder / "a-1.zip", {f"dog/{k}.png": images[k] for k in range(3, 5)})
    source = shards_of(open_images(server + "/a-{0.tar,1.zip}"))
    assert [source.raw(k) for k in range(5)] == images
    assert source.classes == ("cat", "dog") and source.path(4) == "a-1.zip/dog/4.png"
    Ranges.asked.clear()
    again = shards_of(
        open_images(server + "/a-{0.tar,1.zip}")
    )  # the index is remembered: sizes are asked for, no bytes
    assert all(line.startswith("HEAD") for line in Ranges.asked) and again.fingerprint() == source.fingerprint()
    Ranges.asked.clear()
    assert again.raw(1) == images[1]
    assert again.raw(2) == images[2]
    begin = 512 * 3 + 512 * -(-len(images[0]) // 512) - 1024 + 512  # two headers and the first content
    assert f"GET /a-0.tar bytes={begin}-{begin + len(images[1]) - 1}" in Ranges.asked
    assert sum(line.startswith("HEAD") for line in Ranges.asked) == 1  # asked once for each shard
    Ranges.stumbles = 3
    assert again.raw(0) == images[0]
    Ranges.stumbles = 5
    with pytest.raises(BadImage, match="503"):
        again.raw(0)
    (Ranges.folder / "a-1.zip").unlink()
    with pytest.warns(UserWarning, match=r"a-1.zip is missing; its 2 images"), pytest.raises(BadImage, match="missing"):
        again.raw(3)
    Ranges.asked.clear()
    with pytest.raises(BadImage, match="missing"):
        again.raw(4)
    assert not Ranges.asked  # known by now


def test_shards_in_an_object_store() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for k in range(3):
            info = tarfile.TarInfo(f"x/{k}.png")
            info.size = len(png(k))
            archive.addfile(info, io.BytesIO(png(k)))
    for name in ("s-2.tar", "s-10.tar"):
        store.pipe(f"/bucket/{name}", buffer.getvalue())
    try:
        source = shards_of(open_images("memory://bucket/s-*.tar"))
        assert [source.path(k) for k in (0, 3)] == ["s-2.tar/x/0.png", "s-10.tar/x/0.png"]
        assert [source.raw(k) for k in range(6)] == [png(0), png(1), png(2)] * 2
        store.pipe("/bucket/s-10.tar", buffer.getvalue()[:-512])
        fresh = pickle.loads(pickle.dumps(source))
        with pytest.warns(UserWarning, match="cut short, or changed"), pytest.raises(BadImage, match="cut short"):
            fresh.raw(3)
        assert fresh.raw(2) == png(2)
    finally:
        store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("memory://nowhere/a.tar", "does not exist"),
        ("memory://nowhere/a-*.tar", "no file matches"),
        ("nonsense://bucket/a.tar", "fsspec knows no nonsense://"),
        ("memory://bucket/a.jpg", "is no .tar or .zip file"),
    ],
)
def test_mistakes_with_urls(name: str, sentence: str) -> None:
    with pytest.raises(DeepClusterError, match=sentence) as caught:
        open_images(name)
    assert "\n" not in str(caught.value)


def test_missing_fsspec_package_is_named() -> None:
    import importlib.util

    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(DeepClusterError, match=r"pip install 'deepcluster\[remote\]'"):
        open_images("gs://bucket/a.tar")


def test_archives_put_end_to_end_are_read_and_links_are_told(tmp_path: Path) -> None:
    """`cat a.tar b.tar > all.tar`, each with a hard and a symbolic link."""
    parts = []
    for number in range(2):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            member = tarfile.TarInfo(f"x/{number}.png")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
            for name, kind in ((f"x/hard{number}.png", tarfile.LNKTYPE), (f"y/soft{number}.png", tarfile.SYMTYPE)):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = kind, f"x/{number}.png"
                archive.addfile(link)
        parts.append(content.getvalue())
    file = tmp_path / "all.tar"
    file.write_bytes(b"".join(parts))
    members = scan(str(file))
    assert members.names == ["x/0.png", "x/1.png"]
    for offset, length in zip(members.offsets, members.lengths, strict=True):
        assert read_member(str(file), int(offset), int(length)) == b"abc"
    assert members.trouble == "has 4 links or sparse members that are not read, such as x/hard0.png"


def test_scans_of_shards_that_were_not_used_for_long_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "FRESH", 0.0)
    kept = tmp_path / "cache/shard-index"
    made: list[Path] = []
    for number in range(3):
        open_images(make_tar(tmp_path / f"{number}.tar", {"x/1.png": png(number)}))
        made += set(kept.iterdir()) - set(made)
    for age, file in zip((300, 900, 600), made, strict=True):
        os.utime(file, (time.time() - age,) * 2)
    monkeypatch.setattr(shards, "INDEX_ROOM", 2 * made[0].stat().st_size)
    open_images(str(tmp_path / "1.tar"))  # the oldest is used again
    assert set(kept.iterdir()) == {made[0], made[1]}
    os.utime(made[1], (time.time() - 300,) * 2)
    monkeypatch.setattr(shards, "INDEX_ROOM", 0)
    index_shards([str(tmp_path / "0.tar")], tmp_path / "m.json", workers=1)
    assert set(kept.iterdir()) == {made[0]}  # used just now

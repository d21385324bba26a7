"""Some images of a source, written as a list or a manifest, are the same images when opened again."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.data.subset import check_subset_name, write_subset
from deepcluster.errors import DeepClusterError

CLUSTER = np.arange(100) % 7


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate([b"a/0.png", b"a/\xe9.png", "a/é ü.png".encode(), b"b/1, 2.png", b"b/2.png"]):
        path = os.path.join(os.fsencode(tmp_path / "photos"), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture(number))
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for number in range(3):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as tar:
            for image in range(10):
                member = tarfile.TarInfo(f"class{image % 2}/{image}.png")
                content = picture(10 * number + image)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(tmp_path / "s-*.tar")


def same(found: ImageSource, source: ImageSource, index: list[int]) -> None:
    assert [found.read(k)[0, 0, 0] for k in range(len(found))] == [source.read(k)[0, 0, 0] for k in index]
    if source.labels is not None and found.labels is not None:
        names = [found.classes[label] for label in found.labels]
        assert names == [source.classes[label] for label in source.labels[index]]


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "deeper/list.csv", "photos/list.txt"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_list_of_files(folder: Path, name: str, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    source, out = open_images("photos" if relative else str(folder)), folder.parent / name
    index = np.arange(len(source))[1:]
    check_subset_name(out, source)
    write_subset(source, index, Path(name) if relative else out, CLUSTER)
    monkeypatch.chdir("/")
    found = open_images(str(out))
    same(found, open_images(str(folder)), index.tolist())
    if out.suffix == ".csv":
        rows = [line.split(",") for line in out.read_text().splitlines()]
        assert rows[0] == ["index", "path", "cluster", "label"] and found.labels is not None
        assert [int(row[0]) for row in rows[1:]] == index.tolist()


def test_a_name_that_no_list_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "line\nbreak.png").write_bytes(picture(0))
    with pytest.raises(DeepClusterError, match="cannot stand on a line"):
        write_subset(open_images(str(tmp_path)), np.arange(2), tmp_path / "list.txt", CLUSTER)
    assert not (tmp_path / "list.txt").exists()


def test_a_manifest_of_some_images_in_shards(shards: str, tmp_path: Path) -> None:
    source, out = open_images(shards), tmp_path / "inner" / "m.json"
    for index in ([3, 4, 9, 20, 25], [0, 12]):
        check_subset_name(out, source)
        write_subset(source, np.array(index), out, CLUSTER)
        found = open_images(str(out))
        same(found, source, index)
        assert [Path(found.path(k)).name for k in range(len(found))] == [f"{image % 10}.png" for image in index]
        assert len(list(out.parent.iterdir())) == 3  # tables of the manifest before are gone
    write_subset(found, np.array([1]), tmp_path / "n.json", CLUSTER)  # of a manifest
    same(open_images(str(tmp_path / "n.json")), source, [12])
    assert open_images(str(tmp_path / "n.json")).path(0) == "s-1.tar/class0/2.png"


def test_what_cannot_be_written_is_told(shards: str, folder: Path, tmp_path: Path) -> None:
    digits = open_images(np.zeros((4, 8, 8), np.uint8))
    for name, source, sentence in [
        ("m.json", open_images(str(folder)), "not in tar or zip shards: give --out a .txt file"),
        ("m.txt", open_images(shards), "not files of their own: give --out a .json file"),
        ("m.txt", digits, "give --out a .csv file"),
        ("m.txt", None, "give --out a .csv file"),
        ("m.parquet", digits, "written as .txt, .csv or .json"),
    ]:
        with pytest.raises(DeepClusterError, match=sentence):
            check_subset_name(tmp_path / name, source)
    (tmp_path / "mine.json").write_text('{"a": 1}')
    with pytest.raises(DeepClusterError, match="no manifest"):
        check_subset_name(tmp_path / "mine.json", open_images(shards))
    write_subset(None, np.array([2, 3]), tmp_path / "rows.csv", CLUSTER)
    assert (tmp_path / "rows.csv").read_text() == "index,path,cluster\n2,,2\n3,,3\n"

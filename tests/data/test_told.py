"""Sources that others made: what is in them is read, told or refused in one sentence, and never lost without a word."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from deepcluster.data.indexing import index_shards
from deepcluster.data.open import open_images
from deepcluster.errors import BadImage, DeepClusterError, DeepClusterWarning
from deepcluster.lock import locked


def image(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(stream, kind)
    return stream.getvalue()


def packed(file: Path, *members: str | tuple[str, bytes], streamed: bool = False) -> Path:
    """An archive of one image under many names, and of other members with their content; `streamed` writes a zip as to
    a pipe, sizes behind the content."""
    content = dict(
        (name, image("BMP" if name.endswith("bmp") else "PNG")) if isinstance(name, str) else name for name in members
    )
    if file.suffix == ".zip":
        with open(file, "wb") as handle, zipfile.ZipFile(_Pipe(handle) if streamed else handle, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return file
    with tarfile.open(file, "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


class _Pipe(io.RawIOBase):
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self.handle.write(data))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image())
    return tmp_path


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_members_without_an_ending_are_known_by_their_first_bytes(ending: str, tmp_path: Path) -> None:
    file = packed(tmp_path / f"a{ending}", "x/d41d8cd9", "x/y.png?w=300", "y/ok.png", "y/notes.txt", "y/.hidden")
    source = open_images(file)
    assert [source.path(k).rpartition("/")[2] for k in range(len(source))] == ["d41d8cd9", "y.png?w=300", "ok.png"]
    assert source.read(0).shape == (8, 8, 3)


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_archives_and_pictures_not_read_within_an_archive_are_told(ending: str, tmp_path: Path) -> None:
    packed(tmp_path / f"a{ending}", "x/1.png", "x/more.tar", "x/more.zip", "__MACOSX/more.zip")
    with pytest.warns(DeepClusterWarning, match="holds 2 files that are not read, such as x/more.tar"):
        assert len(open_images(tmp_path / f"a{ending}")) == 1


def test_archives_among_the_images_of_a_folder_are_told(folder: Path) -> None:
    packed(folder / "more.zip", "a.png")
    with pytest.warns(DeepClusterWarning, match=r"not read here \(1 .zip\)"):
        assert len(open_images(folder)) == 3


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_the_class_beside_an_image_is_read(ending: str, tmp_path: Path) -> None:
    one = packed(tmp_path / f"1{ending}", "a.png", ("a.cls", b"10\n"), ("b.cls", b"2"), "b.png", "b.left.png")
    packed(tmp_path / f"2{ending}", "x/a.1.png", ("x/a.1.cls", b"10"), "x/a.2.png", ("x/a.2.cls", b"\xc3\xbc"))
    labels, classes = [1, 0, 0, 1, 2], ("2", "10", "\u00fc")
    manifest = tmp_path / "m.json"
    for both in (str(tmp_path / f"*{ending}"), str(tmp_path / f"*{ending}"), str(manifest)):  # scanned, kept, indexed
        source = open_images(both)
        assert source.labels is not None and source.labels.tolist() == labels and source.classes == classes
        index_shards([str(one), str(tmp_path / f"2{ending}")], manifest, workers=1)
    index_shards([str(one)], manifest, labels=False)
    assert open_images(str(manifest)).labels is None


def test_a_manifest_has_one_writer(tmp_path: Path) -> None:
    shard, manifest = packed(tmp_path / "1.tar", "a.png"), tmp_path / "m.json"
    with (
        locked(tmp_path / ".m.json.lock", str),
        pytest.raises(DeepClusterError, match=r"m\.json is being written by process"),
    ):
        index_shards([str(shard)], manifest)
    index_shards([str(shard)], manifest)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".npy", ".tar"]


@pytest.mark.parametrize("text", [b"", b"a\0b", b"1" * 32])
def test_a_class_that_is_missing_is_told(text: bytes, tmp_path: Path) -> None:
    file = packed(tmp_path / "1.tar", "n/a.png", ("n/a.cls", b"1"), "m/b.png", ("m/b.cls", text))
    with pytest.warns(DeepClusterWarning, match="others have none, so none of them is read"):
        assert open_images(str(file)).classes == ("m", "n")


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_backslashes_of_windows_divide_folders(ending: str, tmp_path: Path) -> None:
    source = open_images(packed(tmp_path / f"a{ending}", "cat\\1.png", "dog\\1.png"))
    assert source.classes == ("cat", "dog") and source.read(1).shape == (8, 8, 3)


def test_a_changed_bit_in_a_streamed_zip_file_is_noticed(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.zip", "x/1.bmp", streamed=True)
    assert open_images(file).read(0).shape == (8, 8, 3)
    content = bytearray(file.read_bytes())
    content[content.index(b"BM") + 100] ^= 1
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(BadImage, match="checksum"):
        open_images(tmp_path / "b.zip").read(0)


def test_a_name_that_one_bit_hides_in_the_list_of_a_zip_file_is_told(tmp_path: Path) -> None:
    content = packed(tmp_path / "a.zip", "n01/1.png", "n02/1.png").read_bytes()
    assert content.count(b"n02/1.png") == 2  # before the image, and in the list
    (tmp_path / "b.zip").write_bytes(b".02/1.png".join(content.rsplit(b"n02/1.png", 1)))
    with pytest.warns(DeepClusterWarning, match="has a damaged list of members"):
        assert len(open_images(tmp_path / "b.zip")) == 1


def test_a_member_without_a_name_or_with_that_of_a_folder_is_told(tmp_path: Path) -> None:
    file = packed(tmp_path / "1.zip", "x/a.png", "b")
    whole = file.read_bytes()
    last = whole.rindex(b"PK\x01\x02")
    nameless = whole[: last + 28] + b"\0\0\1\0" + whole[last + 32 :]  # its name is an extra field
    for damaged in (nameless, whole[: last + 46] + b"/" + whole[last + 47 :]):
        file.write_bytes(damaged)
        with pytest.warns(DeepClusterWarning, match="has a damaged list of members"):
            assert len(open_images(str(file))) == 1


def test_zip_files_put_end_to_end_are_told(tmp_path: Path) -> None:
    first, second = (packed(tmp_path / f"{name}.zip", f"{name}/1.png").read_bytes() for name in "ab")
    both = tmp_path / "both.zip"
    both.write_bytes(first + second)
    with pytest.warns(DeepClusterWarning, match="begins with the members of another zip file"):
        assert len(open_images(str(both))) == 1
    both.write_bytes(b"#!/bin/sh\n" + second)  # unpacks itself
    assert open_images(str(both)).read(0).shape == (8, 8, 3)


@pytest.mark.parametrize("zeros", [0, 512, 1023])
def test_a_tar_file_without_an_end_mark_is_told(zeros: int, tmp_path: Path) -> None:
    file = packed(tmp_path / "1.tar", "x/a.png", "x/b.png")
    with tarfile.open(file) as archive:
        last = archive.getmembers()[-1]
    os.truncate(file, last.offset_data + 512 + zeros)
    with pytest.warns(DeepClusterWarning, match="has no end mark"):
        assert len(open_images(str(file))) == 2


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_a_pipe_is_no_archive(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{ending}")
    with pytest.raises(DeepClusterError, match="no regular file"):
        open_images(tmp_path / f"a{ending}")


def test_names_of_shards_are_taken_as_they_are_and_once(tmp_path: Path) -> None:
    packed(tmp_path / "a{1,2}.tar", "x/1.png")
    assert len(open_images(tmp_path / "a{1,2}.tar")) == 1
    packed(tmp_path / "b.tar", "x/1.png")
    with pytest.raises(DeepClusterError, match=r"b.tar is named twice"):
        open_images(tmp_path / "{b,b}.tar")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(name: str, folder: Path) -> None:
    with pytest.raises(DeepClusterError, match="name of the images is empty"):
        open_images(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na,b.png,cat\n0.png,dog\n", "row 2 of .* has 3 fields and its header 2"),
        ("path\na,b.png\n0.png\n", "row 2 of .* has 2 fields and its header 1"),
    ],
)
def test_a_row_of_more_fields_than_the_header_is_refused(text: str, sentence: str, folder: Path) -> None:
    (folder / "l.csv").write_text(text)
    with pytest.raises(DeepClusterError, match=sentence):
        open_images(folder / "l.csv")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\n0.png,a\n,b\n\n1.png,c\n", "1 row of .* without a path is left out"),
        ("path,label,class\n0.png,a,x\n1.png,c,y\n", "'path' and 'label' are read; not used: class"),
        ("path,image,label\n0.png,2.png,a\n1.png,2.png,c\n", "not used: image"),
        ("path,label,split\n0.png,a,train\n1.png,c,test\n", "not used: split"),
    ],
)
def test_rows_and_columns_that_were_meant_are_told(text: str, sentence: str, folder: Path) -> None:
    (folder / "l.csv").write_text(text)
    with pytest.warns(DeepClusterWarning, match=sentence):
        assert open_images(folder / "l.csv").classes == ("a", "c")


@pytest.mark.parametrize("text", ['path,label,\n" 0.png",a,\n 1.png ,c,\n', "path,width,label\n0.png,1,a\n1.png,1,c\n"])
def test_other_columns_and_spaces_say_nothing(text: str, folder: Path) -> None:
    (folder / " 0.png").write_bytes(image())
    (folder / "l.csv").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_images(folder / "l.csv")
    assert source.path(0) == text.splitlines()[1].split(",")[0].strip('"') and source.path(1) == "1.png"


def table(file: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), file)
    return file


@pytest.mark.parametrize(
    ("column", "classes", "labels"),
    [
        ([1.0, float("nan"), 2.0], ("1.0", "2.0"), [0, -1, 1]),
        ([b"cat", b"dog", None], ("cat", "dog"), [0, 1, -1]),
        ([True, None, False], ("False", "True"), [1, -1, 0]),
    ],
)
def test_labels_of_any_type(column: list[Any], classes: tuple[str, ...], labels: list[int], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_images(table(tmp_path / "a.parquet", image=[image()] * 3, label=column))
    assert source.classes == classes and source.labels is not None and source.labels.tolist() == labels


@pytest.mark.parametrize("column", [{"label": [[1], [1, 2]]}, {"label": [{"a": 1}] * 2}, {"fine_label": [1, 2]}])
def test_columns_of_parquet_that_are_not_used_are_told(column: dict[str, Any], tmp_path: Path) -> None:
    with pytest.warns(DeepClusterWarning, match=f"no column `label`.*not used: {next(iter(column))}"):
        assert open_images(table(tmp_path / "a.parquet", image=[image()] * 2, **column)).labels is None


def test_files_with_and_without_labels(tmp_path: Path) -> None:
    table(tmp_path / "1.parquet", image=[image()])
    table(tmp_path / "2.parquet", image=[image()] * 2, label=["a", "b"])
    table(tmp_path / "3.parquet", image=[image()])
    labels = open_images(tmp_path / "*.parquet").labels
    assert labels is not None and labels.tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize("kind", [pyarrow.large_binary(), pyarrow.binary_view(), pyarrow.binary(len(image()))])
def test_bytes_of_any_type_are_images(kind: Any, tmp_path: Path) -> None:
    encoded = pyarrow.array([image()] * 2, kind)
    if kind == pyarrow.binary_view() and int(pyarrow.__version__.partition(".")[0]) < 22:
        pytest.skip("this pyarrow cannot write such a column")
    assert open_images(table(tmp_path / "a.parquet", image=encoded)).read(1).shape == (8, 8, 3)
    if kind == pyarrow.large_binary():
        encoded = pyarrow.array([image()] * 2).dictionary_encode()
        assert open_images(table(tmp_path / "d.parquet", image=encoded)).read(1).shape == (8, 8, 3)


def test_files_of_which_one_has_another_type_are_refused(tmp_path: Path) -> None:
    table(tmp_path / "1.parquet", image=[image()])
    table(tmp_path / "2.parquet", image=["a path"])
    with pytest.raises(DeepClusterError, match=r"2.parquet has no column 'image' of images, which .*: leave it out$"):
        open_images(tmp_path / "*.parquet")


def test_what_is_said_of_a_parquet_file_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError) as refused:
        open_images(table(tmp_path / "a.parquet", path=["0.png"]))
    assert "no column of images" in str(refused.value) and "cannot be read" not in str(refused.value)


def test_a_parquet_file_of_a_name_in_latin_1(tmp_path: Path) -> None:
    named = os.path.join(str(tmp_path), os.fsdecode(b"caf\xe9.parquet"))
    os.rename(table(tmp_path / "a.parquet", image=[image()]), named)
    assert open_images(named).read(0).shape == (8, 8, 3)


def test_tensors_of_any_type_and_history(tmp_path: Path) -> None:
    half = torch.full((2, 4, 4, 3), 0.5)
    for tensor in (half.clone().requires_grad_(), half.bfloat16(), half.half()):
        assert open_images(tensor).read(1).max() == 128
        assert open_images(list(tensor)).read(1).max() == 128


@pytest.mark.parametrize("what", ["ragged", "pair", "cut", "closed", "no values"])
def test_items_that_are_no_images_are_refused_by_their_number(what: str, folder: Path) -> None:
    (folder / "cut.png").write_bytes(image()[:-30])
    closed = Image.open(folder / "0.png")
    closed.close()
    item: Any = {
        "ragged": [[1], [1, 2]],
        "pair": (np.zeros((4, 4, 3), np.uint8), 1),
        "cut": Image.open(folder / "cut.png"),
        "closed": closed,
        "no values": torch.empty(4, 4, 3, device="meta"),
    }[what]
    with pytest.raises(DeepClusterError, match="item 1 of the list of images cannot be read"):
        open_images([np.zeros((4, 4), np.uint8), item])

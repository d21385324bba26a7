"""Parquet files of images, from a disk and from the Hugging Face hub."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from deepcluster.data import storage
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.parquet import ParquetImages
from deepcluster.errors import BadImage, DeepClusterError, DeepClusterWarning
from hub import Files, serving


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(seed)).save(stream, "PNG")
    return stream.getvalue()


def write(file: Path, first: int, count: int, *, struct: bool = True, names: bool = True, **more: Any) -> Path:
    """Images `first` and on, image 5 broken and image 7 missing, in row groups of 4."""
    content: list[bytes | None] = [png(k) for k in range(first, first + count)]
    for broken, instead in ((5, b"nothing"), (7, None)):
        if first <= broken < first + count:
            content[broken - first] = instead
    images: Any = [{"bytes": each, "path": f"{k}.png"} for k, each in enumerate(content)] if struct else content
    table = pyarrow.table({"image": images, "label": [k % 3 for k in range(first, first + count)], **more})
    if names:
        about = {"info": {"features": {"label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=4)
    return file


@pytest.mark.parametrize("struct", [True, False])
def test_images_labels_and_names(tmp_path: Path, struct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FRESH", 0.0)
    write(tmp_path / "train-0.parquet", 0, 10, struct=struct)
    write(tmp_path / "train-1.parquet", 10, 3, struct=struct)
    source = open_images(str(tmp_path / "*.parquet"))
    assert len(source) == 13 and source.classes == ("cat", "dog", "emu")
    np.testing.assert_array_equal(source.labels, np.arange(13) % 3)
    for index in (12, 0, 11, 3, 4, 9):
        np.testing.assert_array_equal(source.read(index), picture(index))
    write(tmp_path / "train-0a.parquet", 0, 0, struct=struct)  # without rows: the paths of others stay
    assert len(open_images(str(tmp_path / "*.parquet"))) == 13
    assert open_images(str(tmp_path / "*.parquet")).path(12) == source.path(12)
    assert source.path(4) == "train-0.parquet/000004" and source.path(12) == "train-1.parquet/000002"
    assert len({source.path(index) for index in range(13)}) == 13
    with pytest.raises(BadImage, match="no bytes"):
        source.read(7)
    again = pickle.loads(pickle.dumps(source))
    assert again.held == (-1, None)  # a worker gets no images
    np.testing.assert_array_equal(again.read(8), picture(8))
    assert isinstance(source, ParquetImages)
    before, marks = source.fingerprint(), source.marks()
    assert again.fingerprint() == before
    write(tmp_path / "train-1.parquet", 20, 3, struct=struct)
    changed = open_images(str(tmp_path / "*.parquet"))
    assert isinstance(changed, ParquetImages) and changed.fingerprint() != before
    np.testing.assert_array_equal(changed.marks() != marks, np.arange(13) >= 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_in_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    source = open_images(write(tmp_path / "a.parquet", 0, 12))
    pixels = load_pixels(source, short_side=None, cache_gb=1, workers=workers)
    found = pixels.gather(np.arange(12))
    assert sorted(pixels.bad) == [5, 7]
    for index, image in enumerate(found):
        assert (image is None) == (index in (5, 7))
        if image is not None:
            np.testing.assert_array_equal(image, picture(index))


def test_classes_by_number_and_by_name(tmp_path: Path) -> None:
    numbered = open_images(write(tmp_path / "a.parquet", 0, 6, names=False))
    assert numbered.classes == ("0", "1", "2")
    named = pyarrow.table({"img": [png(0), png(1), png(2)], "Category": ["b", None, "a"]})
    parquet.write_table(named, tmp_path / "b.parquet")
    source = open_images(tmp_path / "b.parquet")
    assert source.classes == ("a", "b") and np.asarray(source.labels).tolist() == [1, -1, 0]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet", 0, 4)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:200])
    parquet.write_table(pyarrow.table({"x": [1, 2]}), tmp_path / "numbers.parquet")
    parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), tmp_path / "empty.parquet")
    for name, words in (
        ("cut.parquet", "cannot be read as parquet"),
        ("numbers.parquet", "no column of images"),
        ("empty.parquet", "holds no image"),
        ("none-*.parquet", "no file matches"),
        ("{whole,numbers}.parquet", "has no column 'image'"),
    ):
        with pytest.raises(DeepClusterError, match=words):
            open_images(str(tmp_path / name))
    write(tmp_path / "only/a.parquet", 0, 4)
    with pytest.raises(DeepClusterError, match=r"parquet files, not image files: name them as '.*only/\*\.parquet'"):
        open_images(tmp_path / "only")
    with pytest.warns(DeepClusterWarning, match="2 columns of images, of which 'image' is read"):
        open_images(write(tmp_path / "two.parquet", 0, 4, depth=[b"", b"", b"", b""]))


def test_files_of_equal_names_and_more_than_may_be_open(tmp_path: Path) -> None:
    import resource

    for number in range(40):
        write(tmp_path / f"{number:02d}/0000.parquet", 10, 1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        source = open_images(str(tmp_path / "*/0000.parquet"))
        assert len({source.path(index) for index in range(40)}) == 40
        np.testing.assert_array_equal(source.read(39), picture(10))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert source.path(3) == "03/0000.parquet/000000"


def test_a_damaged_column_of_labels_is_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", 10, 8)
    content = bytearray(file.read_bytes())
    column = parquet.ParquetFile(file).metadata.row_group(0).column(2)
    at = column.dictionary_page_offset or column.data_page_offset
    content[at : at + 20] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(DeepClusterError, match="cannot be read as parquet"):
        open_images(file)


def test_a_damaged_row_group_costs_its_own_images(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", 10, 8)
    content = bytearray(file.read_bytes())
    at = parquet.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    content[at : at + 40] = bytes(40)
    file.write_bytes(content)
    source = open_images(file)
    np.testing.assert_array_equal(source.read(0), picture(10))
    with pytest.raises(BadImage):
        source.read(5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Files]]:
    """Data set `we/photos` of a hub: revision -> name -> file."""
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found["datasets/we/photos"]


def test_a_data_set_of_the_hub(hub: dict[str, Files], tmp_path: Path) -> None:
    train, test = write(tmp_path / "1.parquet", 0, 4), write(tmp_path / "2.parquet", 30, 6)
    hub["main"] = {"data/train-00000-of-00001.parquet": train, "data/test-00000-of-00001.parquet": test}
    with pytest.warns(DeepClusterWarning, match="its split 'train' is read"):
        source = open_images("hf:we/photos")
    assert len(source) == 4 and source.classes == ("cat", "dog", "emu")
    np.testing.assert_array_equal(source.read(2), picture(2))
    np.testing.assert_array_equal(open_images("hf:we/photos?split=test").read(5), picture(35))
    with pytest.raises(DeepClusterError, match="no parquet files of split 'dev'"):
        open_images("hf:we/photos?split=dev")
    hub["main"] = {f"data/{split}-0.parquet": test for split in ("test", "valid")}  # of which one was fetched before
    assert len(open_images("hf:we/photos?split=test")) == 6 and len(open_images("hf:we/photos")) == 12
    with pytest.raises(DeepClusterError, match="no option 'slpit'"):
        open_images("hf:we/photos?slpit=dev")
    with pytest.raises(DeepClusterError, match="hf:we/photos could not be fetched"):
        open_images("hf:we/photos?revision=v9")
    with pytest.raises(DeepClusterError, match="hf:we/other could not be fetched"):
        open_images("hf:we/other")


def test_a_data_set_that_the_hub_converts(hub: dict[str, Files], tmp_path: Path) -> None:
    hub["main"] = {"README.md": write(tmp_path / "1.parquet", 0, 4)}
    hub["refs/convert/parquet"] = {"default/train/0000.parquet": write(tmp_path / "2.parquet", 40, 4)}
    np.testing.assert_array_equal(open_images("hf:we/photos").read(1), picture(41))
    hub["refs/convert/parquet"]["other/train/0000.parquet"] = write(tmp_path / "3.parquet", 50, 4)
    with pytest.raises(DeepClusterError, match=r"has default, other: name one, as by \?config=default"):
        open_images("hf:we/photos")
    np.testing.assert_array_equal(open_images("hf:we/photos?config=other").read(1), picture(51))
    with pytest.raises(DeepClusterError, match="no parquet files of config 'third'"):
        open_images("hf:we/photos?config=third")

"""The doors of small files: what is whole is read as it was written, anything else is refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcluster import reading
from deepcluster.errors import DeepClusterError
from deepcluster.reading import parse_json, read_csv, read_json, read_npy, read_npz, read_text

ARRAYS = (
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.zeros((0, 4)),
    np.array(5),
    np.ones(3, [("offset", "<u4"), ("length", "<u4")]),
    np.array([True, False]),
)


@pytest.mark.parametrize("mapped", [None, "r", "c"])
def test_arrays_are_read_as_numpy_reads_them(mapped: Any, tmp_path: Path) -> None:
    for array in ARRAYS:
        np.save(tmp_path / "a.npy", array)
        found = read_npy(tmp_path / "a.npy", advice="write it again.", mapped=mapped)
        assert found.dtype == array.dtype and found.shape == array.shape and (np.asarray(found) == array).all()
        assert found.flags.f_contiguous == array.flags.f_contiguous
    np.savez_compressed(tmp_path / "a.npz", x=ARRAYS[0], y=ARRAYS[1])
    assert (read_npz(tmp_path / "a.npz", advice="write it again.")["y"] == ARRAYS[1]).all()


def _npy(header: str, numbers: bytes = bytes(48)) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin-1") + numbers


GOOD = "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }"
DAMAGED_NPY = {
    "empty": b"",
    "words": b"these are words, and no array",
    "version": b"\x93NUMPY\x09\x00" + _npy(GOOD)[8:],
    "header cut": _npy(GOOD)[:40],
    "long header": b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(48),
    "numbers cut": _npy(GOOD)[:-1],
    "numbers more": _npy(GOOD) + b"\0",
    "unfinished bracket": _npy(GOOD.replace("3), }", "3, ")),
    "nested": _npy("(" * 9000),
    "no dict": _npy("[1, 2]"),
    "other key": _npy(GOOD.replace("descr", "descs")),
    "negative": _npy(GOOD.replace("2, 3", "-2, -3")),
    "huge": _npy(GOOD.replace("2, 3", "10000000000000, 3")),
    "huger than 64 bits": _npy(GOOD.replace("2, 3", "9" * 60)),
    "4,300 digits": _npy(GOOD.replace("2, 3", "9" * 4400)),
    "type": _npy(GOOD.replace("<i8", "<q9")),
    "no type": _npy(GOOD.replace("'<i8'", "[[], ()]")),
    "objects": _npy(GOOD.replace("<i8", "|O")),
    "order": _npy(GOOD.replace("False", "7")),
    "letters": _npy(GOOD.replace("2, 3", "'a', 3")),
}


@pytest.mark.parametrize("content", DAMAGED_NPY.values(), ids=DAMAGED_NPY)
@pytest.mark.parametrize("mapped", [None, "r"])
def test_a_damaged_npy_is_one_sentence(content: bytes, mapped: Any, tmp_path: Path) -> None:
    refused(tmp_path / "a.npy", content, lambda file: read_npy(file, advice="write it again.", mapped=mapped))
    refused(tmp_path / "a.npz", content, lambda file: read_npz(file, advice="write it again."))


DAMAGED_JSON = {
    "empty": b"",
    "cut": b'{"a": 1',
    "list": b"[1]",
    "zeros": bytes(40),
    "zeros within": b'{"a": "b\0"}',
    "no UTF-8": b'{"a": "\xff"}',
    "nested": b'{"a": ' + b"[" * 100_000,
    "4,300 digits": b'{"a": ' + b"9" * 4400 + b"}",
    "65 bits": b'{"a": 18446744073709551616}',
    "infinite": b'{"a": 1e999}',
}


@pytest.mark.parametrize("content", DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_damaged_json_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "a.json", content, lambda file: read_json(file, advice="write it again."))


def refused(file: Path, content: bytes, read: Callable[[Path], object]) -> None:
    file.write_bytes(content)
    with pytest.raises(DeepClusterError) as caught:
        read(file)
    text = str(caught.value)
    assert text.startswith(str(file)) and text.endswith(": write it again.") and len(text) < 400 and "\n" not in text


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    fifo, sparse = tmp_path / "fifo.json", tmp_path / "sparse.json"
    os.mkfifo(fifo)
    with open(sparse, "wb") as handle:
        handle.truncate(1 << 40)
    for file in (fifo, sparse, tmp_path, tmp_path / "none.json", Path("/dev/zero")):
        for read in (read_json, read_text, read_csv, read_npy, read_npz):
            with pytest.raises(DeepClusterError, match="write it again"):
                read(file, advice="write it again.")


def test_what_asks_for_more_than_a_bound_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.npy").write_bytes(DAMAGED_NPY["long header"])
    with pytest.raises(DeepClusterError, match="its header is too long"):  # NumPy would read it first
        read_npy(tmp_path / "a.npy", advice="")
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000))
    monkeypatch.setattr(reading, "MOST_ARCHIVE", 8000)
    with pytest.raises(DeepClusterError, match="its arrays have more than 8,000 bytes"):
        read_npz(tmp_path / "a.npz", advice="")
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


def test_json_that_fits_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -(2**63), 2**64 - 1, 1e300, None, "ü"], "b": {"c": True}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json", advice="") == value == parse_json(json.dumps(value))
    (tmp_path / "a.csv").write_text('\ufeffpath,label\n"a,""b\n.jpg",x\n', encoding="utf-8")
    assert read_csv(tmp_path / "a.csv", advice="") == [["path", "label"], ['a,"b\n.jpg', "x"]]

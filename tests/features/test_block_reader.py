"""Reading and writing rows past the mapping of a memmap."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, write_rows


def read(x: object, step: int = 7) -> np.ndarray:
    return np.concatenate([block.numpy().copy() for _, block in Rows(x).blocks(step)])


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(5000, 9)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy", x


def test_every_kind_of_table_gives_the_same_rows(stored: tuple[Path, np.ndarray]) -> None:
    path, x = stored
    mapped = np.load(path, mmap_mode="r")
    cut = mapped[1234:4321]
    for table, rows in [
        (mapped, x),
        (cut, x[1234:4321]),
        (cut[100:], x[1334:4321]),
        (mapped[::3], x[::3]),
        (mapped[:, 2:5], x[:, 2:5]),
        (x, x),
        (np.asfortranarray(x), x),
        (torch.from_numpy(x), x),
        (x.astype(np.float64), x),
        (np.load(path, mmap_mode="c"), x),
    ]:
        np.testing.assert_array_equal(read(table, 999), rows)
        index = torch.tensor([17, 3, 17, 900])
        np.testing.assert_array_equal(Rows(table).take(index), rows[index])


def test_rows_of_a_file_are_read_without_touching_the_mapping(stored: tuple[Path, np.ndarray]) -> None:
    path, _ = stored
    rows = Rows(np.load(path, mmap_mode="r"))
    assert rows._read is not None
    with open(path, "r+b") as file:  # what lies in the file is what counts
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(42).tobytes())
    assert rows.block(4999, 5000)[0, 8] == 42
    assert Rows(np.load(path))._read is None


@pytest.mark.parametrize("kind", ["array", "file", "float64 far from zero", "float16 tensor"])
def test_rows_are_kept_where_they_fit_and_read_each_time_else(kind: str, stored: tuple[Path, np.ndarray]) -> None:
    path, x = stored
    table: Any = x.copy()
    if kind == "file":
        table = np.load(path, mmap_mode="r+")
    if kind == "float64 far from zero":
        table = x.astype(np.float64) + 1e9
    if kind == "float16 tensor":
        table = torch.from_numpy(x).half()
    origin = torch.full((9,), 1e9, dtype=torch.float64) if kind == "float64 far from zero" else None
    kept, read = Rows(table), Rows(table)
    kept.origin = read.origin = origin
    assert not kept.hold()  # on the CPU, unless it is said how much
    assert not kept.hold(4 * x.size - 1)
    assert kept.hold(4 * x.size)
    expected = {"all": read.block(0, 5000).clone(), "some": read.take(torch.tensor([4, 4999, 4])).clone()}
    table[:] = 7
    assert read.block(3, 4).eq(7 - (0 if origin is None else 1e9)).all()
    again = torch.cat([block for _, block in kept.blocks(999)])
    assert torch.equal(again, expected["all"])
    assert torch.equal(kept.take(torch.tensor([4, 4999, 4])), expected["some"])
    assert torch.equal(kept.span(1000, 1200).block(0, 200), again[1000:1200])


def test_a_tensor_that_is_there_as_it_is_needed_is_not_copied() -> None:
    x = torch.zeros(10, 3)
    rows = Rows(x)
    assert rows.hold(1 << 20)
    x += 1
    assert rows.block(0, 10).eq(1).all()


def test_unsaved_changes_of_a_private_mapping_are_seen(stored: tuple[Path, np.ndarray]) -> None:
    private = np.load(stored[0], mmap_mode="c")
    private[3] = 5
    assert (Rows(private).block(3, 4) == 5).all()


def test_other_number_types_in_files(tmp_path: Path) -> None:
    for kind in (np.float16, np.float64, np.uint8):
        x = (np.random.default_rng(0).random((50, 4)) * 100).astype(kind)
        np.save(tmp_path / "x.npy", x)
        np.testing.assert_array_equal(read(np.load(tmp_path / "x.npy", mmap_mode="r")), x.astype(np.float32))


def test_what_is_written_lies_in_the_file(tmp_path: Path) -> None:
    x = torch.randn(300, 5)
    out = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (300, 5))
    for start in range(0, 300, 64):
        write_rows(out, start, x[start : start + 64])
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), x)
    np.testing.assert_array_equal(out, x)
    part, plain, tensor = out[100:], np.zeros((300, 5), np.float64), torch.zeros(300, 5)
    write_rows(part, 10, x[:3])
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy")[110:113], x[:3])
    write_rows(plain, 7, x[:3])
    write_rows(tensor, 7, x[:3])
    np.testing.assert_array_equal(plain[7:10], tensor[7:10])


def test_a_file_cut_short_is_a_sentence(stored: tuple[Path, np.ndarray]) -> None:
    rows = Rows(np.load(stored[0], mmap_mode="r"))
    os.truncate(stored[0], 1000)
    with pytest.raises(DeepClusterError, match="became shorter"):
        rows.block(0, 5000)

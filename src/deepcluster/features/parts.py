"""A feature table spread over several files, read as one without holding any of it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import DeepClusterError

#: The file that says what a folder of parts is, and whether it is finished.
ABOUT = "table.json"
FORMAT = "deepcluster table"
VERSION = 1


def part_name(start: int, stop: int) -> str:
    """The file of rows start … stop - 1."""
    return f"part-{start:012d}-{stop:012d}.npy"


class PartedTable:
    """An (N, D) table whose rows lie one after another in several .npy files.

    It is indexed like an array, by rows, row ranges and arrays of rows, and gives arrays; `read_rows` reads into
    memory of the caller's.

    Args:
        files: the files, in order.
        rows: rows of each.
        width: D.
        dtype: of every file.
        offsets: where the rows begin in each file, in bytes.
    """

    ndim = 2

    def __init__(
        self, files: Sequence[Path], rows: Sequence[int], width: int, dtype: np.dtype, offsets: Sequence[int]
    ) -> None:
        self.files = list(files)
        self.ends = np.cumsum(np.asarray(rows, np.int64))
        self.shape = (int(self.ends[-1]), width)
        self.dtype = dtype
        self._offsets = list(offsets)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                into = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
                self.read_rows(start, into)
                return into
            rows = np.arange(start, stop, step)
        where = np.asarray(rows)
        if where.dtype == bool:
            if where.shape != (len(self),):
                raise IndexError(f"a mask of shape {where.shape} for {len(self)} rows")
            where = np.flatnonzero(where)
        if where.size and where.dtype.kind not in "iu":
            raise IndexError("rows are chosen by numbers, ranges, arrays of numbers, or a mask")
        flat = np.where(where < 0, where + len(self), where).astype(np.int64).reshape(-1)
        if flat.size and not (flat.min() >= 0 and flat.max() < len(self)):
            raise IndexError(f"a row outside of the table's {len(self)}")
        found = np.empty((len(flat), self.shape[1]), self.dtype)
        part = np.searchsorted(self.ends, flat, "right")
        for k in np.unique(part):
            mine = np.flatnonzero(part == k)
            mapped = np.memmap(self.files[k], self.dtype, "r", self._offsets[k], (self._count(k), self.shape[1]))
            found[mine] = mapped[flat[mine] - self._start(k)]
        return found.reshape(*where.shape, self.shape[1])

    def read_rows(self, start: int, into: np.ndarray) -> None:
        """Rows from `start` on into an array (n, D) of this dtype, past any mapping, so that none stays in memory.

        Raises:
            DeepClusterError: a file has become shorter since the table was opened.
        """
        if not len(into):
            return
        line = self.shape[1] * self.dtype.itemsize
        filled = 0
        part = int(np.searchsorted(self.ends, start, "right"))
        while filled < len(into):
            inside = start + filled - self._start(part)
            count = min(len(into) - filled, self._count(part) - inside)
            wanted = into[filled : filled + count].data.cast("B")
            with open(self.files[part], "rb", buffering=0) as file:
                file.seek(self._offsets[part] + inside * line)
                while len(wanted):
                    got = file.readinto(wanted)
                    if not got:
                        raise DeepClusterError(f"{self.files[part]} became shorter while it was read; write it again.")
                    wanted = wanted[got:]
            filled, part = filled + count, part + 1

    def _start(self, part: int) -> int:
        return int(self.ends[part - 1]) if part else 0

    def _count(self, part: int) -> int:
        return int(self.ends[part]) - self._start(part)


def read_about(folder: Path) -> dict[str, Any]:
    """What the table in a folder is.

    Raises:
        DeepClusterError: the folder holds none, or what it says of it is damaged.
    """
    file = folder / ABOUT
    if not file.is_file():
        raise DeepClusterError(
            f"{folder} holds no feature table (it has no {ABOUT}): `deepcluster features` writes one."
        )
    try:
        about = json.loads(file.read_text())
        if about["format"] != FORMAT or about["version"] != VERSION:
            raise ValueError("another format or version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeepClusterError(f"{file} is damaged ({error}): write the table again with --overwrite.") from None
    return about


def open_parts(folder: Path) -> tuple[PartedTable, dict[str, Any]]:
    """The finished table in a folder, and what it is.

    Raises:
        DeepClusterError: there is none, it is not finished, or a part is missing or damaged.
    """
    about = read_about(folder)
    if not about.get("finished"):
        raise DeepClusterError(
            f"The feature table {folder} is not finished: the `deepcluster features` command that began it goes on."
        )
    found = sorted(path for path in folder.iterdir() if re.fullmatch(r"part-\d+-\d+\.npy", path.name))
    rows, offsets, kinds, next_row = [], [], set(), 0
    for file in found:
        start, stop = (int(number) for number in file.stem.split("-")[1:])
        part = _mapped(file)
        if start != next_row or part.ndim != 2 or len(part) != stop - start or not part.flags.c_contiguous:
            raise DeepClusterError(f"{file} does not follow the part before it: write it again with the same command.")
        next_row = stop
        rows.append(len(part))
        offsets.append(int(part.offset))
        kinds.add((part.dtype.str, part.shape[1]))
    if next_row != about["rows"] or len(kinds) != 1:
        raise DeepClusterError(
            f"The feature table {folder} has {next_row:,} of its {about['rows']:,} rows, or parts of several kinds: "
            "write what is missing with the same command."
        )
    kind, width = kinds.pop()
    return PartedTable(found, rows, width, np.dtype(kind), offsets), about


def _mapped(file: Path) -> np.memmap:
    try:
        part = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DeepClusterError(f"{file} is damaged ({error}): delete it and give the same command again.") from None
    assert isinstance(part, np.memmap)
    return part

"""A feature table whose rows lie in several files, indexed like an array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.features.block_reader import Rows


class TableInParts:
    """An (N, D) table whose rows lie one after another in several .npy files.

    It is indexed like an array, by rows, row ranges and arrays of rows, and gives arrays; `read_rows` reads into
    memory of the caller's.

    Args:
        parts: the files in order, memory-mapped, of one width and dtype.
    """

    ndim = 2

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = list(parts)
        self.files = [Path(str(part.filename)) for part in parts]
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), parts[0].shape[1])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                into = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
                self.read_rows(start, into)
                return into
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        np.broadcast_to(0, len(self))[rows]  # refuses what is not a row, as NumPy does
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        flat = np.where(rows < 0, rows + len(self), rows).reshape(-1)
        found = np.empty((len(flat), self.shape[1]), self.dtype)
        part = np.searchsorted(self.ends, flat, "right")
        for k in np.unique(part):
            mine = np.flatnonzero(part == k)
            found[mine] = self._parts[k][flat[mine] - self._start(k)]
        return found.reshape(*rows.shape, self.shape[1])

    def span(self, first: int, last: int) -> TableInParts:
        """The rows from `first` to before `last`, of which nothing is read."""
        starts = ((part, self._start(k)) for k, part in enumerate(self._parts))
        cut = [part[max(0, first - start) : max(0, last - start)] for part, start in starts]
        return TableInParts([part for part in cut if len(part)] or cut[:1])

    def read_rows(self, start: int, into: np.ndarray) -> None:
        """Fills an array (n, D) with the rows from `start` on, see `Rows.read`."""
        part = int(np.searchsorted(self.ends, start, "right"))
        while len(into):
            inside = start - self._start(part)
            count = min(len(into), len(self._parts[part]) - inside)
            Rows(self._parts[part]).read(inside, into[:count])
            into, start, part = into[count:], start + count, part + 1

    def _start(self, part: int) -> int:
        return int(self.ends[part - 1]) if part else 0

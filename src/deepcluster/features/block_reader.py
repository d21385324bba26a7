"""Rows on their way from memory, from a tensor or from a file on disk, block by block.

A `numpy.memmap` is read with `pread` instead of through its mapping, so that a file far larger than
memory never becomes resident: mapped pages count as the process's own until the kernel takes them back.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.features.parallel import rows_of
from deepcluster.features.resident import held

BLOCK_BYTES = 32 << 20  # read at once; small beside any model, large beside a disk's latency


class Rows:
    """An (N, D) table read as float32 blocks on one device.

    Args:
        x: (N, D) array, memory-mapped array, tensor or nested sequence, of any real number type; or a table that
            reads its own rows: with `shape`, `dtype`, `ndim` and `read_rows(start, into)`.
        device: where the blocks go; None = where x is (arrays: the CPU).
        name: what to call x in error messages.
        empty: whether there may be no rows: a process's share of a table may be none of it.

    Attributes:
        origin: (D,) float64, what is subtracted from each row before it is rounded to float32, which would lose the
            digits that a large common offset takes; see `find_origin`. None = nothing.

    Raises:
        DeepClusterError: x is not a table of real numbers with at least one row and one column.
    """

    def __init__(
        self, x: Any, device: torch.device | str | None = None, name: str = "features", *, empty: bool = False
    ):
        self.origin: Tensor | None = None
        if isinstance(x, Rows):
            x, self.origin, device = x.x, x.origin, device or x.device
        reads_itself = hasattr(x, "read_rows")
        if not isinstance(x, Tensor):
            if not reads_itself:
                x = np.asanyarray(x)
            if x.dtype.kind not in "fiub":
                raise DeepClusterError(f"{name} must be real numbers, not {x.dtype}; convert them first.")
        elif x.is_complex() or x.is_sparse:
            raise DeepClusterError(f"{name} must be a dense real tensor, not {x.dtype}, {x.layout}.")
        if x.ndim != 2:
            raise DeepClusterError(
                f"{name} must be a table (N, D) with one row per image, not of shape {tuple(x.shape)}; "
                "reshape it first."
            )
        if (x.shape[0] == 0 and not empty) or x.shape[1] == 0:
            raise DeepClusterError(f"{name} of shape {tuple(x.shape)} are empty; give at least one row.")
        self.x: Any = x.detach() if isinstance(x, Tensor) else x
        self.n, self.dim = int(x.shape[0]), int(x.shape[1])
        self.name = name
        self.device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        if device is not None:
            self.device = _device(device)
        self.block_rows = max(1, BLOCK_BYTES // (4 * self.dim))
        self._read: Callable[[int, np.ndarray], None] | None = x.read_rows if reads_itself else self._file_reader()
        self._buffer: np.ndarray | None = None
        self._held: Tensor | None = None

    def __len__(self) -> int:
        return self.n

    def __reduce__(self) -> Any:
        return _rows, (self.x, self.device, self.name, self.origin)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.n, self.dim

    def span(self, first: int, last: int) -> Rows:
        """The rows from `first` to before `last`."""
        rows = _rows(rows_of(self.x, first, last), self.device, self.name, self.origin)
        rows._held = None if self._held is None else self._held[first:last]
        return rows

    def hold(self, budget: int | None = None) -> bool:
        """Keep all rows on the device from now on, for whoever reads them often; see `held`. It changes no number, and
        tells whether they are there."""
        x = self.x if self.origin is None else None
        if isinstance(x, Tensor) and x.device == self.device and x.dtype == torch.float32:
            return True
        if self._held is None:
            self._held = held(self.blocks(), self.n, self.dim, self.device, budget)
        return self._held is not None

    @property
    def is_wide(self) -> bool:
        """Whether float32 does not hold all digits of the numbers."""
        kind = self.x.dtype
        if isinstance(kind, torch.dtype):
            return kind in (torch.float64, torch.int64, torch.int32) and self.x.device.type != "mps"
        return bool(kind.itemsize > 4 or (kind.kind in "iu" and kind.itemsize == 4))

    def read(self, start: int, into: np.ndarray) -> np.ndarray:
        """Fills an array (n, D) of the numbers' own type with the rows from `start` on, past a memmap's mapping.

        Raises:
            DeepClusterError: the file has become shorter since.
        """
        if self._read is None:
            into[:] = self.x[start : start + len(into)]
        else:
            self._read(start, into)
        return into

    def block(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) float32 rows; valid until the next block is read."""
        if self._held is not None:
            return self._held[start:stop]
        if self._read is None:
            part = self.x[start:stop]
            return self._float32(part if isinstance(part, Tensor) else np.asarray(part))
        if self._buffer is None or len(self._buffer) < stop - start:
            self._buffer = np.empty((stop - start, self.dim), self.x.dtype)
        return self._float32(self.read(start, self._buffer[: stop - start]))

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, block) pairs that cover every row once, in order."""
        step = rows or self.block_rows
        for start in range(0, self.n, step):
            yield start, self.block(start, min(start + step, self.n))

    def take(self, index: Tensor) -> Tensor:
        """(len(index), D) float32 rows in the order of `index`."""
        if self._held is not None:
            return self._held[index.to(self.device)]
        return self._float32(self.taken(index))

    def taken(self, index: Tensor) -> Any:
        """(len(index), D) rows in the order of `index`, of the numbers' own type and without regard to the origin."""
        if isinstance(self.x, Tensor):
            return self.x[index.to(self.x.device)]
        where = index.cpu().numpy()
        if self._read is None:
            return in_native(self.x[where])
        rows = np.empty((len(where), self.dim), self.x.dtype)
        for place in np.argsort(where, kind="stable"):  # in the order of the file
            self._read(int(where[place]), rows[place : place + 1])
        return in_native(rows)

    def _float32(self, part: Any) -> Tensor:
        if isinstance(part, Tensor):
            if self.origin is not None:
                part = part.double() - self.origin.to(part.device)
        else:
            if self.origin is not None:
                part = part - self.origin.cpu().numpy()
            with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused as such
                part = torch.from_numpy(_writable(np.ascontiguousarray(part, dtype=np.float32)))
        placed: Tensor = part.to(self.device, torch.float32)
        return placed

    def _file_reader(self) -> Callable[[int, np.ndarray], None] | None:
        """What reads rows from the file under a memmap; None where there is none."""
        span = _file_span(self.x) if self.n else None
        if span is None:
            return None
        descriptor, offset = span
        weakref.finalize(self, os.close, descriptor)
        name, line = self.x.filename, self.dim * self.x.itemsize
        return lambda start, into: _transfer(os.preadv, descriptor, into, offset + start * line, name)


def _device(name: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # what torch says has many lines
        raise DeepClusterError(
            f"There is no device {str(name)!r} on this machine: use device=None or 'cpu'."
        ) from error


def in_native(rows: np.ndarray) -> np.ndarray:
    """The same numbers in a type that torch has: in this machine's byte order, and of 64 bits at most."""
    kind = rows.dtype.newbyteorder("=")
    return rows.astype(np.float64 if kind.itemsize > 8 else kind, copy=False)


def _rows(x: Any, device: torch.device, name: str, origin: Tensor | None) -> Rows:
    rows = Rows(x, device, name, empty=True)
    rows.origin = origin
    return rows


def find_origin(sample: Tensor) -> Tensor | None:
    """(D,) float64, near the mean of sampled rows (S, D), where float32 would not tell them apart well; else None."""
    sample = sample.double()
    sample = sample[torch.isfinite(sample).all(1)]
    if not len(sample):
        return None
    mean = sample.mean(0)
    spread = (sample - mean).square().mean().sqrt()
    # a rounding error of 2^-24 of the offset is to stay below a thousandth of the spread
    if not 0 < spread < mean.abs().max() * 2.0**-14:
        return None
    unit = 2.0 ** spread.log2().floor()  # integers stay integers, and equally near ones equally near
    return (mean / unit).round() * unit


def write_rows(out: Any, start: int, block: Tensor) -> None:
    """Write `block` to out[start : start + len(block)], past the mapping where `out` is a memmap."""
    if isinstance(out, Tensor):
        out[start : start + len(block)] = block.to(out.device, out.dtype)
        return
    values = np.ascontiguousarray(block.cpu().numpy(), dtype=out.dtype)
    span = _file_span(out, writable=True)
    if span is None:
        out[start : start + len(block)] = values
        return
    descriptor, offset = span
    try:
        _transfer(os.pwritev, descriptor, values, offset + start * values.shape[1] * values.itemsize, out.filename)
    finally:
        os.close(descriptor)


def in_kind(values: Tensor, like: Any) -> Any:
    """A tensor for whoever gave a tensor, on its device, and an array for everybody else."""
    return values.to(like.device) if isinstance(like, Tensor) else values.cpu().numpy()


def normalize_rows(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays one of zeros."""
    # the largest magnitude goes out first: squares of very small or very large numbers leave float32
    peak = x.abs().amax(1, keepdim=True)
    x = x / torch.where(peak > 0, peak, 1.0)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def _writable(part: np.ndarray) -> np.ndarray:
    """The same numbers without the mark of read-only memory, of which torch warns; nobody here writes to it. Warnings
    cannot be silenced where threads read."""
    if not part.flags.writeable:
        part = part.view()
        try:
            part.flags.writeable = True
        except ValueError:
            part = part.copy()
    return part


def require_finite(values: Tensor, first: int | Tensor = 0, name: str = "features") -> None:
    """Raises DeepClusterError: a row of `values` (B,) or (B, D) is not finite; they begin at row `first`, or are the
    rows `first` (B,)."""
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        row = int(first[row]) if isinstance(first, Tensor) else first + row
        raise DeepClusterError(
            f"Row {row} of the {name} holds NaN or infinity, or a number beyond float32; leave it out."
        )


def refuse_rows(block: Tensor, first: int) -> NoReturn:
    """Raises DeepClusterError: rows (B, D) from `first` on, whose sums are not finite."""
    require_finite(block, first)
    raise DeepClusterError("The features are too large for float32 sums of squares; scale them down.")


def _file_span(x: Any, writable: bool = False) -> tuple[int, int] | None:
    """(open file descriptor, byte offset of x[0, 0]) of a memmap that lies in its file as plain rows.

    Raises:
        DeepClusterError: the file has become too short for them.
    """
    offset = file_offset(x)
    if offset is None or not hasattr(os, "preadv"):
        return None
    try:
        descriptor = os.open(x.filename, os.O_RDWR if writable else os.O_RDONLY)
    except OSError:  # deleted or renamed since: the mapping still holds the rows
        return None
    if os.fstat(descriptor).st_size < offset + x.nbytes:
        os.close(descriptor)
        raise _shorter(x.filename)
    return descriptor, offset


def file_offset(x: Any) -> int | None:
    """Byte of its file at which the first number of a memmap lies; None where the file does not hold plain rows."""
    if not isinstance(x, np.memmap) or x.filename is None or x.mode == "c" or not x.flags.c_contiguous:
        return None
    if x._mmap is None:  # type: ignore[attr-defined]
        return None
    base = np.frombuffer(x._mmap, np.uint8)  # type: ignore[attr-defined]
    mapped_from = x.offset - x.offset % mmap.ALLOCATIONGRANULARITY
    inside = x.ctypes.data - base.ctypes.data  # a slice of a memmap keeps its parent's `offset`
    return mapped_from + inside if 0 <= inside < len(base) else None


def _shorter(file: Any) -> DeepClusterError:
    return DeepClusterError(f"{file} became shorter while it was read; write it again.")


def _transfer(move: Any, descriptor: int, values: np.ndarray, offset: int, file: Any) -> None:
    """preadv or pwritev until every byte has moved: one call moves 2 GiB at most."""
    pending = memoryview(values.data).cast("B")
    while len(pending):
        moved = move(descriptor, [pending], offset)
        if moved <= 0:
            raise _shorter(file)
        pending, offset = pending[moved:], offset + moved

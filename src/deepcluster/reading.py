"""How small files are read: one function for each kind, through which every reader goes.

What is in a file was written by others, or damaged since. Each function checks size, form and values of what it gives,
runs nothing that it finds there, and refuses the rest in one sentence: what, where, and what to do.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import platform
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.seal import OWNED, OWNER, check_seal, json_seal

MOST_TEXT = 1 << 32
"""Bytes of a text file at most; a list of 14 million images has a gigabyte."""
MOST_JSON = 1 << 28
"""Bytes of a JSON file at most."""
MOST_ARCHIVE = 1 << 36
"""Bytes that the arrays of an .npz may unpack to."""
ANOTHER = "it belongs to another run"
HEADER = 10_000
"""Bytes of an .npy header at most, as in NumPy."""


@contextmanager
def judged(file: Path | str, advice: str) -> Iterator[None]:
    """Whatever fails inside is damage of `file`, and becomes a DeepClusterError whose sentence ends with `advice`."""
    try:
        yield
    except DeepClusterError:
        raise
    except Exception as error:  # parsers fail in more ways than they tell
        raise DeepClusterError(f"{file} {_reason(error)}: {advice}") from error


def _reason(error: Exception) -> str:
    """How a sentence about a file goes on after the file's name."""
    lines = [line.strip() for line in str(error).splitlines() if not line.endswith(":")]  # torch's headings say little
    why = (lines or [type(error).__name__])[0].rstrip(".")[:200]
    match error:
        case FileNotFoundError():
            return "is missing"
        case OSError(strerror=str(reason)):
            why = reason
        case RecursionError():
            why = "it is nested too deeply"
        case MemoryError():
            why = "it asks for more memory than there is"
        case UnicodeDecodeError():
            why = f"byte {error.start:,} is no UTF-8 text"
        case KeyError():
            why = f"it does not say {str(error)[:80]}"
    return f"cannot be read ({why})"


def regular_size(file: Path | str) -> int:
    """The bytes of a regular file; OSError of a pipe, a device or a folder, which might never end."""
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no regular file")
    return found.st_size


def read_bytes(file: Path | str, most: int) -> bytes:
    """A whole regular file of at most so many bytes; OSError or ValueError otherwise, for use within `judged`."""
    if (size := regular_size(file)) > most:
        raise ValueError(f"it has {size:,} bytes, and {most:,} are the most that is read")
    with open(file, "rb") as handle:
        return handle.read()


def read_head(file: Path | str, count: int) -> bytes:
    """The first bytes of a regular file; OSError where it is none."""
    regular_size(file)
    with open(file, "rb") as handle:
        return handle.read(count)


def read_text(file: Path, *, advice: str, most: int = MOST_TEXT, names: bool = False) -> str:
    """A text file in UTF-8, with or without a mark of it, or in UTF-16 with one, as Windows' editors write it.

    Args:
        names: it may hold names of files, so that bytes of another encoding stay as Python has those (PEP 383).

    Raises:
        DeepClusterError: it cannot be read, is too large, or is no text.
    """
    with judged(file, advice):
        content = read_bytes(file, most)
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            try:
                content = content.decode("utf-16").encode()
            except UnicodeError:
                raise ValueError("it begins as UTF-16 and is none") from None
        if (place := content.find(0)) >= 0:
            raise ValueError(f"byte {place:,} is NUL, so it is no text")
        return content.decode("utf-8-sig", "surrogateescape" if names else "strict")


def parse_json(text: str | bytes) -> Any:
    """A JSON value, with numbers that fit into 64 bits; ValueError where it is none, or nested thousands of times."""
    try:
        return json.loads(text, parse_int=_integer, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError("a number in it has more than 64 bits")
    return int(text)


def _float(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError("a number in it is too large")
    return number


def read_json(file: Path, *, advice: str, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object in a file; DeepClusterError where it cannot be read, or holds something else."""
    with judged(file, advice):
        found = parse_json(read_text(file, advice=advice, most=most))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        if "crc32" in found and found.pop("crc32") != json_seal(found):
            raise ValueError("its content is not what was written")
        return found


def read_csv(file: Path, *, advice: str, names: bool = False) -> list[list[str]]:
    """The rows of a .csv file, each a list of texts; its first one is the header. `names` as in `read_text`.

    Fields are divided by what the header holds most of: commas, semicolons or tabs.

    Raises:
        DeepClusterError: it cannot be read, or is no .csv.
    """
    with judged(file, advice):
        text = read_text(file, advice=advice, names=names)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=True)
        return list(rows)


def read_npy(
    file: Path,
    *,
    advice: str,
    mapped: Literal["r", "c"] | None = None,
    checked: bool = True,
    ndim: int | None = None,
    kinds: str = "biufcSUV",
    owner: str = "",
) -> np.ndarray:
    """The array in an .npy file, whose size must be what its header says.

    Args:
        mapped: "r" = memory-mapped to be read, "c" = with writes that stay in memory; None = read.
        checked: compare all of it with its seal, where it has one.
        ndim: number of its dimensions; None = any.
        kinds: NumPy's letters of the types that it may have. Objects are none of them: nothing is unpickled.
        owner: what it must belong to, if it says so, see `write_array`.

    Raises:
        DeepClusterError: it is missing, damaged, or of another form.
    """
    with judged(file, advice):
        regular_size(file)
        size = check_seal(file, read=checked)
        with open(file, "rb") as handle:
            dtype, fortran, shape = _npy_header(handle)
            start = handle.tell()
            count = math.prod(shape)
            if size - start == count * dtype.itemsize + OWNED:
                size -= OWNED
                handle.seek(size)
                if handle.read(len(OWNER)) != OWNER:
                    raise ValueError("what stands behind its numbers is no id of a run")
                if owner and handle.read(32) != owner.encode():
                    raise ValueError(ANOTHER)
                handle.seek(start)
            if size - start != count * dtype.itemsize:
                raise ValueError(
                    f"its header tells of {count * dtype.itemsize:,} bytes of numbers, and it has {size - start:,}"
                )
            if dtype.kind not in kinds or (ndim is not None and len(shape) != ndim):
                raise ValueError(f"it holds {dtype} of shape {shape}")
            if mapped is None or not count * dtype.itemsize:  # nothing cannot be mapped
                array: np.ndarray = np.fromfile(handle, dtype, count).reshape(shape, order="F" if fortran else "C")
                return array
        return np.memmap(file, dtype, mapped, start, shape, "F" if fortran else "C")


def map_rows(file: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], writable: bool) -> np.ndarray:
    """Rows that another process has mapped, perhaps of another machine; DeepClusterError where the file is not here."""
    try:
        return np.memmap(file, dtype, "r+" if writable else "r", offset, shape)
    except (OSError, ValueError) as error:
        raise DeepClusterError(
            f"{file} is not the same on {platform.node()}: put tables and --out on a disk that all machines see."
        ) from error


def _npy_header(handle: io.BufferedReader) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """Type, whether the first index varies fastest, and shape."""
    if handle.read(6) != np.lib.format.MAGIC_PREFIX:
        raise ValueError("it is no .npy file")
    handle.seek(0)
    version = np.lib.format.read_magic(handle)
    first = version == (1, 0)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is an .npy file of version {version[0]}.{version[1]}")
    if not first and int.from_bytes(handle.peek(4)[:4], "little") > HEADER:  # which NumPy reads before it compares
        raise ValueError("its header is too long")
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(handle, HEADER)
    if dtype.hasobject or len(shape) > 32 or min(shape, default=0) < 0 or math.prod(shape) > 2**60:
        raise ValueError(f"it holds {dtype} of shape {str(shape)[:80]}, and numbers are what is read")
    return dtype, fortran, shape


def read_npz(file: Path, *, advice: str) -> dict[str, np.ndarray]:
    """The arrays in an .npz file by name; DeepClusterError where it is missing, damaged, or holds something else."""
    with judged(file, advice):
        regular_size(file)
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_ARCHIVE:
                raise ValueError(f"its arrays have more than {MOST_ARCHIVE:,} bytes")
        with np.load(file, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("it holds more than arrays")
        return found


def read_tensors(
    file: Path | str, *, advice: str = "give a whole .safetensors file.", finite: bool = True, owner: str = ""
) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata and the tensors of a safetensors file, on the CPU; DeepClusterError where it is missing, damaged,
    something else, says that it belongs to another than `owner`, or, if `finite`, holds values that are not."""
    from safetensors import safe_open

    with judged(file, advice):
        regular_size(file)
        check_seal(file)
        with safe_open(file, "pt") as handle:
            metadata = dict(handle.metadata() or {})
            if owner and metadata.get("owner", owner) != owner:
                raise ValueError(ANOTHER)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    metadata.pop("crc32", None)
    if finite:
        require_finite(tensors, file)
    return metadata, tensors


def load_torch(file: Path | str) -> Any:
    """What `torch.save` wrote, on the CPU; only tensors and plain values, nothing is run. Any Exception may tell that
    the file is missing, damaged or wants to run code: torch fails in many ways."""
    import torch

    regular_size(file)
    check_seal(file)
    with warnings.catch_warnings():  # torch's own words about files that are refused
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def require_finite(tensors: Mapping[str, Any], file: Path | str) -> None:
    """Refuses weights that are not numbers (DeepClusterError): a training has diverged, or a file is damaged."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DeepClusterError(f"{file} holds values that are not finite, in {name}: give other weights.")

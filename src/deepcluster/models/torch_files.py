"""torch's files, of any age, read without running anything that is in them.

`torch.load(weights_only=True)` reads what torch writes today. Two forms of the years before 2019 it refuses: files
pickled by Python 2, which spells large integers as text, and the tar archives of torch before 0.1.10. Both are read
here by the same rule: tensors, numbers, texts, lists and dicts, and nothing that could call a function.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.reading import load_torch, read_head

TEXT_INTEGER = f"Unsupported operand {ord('I')}"
DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
}


def read_torch(file: str | Path) -> Any:
    """What `torch.save` put into `file`, on the CPU: tensors and plain values only.

    Raises:
        DeepClusterError: the file is missing, damaged, or names a function or class that would have to be run.
    """
    file = Path(file)
    try:
        if file.is_file() and tarfile.is_tarfile(file):
            return _read_tar(file)
        return _read(file)
    except OSError as error:
        raise DeepClusterError(f"{file} cannot be read ({error.strerror or error}): give a file of torch.") from error
    except Exception as error:  # a damaged file fails in as many ways as it can be damaged
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise DeepClusterError(
                f"{file} asks for {named[1]}, which is no tensor or plain value and could run code, so it was not"
                " loaded: where you trust its origin, save its epoch, arch and state_dict alone, without the optimizer"
                " and whatever else it holds."
            ) from error
        if _is_pickle(file):
            raise DeepClusterError(
                f"{file} is not a file of torch but a plain pickle, which could run code, so it was not loaded: write"
                " it with torch.save or as .safetensors."
            ) from error
        raise DeepClusterError(
            f"{file} is not a file of torch, or is cut short or damaged: get it again and compare its size."
        ) from error


def _is_pickle(file: Path) -> bool:
    """Whether the file is a pickle that torch did not write: torch's old form begins with its magic number."""
    head = read_head(file, 32)
    return head[:1] == pickle.PROTO and pickle.encode_long(torch.serialization.MAGIC_NUMBER) not in head


def _read(file: Path) -> Any:
    try:
        return load_torch(file)
    except pickle.UnpicklingError as error:
        if TEXT_INTEGER not in str(error):
            raise
    return torch.load(io.BytesIO(_binary_integers(file.read_bytes())), map_location="cpu", weights_only=True)


def _binary_integers(data: bytes) -> bytes:
    """The same file with INT, an integer as text, written as LONG1, an integer in bytes.

    The optimizers of that time name parameters by their address, too large for the short form of an integer.
    `pickletools` only splits the opcodes; nothing is run. Storages follow the pickles and stay as they are.
    """
    stream, parts = io.BytesIO(data), []
    for _ in ("magic number", "version", "system", "object", "keys of the storages"):
        opcodes = list(pickletools.genops(stream))
        ends = [position for _, _, position in opcodes[1:]] + [stream.tell()]
        for (opcode, value, begin), end in zip(opcodes, ends, strict=True):
            assert begin is not None and end is not None
            if opcode.name == "INT" and isinstance(value, int) and not isinstance(value, bool):
                number = pickle.encode_long(value)
                parts.append(pickle.LONG1 + bytes([len(number)]) + number)
            else:
                parts.append(data[begin:end])
    return b"".join(parts) + data[stream.tell() :]


class _Key(str):
    """Stands for a tensor until the tensors are put in; without a dict, so that no pickle can furnish it."""

    __slots__ = ()


class _Plain(pickle.Unpickler):
    """Numbers, texts, lists, dicts and OrderedDicts; every other name is refused, so that nothing can be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        kind = re.fullmatch(r"(\w+?)(?:Storage|Tensor)", name)
        if module in ("torch", "torch.cuda") and kind and kind[1] in DTYPES:
            return DTYPES[kind[1]]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is refused")

    def persistent_load(self, key: Any) -> _Key:
        return _Key(key)


def _plain(stream: BinaryIO) -> Any:
    return _Plain(stream, encoding="utf-8").load()


def _read_tar(file: Path) -> Any:
    """The form before torch 0.1.10: storages, tensors over them, and a pickle that names tensors by key."""
    with tarfile.open(file) as archive:
        storages = _tar_storages(_member(archive, "storages"))
        tensors = _tar_tensors(_member(archive, "tensors"), storages)
        return _filled(_plain(_member(archive, "pickle")), tensors)


def _member(archive: tarfile.TarFile, name: str) -> BinaryIO:
    member = archive.extractfile(name)
    if member is None:
        raise EOFError(name)
    return io.BytesIO(member.read())  # the pickles and the bytes between them are read in turns


def _tar_storages(stream: BinaryIO) -> dict[int, Tensor]:
    """Flat tensors by key: each a pickle of (key, place, type), its length, and its numbers."""
    storages: dict[int, Tensor] = {}
    for _ in range(_plain(stream)):
        key, _, dtype = _plain(stream)
        (length,) = struct.unpack("<q", _exactly(stream, 8))
        content = bytearray(_exactly(stream, length * dtype.itemsize))
        storages[int(key)] = torch.frombuffer(content, dtype=dtype) if length else torch.empty(0, dtype=dtype)
    for key, root, offset, length in _plain(stream):  # views of other storages
        storages[int(key)] = storages[int(root)][offset : offset + length]
    return storages


def _tar_tensors(stream: BinaryIO, storages: dict[int, Tensor]) -> dict[int, Tensor]:
    """Tensors by key: each a pickle of (key, storage, type), then dimensions, sizes, strides and offset."""
    tensors: dict[int, Tensor] = {}
    for _ in range(_plain(stream)):
        key, storage, _ = _plain(stream)
        (dimensions,) = struct.unpack("<i4x", _exactly(stream, 8))
        numbers = struct.unpack(f"<{2 * dimensions + 1}q", _exactly(stream, 8 * (2 * dimensions + 1)))
        sizes, strides, offset = numbers[:dimensions], numbers[dimensions:-1], numbers[-1]
        whole = storages[int(storage)]
        tensors[int(key)] = whole.as_strided(sizes, strides, whole.storage_offset() + offset)
    return tensors


def _exactly(stream: BinaryIO, length: int) -> bytes:
    found = stream.read(length) if length >= 0 else b""
    if len(found) != length:
        raise EOFError("cut short")
    return found


def _filled(value: Any, tensors: dict[int, Tensor]) -> Any:
    """`value` with tensors in place of their keys."""
    if isinstance(value, _Key):
        return tensors[int(value)]
    if isinstance(value, dict):
        return type(value)((key, _filled(inner, tensors)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(inner, tensors) for inner in value)
    return value

"""Seals: a CRC-32 of all bytes of a file, in the file, that is compared when the file is read.

It stands after the content, where readers of .npy files and of torch's pass over it, or, in safetensors, which permit
nothing there, as the first entry of the header. It is checked at about 6 GB/s, faster than disks give the bytes, so
that whole files are checked as they are opened, tables larger than memory too. Files without a seal, of earlier
versions or other programs, are believed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = b"\ndeepcluster crc32 "
"""What stands after the content of a sealed file; eight hex digits and a line's end follow."""
SEALED = len(SEAL) + 9
"""Bytes of a seal."""
OWNER = b"\ndeepcluster id "
"""What stands between the numbers of an .npy file and its seal where it belongs to a run; its id follows."""
OWNED = len(OWNER) + 32
"""Bytes of that."""
HEAD = b'{ "__metadata__":{"crc32":"'
"""How the header of a sealed safetensors file begins, behind its length in 8 bytes; eight hex digits follow. No other
program writes the space, so that the metadata, put into another file, seal nothing there."""
CHUNK = 4 << 20
"""Bytes read at a time."""


def check_seal(file: Path | str, *, read: bool = True) -> int:
    """The bytes of a file's content, compared with its seal if it has one and should be `read`; ValueError
    if it is not what was written."""
    with open(file, "rb") as handle:
        place = _digits_at(handle)
        if place is None:
            return handle.seek(0, os.SEEK_END)
        handle.seek(place)
        if read and handle.read(8) != _crc(handle, place):
            raise ValueError("its bytes are not those that were written")
        size = handle.seek(0, os.SEEK_END)
        return size if place < size - 9 else place - len(SEAL)


def seal_of(file: Path | str) -> str:
    """The digits of a file's seal, which tell its content from another without reading it; "" where it has none, is
    damaged or is not there."""
    try:
        with open(file, "rb") as handle:
            place = _digits_at(handle)
            return "" if place is None else os.pread(handle.fileno(), 8, place).decode("ascii", "replace")
    except (OSError, ValueError):
        return ""


def put_seal(handle: Any) -> None:
    """Seals an open file."""
    place = _digits_at(handle)
    if place is None:
        handle.seek(0, os.SEEK_END)
        place = handle.tell() + len(SEAL)
        handle.write(SEAL + b"00000000\n")
        handle.flush()
    crc = _crc(handle, place)
    handle.seek(place)
    handle.write(crc)


def _digits_at(handle: Any) -> int | None:
    """Where the eight hex digits of a file's seal are, None where it has none; ValueError for a damaged one."""
    size = handle.seek(0, os.SEEK_END)
    for start, mark, end in ((8, HEAD, b'"'), (size - SEALED, SEAL, b"\n")):
        if 0 <= start <= size - len(mark) - 9:
            handle.seek(start)
            found = handle.read(len(mark) + 9)
            other = sum(a != b for a, b in zip(found[: len(mark)] + found[-1:], mark + end, strict=True))
            if other == 0:
                return start + len(mark)
            if other <= 2 or (start > 8 and SEAL[:4] in found):
                raise ValueError("its seal is damaged or cut short")
    return None


def _crc(handle: Any, place: int) -> bytes:
    """The CRC-32 of a file, the digits of its seal counted as zeros."""
    crc, position = 0, 0
    handle.seek(0)
    while chunk := handle.read(CHUNK):
        if position < place + 8 and place < position + len(chunk):
            chunk = bytearray(chunk)
            for k in range(max(place, position), min(place + 8, position + len(chunk))):
                chunk[k - position] = ord("0")
        crc = zlib.crc32(chunk, crc)
        position += len(chunk)
    return f"{crc:08x}".encode()


def json_seal(value: Mapping[str, Any]) -> str:
    """The CRC-32 of a JSON object, which stands in it as its entry `crc32`."""
    return f"{zlib.crc32(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()):08x}"

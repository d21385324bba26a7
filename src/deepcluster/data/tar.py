"""Tar shards: one scan finds every image, then any image is one read of its bytes.

Random access is what lets a cluster point at its images; nothing is unpacked.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from deepcluster.data.members import Members
from deepcluster.data.naming import is_image_name
from deepcluster.errors import BadImage

#: Content begins at a multiple of so many bytes, and offsets are kept in these units.
UNIT = 512
#: Bytes before a member's content in which headers with its long name are looked for.
NAME_WINDOW = 16 * UNIT

#: Types of headers that extend the one behind them.
EXTENDING = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

Read = Callable[[int, int], bytes]


def scan_tar(stream: BinaryIO) -> Members:
    """The images of an uncompressed tar file; where it is damaged, those before the damage."""
    found: list[tuple[str, int, int]] = []
    trouble = None
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else a million members stay in memory
                if member.isreg() and not member.issparse() and is_image_name(member.name):
                    found.append((member.name.removeprefix("./"), member.offset_data, member.size))
            stream.seek(archive.offset)
            if any(stream.read(UNIT)):  # tarfile takes a damaged header for the end
                trouble = f"has a damaged header at byte {archive.offset:,}"
    except (tarfile.TarError, EOFError, ValueError) as error:
        trouble = "is cut short" if found else f"cannot be read as an uncompressed tar file ({error})"
    return Members.of(found, trouble, size)


def read_tar(read: Read, offset: int, length: int) -> bytes:
    """The content of the member at `offset`; `read(start, count)` gives bytes of the shard.

    Raises:
        BadImage: the file ends before the member does.
    """
    data = read(offset, length)
    if len(data) < length:
        raise BadImage("cut off: the tar file ends before this member does")
    return data


def tar_name(read: Read, offset: int) -> str:
    """The name of the member whose content begins at `offset`, from the headers before it."""
    start = max(0, offset - NAME_WINDOW)
    window = read(start, offset - start)
    first = len(window) - UNIT
    while (before := _extension(window, first)) is not None:
        first = before
    with tarfile.open(fileobj=io.BytesIO(window[first:] + bytes(2 * UNIT)), mode="r:") as archive:
        member = archive.next()
    if member is None:
        raise tarfile.TarError("there is no header")
    return member.name.removeprefix("./")


def _extension(window: bytes, header: int) -> int | None:
    """Where the header lies that extends the one at `header` (a long name, pax records); None when there is none."""
    for place in range(header - 2 * UNIT, -1, -UNIT):
        block = window[place : place + UNIT]
        if block[156:157] not in EXTENDING or block[257:262] != b"ustar":  # its checksum would take longer
            continue
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError:
            continue
        if place + (1 - (-found.size // UNIT)) * UNIT == header:
            return place
    return None

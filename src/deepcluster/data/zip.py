"""Zip shards: the directory at the end is read once, then any image is one read of its bytes.

Stored and deflated members are read, of ordinary and of ZIP64 files; the format is APPNOTE.TXT 6.3.9.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

from deepcluster.data.members import Members
from deepcluster.data.naming import is_image_name
from deepcluster.errors import BadImage

#: Offsets are kept in bytes: members begin anywhere.
UNIT = 1
#: Local header (APPNOTE 4.3.7): signature, version, flags, method, time, date, crc, sizes, lengths of name and extra.
HEADER = struct.Struct("<4s5H3L2H")
#: Bytes read beyond header and content, for the name and the extra field, whose lengths only the header tells.
SLACK = 512
#: A member that unpacks to more is no picture but a trap.
LARGEST = 1 << 30

ENCRYPTED, SIZES_FOLLOW, UTF8 = 0x1, 0x8, 0x800

Read = Callable[[int, int], bytes]


def scan_zip(stream: BinaryIO) -> Members:
    """The images of a zip file, in the order of its directory; none where the directory cannot be read."""
    size = stream.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            found = [
                (member.filename.removeprefix("./"), member.header_offset, member.compress_size)
                for member in archive.infolist()
                if not member.is_dir() and is_image_name(member.filename)
            ]
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error) as error:
        return Members.of([], f"cannot be read as a zip file ({error})", size)
    return Members.of(found, None, size)


def read_zip(read: Read, offset: int, length: int) -> bytes:
    """The unpacked content of the member whose local header is at `offset`, of `length` stored bytes.

    Raises:
        BadImage: cut off, damaged, encrypted, or packed by another method than deflate.
    """
    data = read(offset, HEADER.size + SLACK + length)
    flags, method, checksum, begin = _header(data)
    if begin + length > len(data) and begin > HEADER.size + SLACK:
        data += read(offset + len(data), begin + length - len(data))
    content = data[begin : begin + length]
    if len(content) < length:
        raise BadImage("cut off: the zip file ends before this member does")
    if flags & ENCRYPTED:
        raise BadImage("encrypted: repack the zip file without a password")
    if method == zipfile.ZIP_DEFLATED:
        content = _inflate(content)
    elif method != zipfile.ZIP_STORED:
        raise BadImage(f"packed by method {method}: repack the zip file stored or deflated")
    if not flags & SIZES_FOLLOW and zlib.crc32(content) != checksum:
        raise BadImage("damaged: its checksum does not match")
    return content


def zip_name(read: Read, offset: int) -> str:
    """The name of the member whose local header is at `offset`."""
    data = read(offset, HEADER.size + SLACK)
    flags = _header(data)[0]
    length = HEADER.unpack_from(data)[9]
    raw = (data if HEADER.size + length <= len(data) else read(offset, HEADER.size + length))[HEADER.size :][:length]
    return raw.decode("utf-8" if flags & UTF8 else "cp437", "replace").removeprefix("./")


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Flags, method, checksum, and where the content begins."""
    if len(data) < HEADER.size or not data.startswith(b"PK\x03\x04"):
        raise BadImage("damaged: there is no zip header where its shard's index has one")
    _, _, flags, method, _, _, checksum, _, _, name, extra = HEADER.unpack_from(data)
    return flags, method, checksum, HEADER.size + name + extra


def _inflate(packed: bytes) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = engine.decompress(packed, LARGEST)
    except zlib.error as error:
        raise BadImage(f"damaged: {error}") from None
    if not engine.eof:
        raise BadImage("too large" if engine.unconsumed_tail else "cut off: its packed bytes end early")
    return content

"""Tar and zip archives, read in place: one scan lists the members, then each is one read of its bytes.

Of zip files, stored and deflated members are read, also of ZIP64 (APPNOTE.TXT 6.3.9).
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np

from deepcluster.data import storage
from deepcluster.data.formats import CONTAINERS, HEAD, UNREAD_PICTURES
from deepcluster.data.naming import is_hidden, is_picture, printable
from deepcluster.errors import BadImage, counted

#: The length that stands for "this long or longer": no image is, and four bytes hold no more.
TOO_LONG = 2**32 - 1

Read = Callable[[int, int], bytes]
"""(start, count) -> bytes of an archive."""
Wanted = Callable[[str, Callable[[], bytes]], bool]
"""Member name, and what reads its first bytes -> whether it is listed."""
Texts = dict[str, bytes]
"""Name of a .cls member without its ending -> its first bytes."""


@dataclass(frozen=True)
class Members:
    """Members of one archive, in its own order."""

    names: list[str]  # n member names
    offsets: np.ndarray  # (n,) int64, the first byte of each: of a tar member's content, of a zip member's local header
    lengths: np.ndarray  # (n,) int64, stored bytes of each, at most `TOO_LONG`
    trouble: str = ""  # why the archive could not be read to its end; empty when it could
    classes: list[str | None] | None = None  # n texts of WebDataset's .cls beside images; None where no image has one

    @classmethod
    def none(cls, trouble: str) -> Members:
        """Of an archive that cannot be read."""
        return cls([], np.zeros(0, np.int64), np.zeros(0, np.int64), trouble)


@dataclass(frozen=True)
class Format:
    """How archives of one kind are read."""

    unit: int  # offsets are multiples of so many bytes
    advice: str  # what to do about an archive that cannot be read
    # file, wanted, texts -> (name, offset, length) of members, and the trouble; a .cls adds its first bytes to texts
    scan: Callable[[BinaryIO, Wanted, Texts], tuple[list[tuple[str, int, int]], str]]
    read: Callable[[Read, int, int], bytes]  # read, offset, length -> content of a member. Raises BadImage.


def find_format(place: str) -> Format | None:
    """The format of an archive by the ending of its path or URL; None for what is not an archive."""
    return FORMATS.get(PurePosixPath(place.partition("?")[0] if storage.is_url(place) else place).suffix.lower())


def format_of(place: str) -> Format:
    """The format of what is known to be an archive."""
    found = find_format(place)
    assert found is not None, place
    return found


def scan(place: str, wanted: Wanted = is_picture) -> Members:
    """The `wanted` members of an archive; where it is damaged, those before the damage. Does not raise OSError."""

    def once() -> Members:
        texts: Texts = {}
        with storage.open_stream(place) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            found, trouble = format_of(place).scan(stream, wanted, texts)
        inside = [member for member in found if member[1] + member[2] <= size]
        if len(inside) < len(found):
            trouble = trouble or "is cut short"
        names, offsets, lengths = zip(*inside, strict=True) if inside else ((), (), ())
        sizes = np.minimum(np.array(lengths, np.int64), TOO_LONG)
        paths = [_with_slashes(name).removeprefix("./") for name in names]
        classes = [_class_of(name, texts) for name in names] if texts else None
        return Members(paths, np.array(offsets, np.int64), sizes, trouble, classes)

    try:
        return storage.retry(once) if storage.is_url(place) else once()
    except OSError as error:
        return Members.none(f"cannot be read ({error.strerror or error})")


def _with_slashes(name: str) -> str:
    """A name whose folders Windows has divided by backslashes."""
    return name if "/" in name else name.replace("\\", "/")


def _class_of(name: str, texts: Texts) -> str | None:
    """What the .cls of an image says: that of its own name, or of the name up to its first dot, WebDataset's key."""
    folder, _, file = name.rpartition("/")
    key = file.partition(".")[0]
    text = texts.get(os.path.splitext(name)[0], texts.get(f"{folder}/{key}" if folder else key, b""))
    is_class = len(text) < HEAD and b"\0" not in text
    return (printable(os.fsdecode(text.strip())) or None) if is_class else None


def _is_left_out(name: str) -> bool:
    """Whether a member that is no image may hold some, or is one to its owner, so that it is to be told."""
    path = PurePosixPath(name)
    return path.suffix.lower() in UNREAD_PICTURES + CONTAINERS and not any(map(is_hidden, path.parts))


def read_member(place: str, offset: int, length: int) -> bytes:
    """The content of the member that `scan` found at `offset`, `length` bytes stored.

    Raises:
        BadImage: it is damaged, cut off, or packed in a way that is not read here.
    """
    if length >= TOO_LONG:
        raise BadImage("too large: 4 GiB or more")
    try:
        return format_of(place).read(partial(storage.read_range, place), offset, length)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from None


# ---------------------------------------------------------------------------------------------------------------- tar

#: Content begins at a multiple of so many bytes.
BLOCK = 512
#: Zeros that writers put behind the last member at most, to fill a record: 10 kB, or what `tar --blocking-factor` says.
PADDING = 1 << 20


def _scan_tar(stream: BinaryIO, wanted: Wanted, texts: Texts) -> tuple[list[tuple[str, int, int]], str]:
    """Also of archives put end to end (`cat a.tar b.tar`). Links, sparse members, and archives in it are told."""
    found: list[tuple[str, int, int]] = []
    unread: list[str] = []
    others: list[str] = []
    start: int | None = 0
    try:
        while start is not None:
            stream.seek(start)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # else a million members stay in memory
                    if member.isdir():
                        continue
                    if not wanted(member.name, head := partial(_head, archive, member)):
                        others += [member.name] * _is_left_out(member.name)
                        if member.name.endswith(".cls"):
                            texts[member.name.removesuffix(".cls")] = head()
                    elif member.isreg() and not member.issparse():
                        found.append((member.name, member.offset_data, member.size))
                    else:
                        unread.append(member.name)
                stream.seek(archive.offset)
                if any(stream.read(BLOCK)):  # tarfile takes a damaged header for the end
                    return found, f"has a damaged header at byte {archive.offset:,}"
                start = _next_archive(stream)
                zeros = stream.tell() - archive.offset
    except (tarfile.TarError, EOFError, ValueError) as error:
        return found, "is cut short" if found else f"cannot be read as an uncompressed tar file ({error})"
    if zeros > PADDING:  # room that was taken for all of it before it came
        return found, f"has {zeros:,} zeros behind its last member, as where a download did not end"
    if zeros < 2 * BLOCK:
        return found, "has no end mark, as where a download or its writer was stopped"
    if unread:
        return found, f"has {len(unread):,} links or sparse members that are not read, such as {printable(unread[0])}"
    return found, _told(others)


def _head(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.issparse():
        return b""
    archive.fileobj.seek(member.offset_data)
    return bytes(archive.fileobj.read(min(HEAD, member.size)))


def _told(others: list[str]) -> str:
    """The trouble of an archive that holds others, or pictures of kinds that are not read."""
    if not others:
        return ""
    are = "is" if len(others) == 1 else "are"
    return f"holds {counted(len(others), 'file')} that {are} not read, such as {printable(others[0])}"


def _next_archive(stream: BinaryIO) -> int | None:
    """Where the next archive begins behind the end mark of one; None where only zeros follow."""
    while chunk := stream.read(1 << 20):
        if rest := chunk.lstrip(b"\0"):
            start = stream.tell() - len(rest)
            return int(start - start % BLOCK)
    return None


def _read_tar(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) < length:
        raise BadImage("cut off: the tar file ends before this member does")
    return data


# ---------------------------------------------------------------------------------------------------------------- zip

#: Local header (APPNOTE 4.3.7): signature, version, flags, method, time, date, crc, sizes, lengths of name and extra.
HEADER = struct.Struct("<4s5H3L2H")
#: The record at the end (APPNOTE 4.3.16), with the number of members, or, for more of them, a number that says so.
END = struct.Struct("<4s4H2LH")
TOLD_ELSEWHERE = 0xFFFF
#: What a local header begins with.
LOCAL = b"PK\x03\x04"
#: Bytes read beyond header and content, for the name and the extra field, whose lengths only the header tells.
SLACK = 512
#: A member that unpacks to more is not an image but an attack.
LARGEST = 1 << 30
ENCRYPTED, SIZES_FOLLOW = 0x1, 0x8


def _scan_zip(stream: BinaryIO, wanted: Wanted, texts: Texts) -> tuple[list[tuple[str, int, int]], str]:
    found: list[tuple[str, int, int]] = []
    others: list[str] = []
    try:
        with zipfile.ZipFile(stream) as archive:
            # a folder that has content is a file with a damaged name; `is_dir` fails for an empty one
            members = [one for one in archive.infolist() if one.file_size or not one.filename.endswith("/")]
            for one in members:
                # the list of names has no checksum, but `head` compares it with a second one
                head = partial(_zip_head, archive, one)
                if wanted(one.filename, head):
                    found.append((one.filename, one.header_offset, one.compress_size))
                    continue
                if any(map(is_hidden, PurePosixPath(one.filename).parts)):  # as `n01/1.jpg` is by one changed bit
                    head()
                others += [one.filename] * _is_left_out(one.filename)
                if one.filename.endswith(".cls"):
                    with suppress(zipfile.BadZipFile):  # damaged: the images are not
                        texts[one.filename.removesuffix(".cls")] = head()
            if (listed := _told_members(stream)) not in (len(archive.infolist()), TOLD_ELSEWHERE):
                return found, f"lists {len(archive.infolist()):,} members of {listed:,}"
            stream.seek(0)
            if min((one.header_offset for one in archive.infolist()), default=0) and stream.read(4) == LOCAL:
                return found, "begins with the members of another zip file, which are not read"
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error) as error:
        return found, f"has a damaged list of members ({error})" if found else f"cannot be read as a zip file ({error})"
    return found, _told(others)


def _zip_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with suppress(RuntimeError, zlib.error, EOFError), archive.open(member) as stream:  # encrypted, or packed otherwise
        return stream.read(HEAD)
    return b""


def _told_members(stream: BinaryIO) -> int:
    """How many members the end of a zip file says that it lists."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - END.size - TOLD_ELSEWHERE))
    tail = stream.read()
    return int(END.unpack_from(tail, tail.rindex(b"PK\x05\x06"))[4])


def _read_zip(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, HEADER.size + SLACK + length)
    if len(data) < HEADER.size or not data.startswith(LOCAL):
        raise BadImage("damaged: there is no zip header where its shard's index has one")
    _, _, flags, method, _, _, checksum, _, _, name, extra = HEADER.unpack_from(data)
    begin = HEADER.size + name + extra
    if (end := begin + length + 8) > len(data):
        data += read(offset + len(data), end - len(data))
    content = data[begin : begin + length]
    if len(content) < length:
        raise BadImage("cut off: the zip file ends before this member does")
    if flags & ENCRYPTED:
        raise BadImage("encrypted: repack the zip file without a password")
    if method == zipfile.ZIP_DEFLATED:
        content = _inflate(content)
    elif method != zipfile.ZIP_STORED:
        raise BadImage(f"packed by method {method}: repack the zip file stored or deflated")
    checksums = [struct.pack("<L", checksum)]
    if flags & SIZES_FOLLOW:  # behind the content, with or without a mark
        behind = data[begin + length : end]
        checksums = [behind[:4], behind[4:] if behind.startswith(b"PK\x07\x08") else b""]
    if struct.pack("<L", zlib.crc32(content)) not in checksums:
        raise BadImage("damaged: its checksum does not match")
    return content


def _inflate(packed: bytes) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = engine.decompress(packed, LARGEST)
    except zlib.error as error:
        raise BadImage(f"damaged: {error}") from None
    if not engine.eof:
        raise BadImage("too large" if engine.unconsumed_tail else "cut off: its packed bytes end early")
    return content


FORMATS = {
    ".tar": Format(BLOCK, "fetch it again, or repack it as a plain .tar", _scan_tar, _read_tar),
    ".zip": Format(1, "fetch it again, or repack it as a plain .zip", _scan_zip, _read_zip),
}

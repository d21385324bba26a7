"""Whether all of a picture is there, by the structure of its file and never by what its pixels look like.

Pillow reports most damage itself. Looked at here is what its decoders pass over in silence: missing data that libjpeg
paints grey, checksums of PNG and of deflated TIFF strips, and the mark that ends a PNG. What has no checksum
(LZW, PackBits, most of JPEG) can be changed in its middle without anybody being able to tell.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

#: A marker that ends the entropy-coded data of a JPEG: neither a stuffed zero nor a restart marker.
ENDS_DATA = re.compile(rb"\xff\xff*[\x01-\xcf\xd8-\xfe]")  # begins with one byte, which is found several times faster
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
#: Bytes that a decoder takes for more data where it wants some, and passes over where it has all.
MORE = bytes((73 * k + 41) % 251 for k in range(96))
#: Bits that are long codes in nearly every table, and no end of a block: what lacks one seldom finds it here.
TAIL = b"\xee" * 7

CUT_OFF = "cut off: the file ends before its picture does"
DAMAGED = "damaged: a part of its picture is missing"


def find_damage(image: Image.Image, data: bytes, reopen: Callable[[bytes], Image.Image]) -> str | None:
    """What is wrong with a picture that Pillow has loaded; None when nothing is.

    Args:
        image: loaded.
        data: the file.
        reopen: opens the bytes of a changed file of the same kind.
    """
    if image.format in ("JPEG", "MPO"):
        return _jpeg(image, data, reopen)
    if image.format == "PNG":
        return _png(data)
    if image.format == "TIFF":
        return _deflated(image, data)
    return None


def without_end(data: bytes) -> bytes:
    """A JPEG file of one sequential scan with `TAIL` in place of what follows the scan's data: all of it is there if it
    can be read. Any other file as it is, for `find_damage`.

    At a marker that comes too early libjpeg goes on with zeros, and its warning is lost in Pillow. At the end of a file
    it waits for more, which Pillow tells. It never waits where all is there, since it looks ahead by 57 bits at most,
    and the last code has one of them.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return data
    frame, scans, restarts_in_order = _scans(data)
    if frame is None or frame[0] not in b"\xc0\xc1" or len(scans) != 1 or len(scans[0].components) < frame[7]:
        return data
    end = scans[0].end
    return data[:end] + TAIL if restarts_in_order and data.find(b"\xff\xd9", end) >= 0 else data


class Scan(NamedTuple):
    components: bytes
    first: int  # of the coefficients
    last: int
    low: int  # bits of them that later scans bring
    begin: int  # of its data in the file
    end: int


def _jpeg(image: Image.Image, data: bytes, reopen: Callable[[bytes], Image.Image]) -> str | None:
    """Data can be missing though the end mark is there, since some programs put one after what they could save.

    libjpeg fills up such a scan to a middle grey that a whole picture may have too. So the decoder is asked: more data
    before each marker changes the picture only where data is missing. That takes a second decoding, and so is asked of
    progressive pictures that end in that grey or whose scans do not bring all bits, and of several sequential scans.
    Not found is what was cut within the last refinement of a progressive picture, which looks nearly the same.
    """
    if data.rfind(b"\xff\xd9") < data.find(b"\xff\xda"):
        return CUT_OFF  # Pillow asks for the end mark only where pixels are outstanding
    frame, scans, restarts_in_order = _scans(data)
    if not scans or frame is None:
        return CUT_OFF
    if not restarts_in_order:
        return DAMAGED
    sent = {component for scan in scans for component in scan.components if scan.first == 0}
    if len(sent) < frame[7]:
        return CUT_OFF  # a component of which there is nothing at all
    if frame[0] not in b"\xc0\xc1\xc2":
        return None  # arithmetic coding may drop trailing zeros by right
    corner: Any = image.getpixel((image.width - 1, image.height - 1))
    values = corner if isinstance(corner, tuple) else (corner,)
    if frame[0] == 0xC2 and _brings_all(scans, len(sent)) and not (min(values) >= 126 and max(values) <= 129):
        return None
    parts, at = [], 0
    for scan in scans:
        coded, marks = RESTART.subn(lambda mark: MORE + mark[0], data[scan.begin : scan.end])
        parts += [data[at : scan.begin], coded, MORE, bytes((0xFF, 0xD0 + marks % 8)), MORE]
        at = scan.end
    with reopen(data) as whole, reopen(b"".join([*parts, data[at:]])) as changed:
        return DAMAGED if whole.tobytes() != changed.tobytes() else None


def _brings_all(scans: list[Scan], components: int) -> bool:
    """Whether a progressive picture has all bits of all coefficients."""
    low = {
        (component, k): scan.low
        for scan in scans
        for component in scan.components
        for k in range(scan.first, scan.last + 1)
    }
    return len(low) == 64 * components and not any(low.values())


def _scans(data: bytes) -> tuple[bytes | None, list[Scan], bool]:
    """Of the first picture in a JPEG file: the frame header from its marker on, the scans, and whether their restart
    markers count up as they should."""
    frame, scans, in_order, at = None, [], True, 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xD9:
            break
        at += 2
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        segment = data[at + 2 : at + int.from_bytes(data[at : at + 2], "big")]
        at += 2 + len(segment)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) > 5:
            frame = bytes((marker, 0)) + segment
        elif marker == 0xDA and segment and len(segment) >= 4 + 2 * segment[0]:
            count = segment[0]
            found = ENDS_DATA.search(data, at)
            end = found.start() if found else len(data)
            first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
            scans.append(Scan(segment[1 : 1 + 2 * count : 2], first, last, bits & 15, at, end))
            marks = [mark[1] & 7 for mark in RESTART.findall(data, at, end)]
            in_order &= all(mark == k % 8 for k, mark in enumerate(marks))
            at = end
    return frame, scans, in_order


def _png(data: bytes) -> str | None:
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end > len(data):
            break
        critical = not name[0] & 0x20  # others say nothing about the picture
        if critical and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return "damaged: its checksum does not match"
        if name == b"IEND":
            return None
        at = end
    return CUT_OFF


def _deflated(image: Image.Image, data: bytes) -> str | None:
    """libtiff stops at the last pixel, before the checksum."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(259) not in (8, 32946):
        return None
    for begins, lengths in ((273, 279), (324, 325)):
        for begin, length in zip(tags.get(begins, ()), tags.get(lengths, ()), strict=False):
            try:
                zlib.decompress(data[begin : begin + length])
            except zlib.error:
                return "damaged: its checksum does not match"
    return None

"""Files damaged by chance, and read in a process of their own, so that whatever a decoder does to it is seen."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcluster.digest import digest
from deepcluster.errors import BadImage, DeepClusterError, DeepClusterWarning

SECONDS = 20
"""Of work in which one file is read at the latest."""
MEMORY = 4 << 30
"""Bytes that reading one file may add to the process's address space: a picture of 2^28 pixels as RGB, and a copy."""
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"0", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"true", b"1.5", b"99999999999", b"9" * 25,
    b"9" * 4400, b"[" * 3000, b'"..\\u0000"', b"../../etc/passwd", b"\xff\xfe", b"\r\n", b"\0", b'"', b",",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2, 7, 10**6, 2**31, 2**53 + 1, 2**63, 10**30, 0.5, -0.0, 1e300, "", "x", "\0", "\ud800",
    "a\nb",     "../x.npy", "/dev/zero", [], {}, [[]], [None], [1, "2"], {"x": None}, "9" * 5000, "digits",
)  # fmt: skip
"""What a JSON value is changed to."""


@dataclass
class Kind:
    """A kind of file: a whole one, and how it is read."""

    file: str
    whole: bytes
    read: Callable[[Path], Any]  # content, whatever `digest` takes
    mend: Callable[[bytes], bytes] | None = None  # puts checksums right after damage, as a hostile author would
    sealed: bool = False  # damage is never read as other content
    listed: bool = False  # the content is a dict of items by name: none is lost without a warning,
    end: bytes = b""  # unless a file that ends so holds nothing of their names, and is whole by its own marks
    slow: bool = False


@dataclass
class Figures:
    """What became of the files of one kind."""

    said: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak: int = 0  # bytes of memory, of the process that read them
    wrong: list[str] = field(default_factory=list)


def mutated(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """`whole` after one to three damages; `other` is a file of another kind."""
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        size = len(data)
        # Half of all in the first bytes, where headers are, or the last ones.
        at = draw.randrange(max(1, draw.choice((size, size, min(size, 64), min(size, 512)))))
        at = max(0, size - 1 - at) if draw.random() < 0.15 else at
        span = draw.choice((1, 2, 4, 16, 64, 512, max(1, size // 4)))
        what = draw.randrange(11)
        if what <= 1 and size:
            for _ in range(draw.choice((1, 1, 4, 16))):
                data[draw.randrange(size) if what else min(size - 1, at)] ^= 1 << draw.randrange(8)
        elif what == 2:
            del data[at:]
        elif what == 3:
            data[at : at + span] = bytes(span)
        elif what == 4:
            data[at:at] = data[at : at + span] * draw.choice((1, 1, 2, 20))
        elif what == 5:
            data[at:at] = draw.randbytes(span)
        elif what == 6:
            del data[at : at + span]
        elif what == 7:  # a number of a header, perhaps a size that no file has
            width = draw.choice((1, 2, 4, 8))
            number = draw.choice(NUMBERS) % 256**width
            data[at : at + width] = number.to_bytes(width, draw.choice(("little", "big")))
        elif what == 8:
            data[at : at + draw.choice((0, 1, 8))] = draw.choice(WORDS)
        elif what == 9:  # a number written as text
            places = [k for k, byte in enumerate(data) if byte in b"0123456789"] or [at]
            start = stop = draw.choice(places)
            while stop < size and data[stop] in b"0123456789":
                stop += 1
            data[start:stop] = draw.choice(WORDS)
        elif what == 10 and draw.random() < 0.3:
            data = bytearray(draw.choice((other, other[: draw.randrange(1, 600)] + data)))
    return bytes(data)


def rewritten(whole: bytes, draw: random.Random) -> bytes:
    """One JSON object, or one a line, with another value somewhere: damage of no disk, but of a hand or a program."""
    lines = whole.splitlines() if whole.count(b"\n{") else [whole]
    at = draw.randrange(len(lines))
    lines[at] = json.dumps(_changed(json.loads(lines[at]), draw)).encode()
    return b"\n".join(lines) + b"\n"


def _changed(value: Any, draw: random.Random) -> Any:
    """A JSON value with another one somewhere in it, or without a part."""
    parts: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if type(value) is list else []
    )
    if not parts or draw.random() < 0.1:
        return draw.choice(VALUES)
    at = draw.choice(parts)
    if draw.random() < 0.1:
        del value[at]
    else:
        value[at] = _changed(value[at], draw)
    return value


def with_png_checksums(data: bytes) -> bytes:
    """The pieces of a PNG with checksums that fit."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join([*parts, data[at:]])


def damages(kinds: Sequence[Kind], count: int, seed: int) -> Iterator[tuple[Kind, bytes, bool]]:
    """`count` damaged files, of all kinds in turn: the kind, the content, whether checksums were put right."""
    draw = random.Random(seed)
    number = 0
    while number < count:
        kind = kinds[number % len(kinds)]
        other = draw.choice(kinds).whole
        mended = kind.whole.startswith(b"{") and draw.random() < 0.4
        data = rewritten(kind.whole, draw) if mended else mutated(kind.whole, other, draw)
        if kind.mend is not None and draw.random() < 0.5:
            data, mended = kind.mend(data), True
        if data != kind.whole:
            number += 1
            yield kind, data, mended


def read_all(kinds: Sequence[Kind], count: int, seed: int, folder: Path) -> dict[str, Figures]:
    """Reads damaged files in child processes, a new one after each that died."""
    jobs = list(damages(kinds, count, seed))
    found = {kind.file: Figures() for kind in kinds}
    # Freshly touched pages of the parent are copied when a child writes to them, and are not what is measured.
    start = 0
    while start < len(jobs):
        lines, status = _in_a_child(jobs[start:], folder)
        for (kind, data, mended), row in zip(jobs[start:], lines, strict=False):
            figures = found[kind.file]
            figures.said[row["said"]] += 1
            figures.slowest = max(figures.slowest, row["seconds"])
            figures.peak = max(figures.peak, row["peak"])
            if row["wrong"]:
                figures.wrong.append(f"{kind.file}{' (mended)' * mended}: {row['wrong']} {_kept(folder, kind, data)}")
        start += len(lines)
        if start < len(jobs):  # the child died of this one
            kind, data, _ = jobs[start]
            why = f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
            found[kind.file].wrong.append(f"{kind.file}: {why} {_kept(folder, kind, data)}")
            start += 1
    return found


def _kept(folder: Path, kind: Kind, data: bytes) -> Path:
    """Where a damaged file is kept that was read wrong."""
    place = folder / "wrong" / f"{zlib.crc32(data):08x}-{Path(kind.file).name}"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    return place


def _in_a_child(jobs: Sequence[tuple[Kind, bytes, bool]], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """One row for each file that the child came to the end of, and the child's status."""
    told = folder / "told.jsonl"
    told.write_bytes(b"")
    child = os.fork()
    if child == 0:
        status = 70
        try:
            _child(jobs, folder, told)
            status = 0
        except BaseException as error:
            told.with_name("child.txt").write_text(repr(error))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    return rows, status


def _child(jobs: Sequence[tuple[Kind, bytes, bool]], folder: Path, told: Path) -> None:
    import torch

    torch.set_num_threads(1)
    for alarm in (signal.SIGALRM, signal.SIGPROF):  # ends the process, whatever C code it is in
        signal.signal(alarm, signal.SIG_DFL)
    logging.getLogger().handlers.clear()  # pytest's
    spoken = os.open(folder / "spoken", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(spoken, 1)
    os.dup2(spoken, 2)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wholes: dict[str, Any] = {}
    with open(told, "a", buffering=1) as answers:
        for kind, data, mended in jobs:
            place = folder / kind.file
            if kind.file not in wholes:
                place.write_bytes(kind.whole)
                wholes[kind.file] = _content(kind, place)[0]
            place.write_bytes(data)
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(6 * SECONDS)  # of the clock, for what waits forever
            said, wrong = _judge(kind, place, wholes[kind.file], mended, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            if os.lseek(spoken, 0, os.SEEK_END):
                os.lseek(spoken, 0, os.SEEK_SET)
                wrong = wrong or f"a library spoke: {os.read(spoken, 300)!r}"
                os.ftruncate(spoken, 0)
                os.lseek(spoken, 0, os.SEEK_SET)
            seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            answers.write(json.dumps({"said": said, "wrong": wrong, "seconds": seconds, "peak": peak}) + "\n")
            place.write_bytes(kind.whole)


def _content(kind: Kind, place: Path) -> tuple[Any, bool]:
    """What is read, and whether there was a warning of ours."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DeepClusterWarning)
        found = kind.read(place)
    for warning in seen:
        assert len(str(warning.message).splitlines()) == 1, f"a warning of several lines: {warning.message}"
    return (found if kind.listed else digest(found)), bool(seen)


def _judge(kind: Kind, place: Path, whole: Any, mended: bool, data: bytes) -> tuple[str, str]:
    """What became of a file, in a word, and what is wrong with that; nothing where it is as it should be."""
    try:
        found, warned = _content(kind, place)
    except (DeepClusterError, BadImage) as error:
        text = str(error)
        lines = len(text.splitlines())
        return "refused", "" if lines == 1 and len(text) < 700 else f"a sentence of {lines} lines: {text[:800]!r}"
    except Exception as error:  # a traceback
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/deepcluster/" in frame.filename][-1:]
        at = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours, last))
        return "traceback", f"{type(error).__name__} {str(error)[:200]} ({at})"
    if found == whole:
        return "equal", ""
    if kind.sealed and not mended:
        return "other", "damage was not noticed"
    if kind.listed and all(found.get(name) in (item, "bad") for name, item in whole.items()):
        return "reported", ""
    lost = whole.keys() - found.keys() if kind.listed and not warned and len(found) < len(whole) else ()
    ended = bool(kind.end) and data.endswith(kind.end) and not any(name.encode() in data for name in lost)
    if lost and not ended:
        return "other", f"{len(lost)} items are lost in silence"
    return "warned" if warned else "other", ""

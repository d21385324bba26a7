"""Every file that is written: beside its place, flushed to disk, and renamed, so that it is there whole or not at all.

Other modules write by what is here; only the image cache has its own. Files of numbers are sealed, see `seal`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.seal import OWNER, json_seal, put_seal

CHUNK = 4 << 20
"""Bytes read or written at a time."""

if TYPE_CHECKING:
    from torch import Tensor

_own: set[str] = set()
"""Names of temporary files that this process writes."""
_HOST = digest(socket.gethostname())[:8]


@contextlib.contextmanager
def explain_os_errors(file: Path | str) -> Iterator[None]:
    """Turns what goes wrong in writing `file` into a sentence; whatever writes here goes through it.

    Raises:
        DeepClusterError: the disk is full, a limit is reached, or the place is read-only or not there.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter, and keeps the system's word as its context
        cause = error if isinstance(error, OSError) else error.__context__
        why = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise DeepClusterError(f"{file} cannot be written ({why}): make room or choose another place.") from error


def require_writable(file: Path) -> None:
    """Raises DeepClusterError where `file` cannot be written: before the work for it, and not after hours of it."""
    with explain_os_errors(file):
        above = next(folder for folder in file.absolute().parents if folder.exists())
        why = f"{above} is no folder" if not above.is_dir() else "it is a folder" if file.is_dir() else ""
    if why or not os.access(above, os.W_OK):
        raise DeepClusterError(
            f"{file} cannot be written ({why or f'nothing may be put into {above}'}): choose another place."
        )


@contextlib.contextmanager
def replacing(file: Path, *, sealed: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place at the end; after an error `file` is as it was."""
    temporary = beside(file)
    try:
        with explain_os_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with explain_os_errors(file):
            with open(temporary, "rb+") as handle:
                if sealed:
                    put_seal(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, _usual_mode())  # some writers make files that only their owner may read
            os.replace(temporary, file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _own.discard(temporary.name)


@contextlib.contextmanager
def scratch_folder(file: Path) -> Iterator[Path]:
    """A folder beside `file` for what is needed until it is written."""
    folder = beside(file)
    try:
        with explain_os_errors(file):
            folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _own.discard(folder.name)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, which takes its place at the end. DeepClusterError where that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeepClusterError(f"{folder} exists and is not empty: choose a new folder.")
    with scratch_folder(folder) as made:
        yield made
        with explain_os_errors(folder):
            os.replace(made, folder)  # an empty folder gives way


def beside(file: Path) -> Path:
    """A temporary name beside `file`, after what killed processes left there for it was taken away."""
    _sweep(file.parent.glob(f".{glob.escape(file.name)}.*.part"))
    name = f".{file.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    _own.add(name)
    return file.with_name(name)


@contextlib.contextmanager
def writing(file: Path, mode: str, *, sealed: bool = False, **form: Any) -> Iterator[Any]:
    """The same, opened; what writes to it says so by `told`, so that other errors stay what they are."""
    with replacing(file, sealed=sealed) as temporary:
        with explain_os_errors(file):
            handle = open(temporary, mode, **form)  # noqa: SIM115 - closed below, where a full disk is told
        try:
            yield handle
            with explain_os_errors(file):
                handle.close()
        finally:
            with contextlib.suppress(OSError):
                handle.close()


def write_atomic(file: Path, write: Callable[[Path], object], *, sealed: bool = False) -> Path:
    """Calls `write` with a path beside `file`, which then takes its place; see `replacing`."""
    with replacing(file, sealed=sealed) as temporary, explain_os_errors(file):
        write(temporary)
    return file


def _usual_mode() -> int:
    """The permissions that `open` gives a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_bytes(file: Path, content: bytes) -> Path:
    """`write_atomic` for bytes."""
    return write_atomic(file, lambda temporary: temporary.write_bytes(content))


def write_text(file: Path, text: str) -> Path:
    """`write_atomic` for text."""
    return write_bytes(file, text.encode("utf-8"))


def write_json(file: Path, value: Any, *, sealed: bool = False) -> Path:
    """`write_atomic` for a JSON value; a sealed object has the CRC-32 of the others as its last entry."""
    if sealed:
        value = {**value, "crc32": json_seal(value)}
    return write_text(file, json.dumps(value, indent=2) + "\n")


def keep_copy(file: Path, copy: Path) -> Path:
    """A second name for `file`, without writing it twice where the disk allows."""

    def link(temporary: Path) -> None:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)

    return write_atomic(copy, link)


def append(file: Path, content: bytes, size: int) -> None:
    """Puts `content` behind the first `size` bytes, which are all of them, or leaves the file as it was."""
    with explain_os_errors(file), open(file, "ab") as handle:
        try:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # what a full disk left half written
                os.truncate(file, size)
            raise


def write_torch(file: Path, content: Any, previous: Path | None = None, *, old_form: bool = False) -> Path:
    """`write_atomic` for what `torch.save` takes, sealed; equal contents are equal bytes.

    Args:
        previous: the name under which the file that is there is kept.
        old_form: the form of torch before 1.6, which has no seal.
    """
    import torch

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:  # a path would put its random name into the file
            torch.save(content, handle, _use_new_zipfile_serialization=not old_form)
        if previous is not None and file.exists():
            keep_copy(file, previous)

    return write_atomic(file, write, sealed=not old_form)


def write_array(
    file: Path, blocks: np.ndarray | Iterable[np.ndarray], rows: int | None = None, *, owner: str = ""
) -> Path:
    """One sealed .npy, of an array or of blocks that follow each other along the first axis.

    Args:
        rows: how many the blocks have together; their error, where they have others, is the caller's.
        owner: id of 32 letters of what it belongs to, which stands behind the numbers and is compared in reading.
    """
    if isinstance(blocks, np.ndarray):
        blocks, rows = [blocks], len(blocks)
    with writing(file, "wb", sealed=True) as handle:
        written = 0
        for number, block in enumerate(blocks):
            block = np.ascontiguousarray(block)
            with explain_os_errors(file):
                if number == 0:
                    form = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(handle, form | {"shape": (rows, *block.shape[1:])})
                handle.write(block.reshape(-1).view(np.uint8).data)
            written += len(block)
        if owner:
            with explain_os_errors(file):
                handle.write(OWNER + owner.encode())
        assert written == rows, f"{written} rows of {rows}"
    return file


def write_csv(file: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """A table of text, a row after the other; bytes of a name that are in no encoding are written as `\\xff`."""
    with writing(file, "w", newline="", encoding="utf-8", errors="backslashreplace") as handle:
        table = csv.writer(handle, lineterminator="\n")
        for row in rows:
            with explain_os_errors(file):
                table.writerow(row)
    return file


def scratch_table(file: Path, rows: int, width: int) -> np.ndarray:
    """A (rows, width) float32 table to be filled, memory-mapped; its room on disk is taken now, because a disk that
    is full when a mapped page is written ends the process by SIGBUS. In memory where no file can be mapped: no rows."""
    if rows * width == 0:
        return np.empty((rows, width), np.float32)
    try:
        with explain_os_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as handle:
                form = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(handle, form)
                handle.flush()
                _allocate(handle.fileno(), handle.tell(), rows * width * 4)
    except DeepClusterError:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        raise
    return np.lib.format.open_memmap(file, "r+")


def _allocate(descriptor: int, start: int, count: int) -> None:
    """Takes `count` bytes of disk for a file from byte `start` on."""
    try:
        os.posix_fallocate(descriptor, start, count)
        return
    except (AttributeError, OSError) as error:  # macOS has no such call, and some disks neither
        if getattr(error, "errno", errno.ENOSYS) not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    os.lseek(descriptor, start, os.SEEK_SET)
    while count:
        count -= os.write(descriptor, bytes(min(count, CHUNK)))


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A sealed safetensors file; equal tensors and metadata give equal bytes (safetensors shuffles the latter)."""
    from safetensors.torch import save

    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain[name] = value.detach().cpu().contiguous()
        if any(plain[name].data_ptr() == other.data_ptr() for key, other in plain.items() if key != name):
            plain[name] = plain[name].clone()  # safetensors refuses tensors that share memory
    content = save(plain)
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": {"crc32": "0" * 8} | dict(sorted(metadata.items()))} | json.loads(content[8:start])
    text = b"{ " + json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()[1:]  # see seal.HEAD
    text += b" " * (-len(text) % 8)
    with writing(file, "wb", sealed=True) as handle, explain_os_errors(file):
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.write(memoryview(content)[start:])
    return file


def remove_leftovers(folder: Path) -> None:
    """Takes away what killed processes left of temporary files; those of living ones stay."""
    _sweep(folder.rglob(".*.part"))


def _sweep(leftovers: Iterable[Path]) -> None:
    for leftover in leftovers:
        if _is_being_written(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _is_being_written(temporary: Path) -> bool:
    """Whether a process of this machine lives that writes this file, or perhaps one of another machine."""
    if temporary.name in _own:
        return True
    name = re.search(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part$", temporary.name)
    if name is None or int(name[2]) == os.getpid():  # a container has its number again after a kill
        return False
    with contextlib.suppress(FileNotFoundError):
        if name[1] != _HOST:
            return time.time() - temporary.stat().st_mtime < 24 * 3600
    try:
        os.kill(int(name[2]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True

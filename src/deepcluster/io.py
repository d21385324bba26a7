"""Files written whole or not at all: next to the file, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomic(file: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a path next to `file`, flushes it to disk, and renames it over `file`.

    Raises:
        DeepClusterError: the folder cannot be written or is full; `file` is then as it was.
    """
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, _usual_mode())  # safetensors makes files that only their owner may read
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:  # torch and safetensors have their own words for a full disk
        why = getattr(error, "strerror", None) or error
        raise DeepClusterError(f"{file} cannot be written ({why}): make room or choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return file


def _usual_mode() -> int:
    """The permissions that `open` gives a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_text(file: Path, text: str) -> Path:
    """`write_atomic` for text."""
    return write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(file: Path, value: Any) -> Path:
    """`write_atomic` for a JSON value."""
    return write_text(file, json.dumps(value, indent=2) + "\n")


def keep_copy(file: Path, copy: Path) -> Path:
    """A second name for `file`, without writing it twice where the disk allows."""

    def link(temporary: Path) -> None:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)

    return write_atomic(copy, link)


def write_torch(file: Path, content: Any, previous: Path | None = None) -> Path:
    """`write_atomic` for what `torch.save` takes; equal contents are equal bytes.

    Args:
        previous: the name under which the file that is there is kept.
    """
    import torch

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:  # given a path, torch would write its random name into the file
            torch.save(content, handle)
        if previous is not None and file.exists():
            keep_copy(file, previous)

    return write_atomic(file, write)


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """`write_atomic` for tensors on any device, and text that belongs to them; equal contents are equal bytes."""
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(plain, temporary, dict(metadata))
        with open(temporary, "rb+") as handle:  # safetensors writes the metadata in random order
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            handle.seek(8)
            handle.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))

    return write_atomic(file, write)


def remove_leftovers(folder: Path) -> None:
    """Takes away what a killed process left temporary its files."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)

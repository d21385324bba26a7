"""Files written whole or not at all: next to the file, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcluster.errors import DeepClusterError


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


def remove_leftovers(folder: Path) -> None:
    """Takes away what a killed process left temporary its files."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)

"""Feature tables on disk: an .npy (N, D) and the .json beside it that says what the rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.records import DeepClusterError


def open_table(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The table, memory-mapped, and what its .json says; an empty dict where there is none.

    Raises:
        DeepClusterError: missing, not an .npy, or not a table of numbers.
    """
    if not file.is_file():
        raise DeepClusterError(f"There is no feature table {file}: `deepcluster features` writes one.")
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DeepClusterError(
            f"{file} is not an .npy table of numbers: give what `deepcluster features` wrote."
        ) from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DeepClusterError(f"{file} is not a table of numbers (N, D): give what `deepcluster features` wrote.")
    beside = file.with_suffix(".json")
    return table, json.loads(beside.read_text()) if beside.is_file() else {}

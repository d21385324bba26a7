"""Feature tables on disk: an .npy (N, D) and the .json beside it that says what the rows are, or a folder of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.features.parts import PartedTable, open_parts


def open_table(file: Path) -> tuple[np.ndarray | PartedTable, dict[str, Any]]:
    """The table, memory-mapped, and what its .json says; an empty dict where there is none.

    Args:
        file: an .npy file, or the folder of a table in parts.

    Raises:
        DeepClusterError: missing, not finished, not an .npy, or not a table of numbers.
    """
    if file.is_dir():
        return open_parts(file)
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

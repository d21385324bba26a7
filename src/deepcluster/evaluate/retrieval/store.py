"""Tables of descriptors on disk: made in parts that outlive a kill, kept whole for the next call that wants the same.

This file knows neither networks nor images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.io import remove_leftovers, write_atomic, write_json


def stored_table(
    file: Path,
    identity: dict[str, Any],
    count: int,
    part: int,
    describe: Callable[[int, int], np.ndarray],
    skipped: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """(count, D) float32, from `file` where it is of the same identity, else made part by part and written there.

    Finished parts lie in FILE.parts/ until the table is whole; a killed call's parts are taken over by the next one.
    What is there of another identity is replaced.

    Args:
        file: such as RUN/evaluation/retrieval.npy; `FILE.about` beside it says what it is of.
        identity: plain values; all that the table depends on.
        part: rows of a part.
        describe: (start, stop) -> (stop - start, D) float32; NaN where there is nothing to describe.
        skipped: told how many rows were there already.
    """
    identity = json.loads(json.dumps(identity))
    about = file.with_name(f"{file.name}.about")  # no .json: reports read all of those here
    found = _read(file, (count,)) if _said(about) == identity else None
    if found is not None:
        skipped(count)
        return found
    folder = file.with_name(f"{file.name}.parts")
    begin(folder, {**identity, "part": part})
    for start in range(0, count, part):
        stop = min(start + part, count)
        kept = folder / f"{start:012d}-{stop:012d}.npy"
        if _read(kept, (stop - start,)) is None:
            write_array(kept, describe(start, stop))
        else:
            skipped(stop - start)
    about.unlink(missing_ok=True)  # before the table: what is there must never be said to be something else
    write_atomic(file, lambda beside: _join(beside, sorted(folder.glob("*.npy"))))
    write_json(about, identity)
    shutil.rmtree(folder)
    table = _read(file, (count,))
    assert table is not None
    return table


def begin(folder: Path, identity: dict[str, Any]) -> None:
    """Makes `folder` one that holds parts of this identity or none; others are removed."""
    if folder.is_dir() and _said(folder / "about.json") != identity:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    write_json(folder / "about.json", identity)


def write_array(file: Path, table: np.ndarray) -> None:
    """One .npy, whole or not at all."""

    def write(beside: Path) -> None:
        with open(beside, "wb") as handle:
            np.save(handle, np.ascontiguousarray(table, np.float32), allow_pickle=False)

    write_atomic(file, write)


def _join(file: Path, files: list[Path]) -> None:
    parts = [np.load(part, mmap_mode="r", allow_pickle=False) for part in files]
    # a part none of whose images can be decoded does not know the width of the others
    width = max(part.shape[1] for part in parts)
    shape = (sum(len(part) for part in parts), width)
    whole = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    row = 0
    for part in parts:
        whole[row : row + len(part)] = part if part.shape[1] == width else np.nan
        row += len(part)
    whole.flush()


def _read(file: Path, rows: tuple[int]) -> np.ndarray | None:
    """The table in a file; None where there is none, or it is damaged."""
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
        return table if table.shape[:1] == rows and table.ndim == 2 and table.dtype == np.float32 else None
    except (OSError, ValueError, EOFError):
        return None


def _said(about: Path) -> Any:
    try:
        return json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

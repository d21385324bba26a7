"""Feature tables on disk: one .npy file (N, D) with a .json beside it, or a folder of parts that is written resumably.

Batches are cut from all rows, decodable or not, at the same rows for one file and for parts: so both are equal bit
for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.table_in_parts import TableInParts
from deepcluster.io import new_folder, remove_leftovers, write_array, write_json
from deepcluster.reading import judged, read_json, read_npy

BATCH = 256
"""Images per batch; parts begin at multiples of it."""
PART_ROWS = 1 << 18
"""Rows of a part unless another number of parts is asked for: 2 GiB of 2048 features."""
ABOUT = "table.json"
"""The file that describes a folder of parts, and says whether it is finished."""
FORMAT, VERSION = "deepcluster table", 1
IDENTITY = ("format", "version", "weights", "tap", "image_size", "source_fingerprint", "rows", "part_rows")
"""What a table depends on: parts written with other values belong to another table."""

WINDOW = 1 << 16
"""Rows whose features are held in memory at a time, a multiple of `BATCH`."""
Part = tuple[int, int, Path]
"""First and past-the-last row of a part, and its file."""
Extractor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of some images (n,) int64, ascending, the index (M,) and features (M, D) of those that can be decoded."""


def open_table(file: Path) -> tuple[np.ndarray | TableInParts, dict[str, Any]]:
    """The table, memory-mapped, and what its .json says; an empty dict where there is none.

    Args:
        file: an .npy file, or the folder of a table in parts.

    Raises:
        DeepClusterError: missing, not finished, damaged, not a table of numbers, or its .json is of another one.
    """
    if file.is_dir():
        return open_parts(file)
    if not file.is_file():
        raise DeepClusterError(f"There is no feature table {file}: `deepcluster features` writes one.")
    advice = "give a table of numbers (N, D), such as `deepcluster features` writes."
    table = read_npy(file, advice=advice, mapped="r", ndim=2, kinds="fiu")
    beside, about = file.with_suffix(".json"), {}
    if beside.exists():
        advice = f"write the table again, or move this file away to use {file.name} without it."
        about = read_json(beside, advice=advice)
        with judged(beside, advice):
            if "source_fingerprint" in about and "rows" not in about:
                raise ValueError("it does not describe a table")
            _check_about(about, *table.shape)
    return table, about


def write_table(extract: Extractor, images: np.ndarray, file: Path) -> tuple[int, list[int]]:
    """One .npy (n, D) float32 of consecutive images (n,), complete or not at all; rows of bad images are NaN.

    Returns:
        D, and the rows of the table that are bad.
    """
    bad: list[int] = []
    width = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal width, bad
        for start in range(0, len(images), WINDOW):
            asked = images[start : start + WINDOW]
            index, features = extract(asked)
            width = features.shape[1]
            block = np.full((len(asked), width), np.nan, np.float32)
            block[index - asked[0]] = features
            bad += (np.setdiff1d(asked, index) - images[0]).tolist()
            yield block

    write_array(file, blocks(), len(images))
    return width, bad


def write_parts(
    extract: Extractor,
    count: int,
    folder: Path,
    about: dict[str, Any],
    *,
    parts: int | None = None,
    overwrite: bool = False,
    skipped: Callable[[int], None] = lambda images: None,
    elsewhere: Callable[[list[Part]], Iterable[int]] | None = None,
    group: ProcessGroup = SINGLE,
) -> tuple[int, list[int]]:
    """The same table as `write_table` in several files; parts that an interrupted call finished are not made again.

    Args:
        count: images, N.
        folder: where the parts go, with `table.json`.
        about: description of the table; a call continues what another one began if they agree in `IDENTITY`.
        parts: about how many; None = `PART_ROWS` rows each.
        overwrite: replace any table that is there.
        skipped: called with the number of images of the parts that are there already, or were written elsewhere.
        elsewhere: in place of `extract`: has other processes call `write_part` for these parts, and gives the number of
            images of each when it is there.
        group: the processes that divide the parts among them; all of them see `folder`.

    Returns:
        D, and the rows that are bad.

    Raises:
        DeepClusterError: the folder holds another table or other files.
    """
    step = PART_ROWS if parts is None else BATCH * -(-count // (BATCH * parts))
    about = {"format": FORMAT, "version": VERSION, **about, "rows": count, "part_rows": step}
    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    files = [folder / _part_name(start, stop) for start, stop in spans]
    with group.collective_section():
        if group.is_first:
            _prepare(folder, about, overwrite)
    with group.collective_section():
        missing = []
        for number in range(group.rank, len(spans), group.size):
            start, stop = spans[number]
            if _finished(files[number]) is None:
                missing.append((start, stop, files[number]))
            else:
                skipped(stop - start)
        if elsewhere is not None:
            for images in elsewhere(missing):
                skipped(images)
        else:
            for part in missing:
                write_part(extract, *part)
    bad: list[int] = []
    width = 0
    for (start, _), file in zip(spans, files, strict=True):
        finished = _finished(file, checked=False)
        if finished is None:  # another process has written it, and it is not here
            raise DeepClusterError(f"{folder} is not the same folder for all processes: give one on a shared disk.")
        width = finished[0]
        bad += [start + row for row in finished[1]]
    if group.is_first:
        write_json(folder / ABOUT, {**about, "width": width, "bad": bad, "finished": True}, sealed=True)
    group.barrier()
    return width, bad


def write_part(extract: Extractor, start: int, stop: int, file: Path) -> int:
    """One part of a table in parts, with its .json; gives the number of its images."""
    about = file.with_suffix(".json")
    about.unlink(missing_ok=True)  # of a damaged part, which is made again
    width, bad = write_table(extract, np.arange(start, stop), file)
    write_json(about, {"width": width, "bad": bad}, sealed=True)
    return stop - start


def write_blocks(blocks: Iterable[Any], folder: Path | str) -> TableInParts:
    """A table in parts of vectors that were made elsewhere.

    Args:
        blocks: arrays (n, D), one after another, each of which becomes a part; rows that are not finite are bad.
        folder: a new one; it is there when it is complete.

    Raises:
        DeepClusterError: the folder holds something, or there are no rows, or some of another width.
    """
    folder = Path(folder)
    rows, width, bad = 0, 0, list[int]()
    with new_folder(folder) as made:
        for block in blocks:
            block = np.asarray(block, np.float32)
            if block.ndim != 2 or (rows and block.shape[1] != width):
                wanted = f"({width} columns)" if rows else "(n, D)"
                raise DeepClusterError(
                    f"The rows from {rows:,} on are of shape {block.shape}, which is no part of a table {wanted}: give"
                    " vectors of one length."
                )
            if len(block):
                width = block.shape[1]
                write_array(made / _part_name(rows, rows + len(block)), block)
                bad += (rows + np.flatnonzero(~np.isfinite(block).all(1))).tolist()
                rows += len(block)
        if not rows:
            raise DeepClusterError(f"There are no vectors for {folder}: give at least one.")
        about = {"format": FORMAT, "version": VERSION, "rows": rows, "width": width, "bad": bad, "finished": True}
        write_json(made / ABOUT, about, sealed=True)
    return open_parts(folder)[0]


def open_parts(folder: Path) -> tuple[TableInParts, dict[str, Any]]:
    """The finished table in a folder, and its description.

    Raises:
        DeepClusterError: there is none, it is not finished, or a part is missing or damaged.
    """
    about = _read_about(folder)
    if not about.get("finished"):
        raise DeepClusterError(
            f"The feature table {folder} is not finished: the `deepcluster features` command that began it goes on."
        )
    parts: list[np.memmap[Any, Any]] = []
    rows = 0
    for file in sorted(path for path in folder.iterdir() if re.fullmatch(r"part-\d+-\d+\.npy", path.name)):
        start, stop = _span(file)
        advice = "delete it and give the same command again."
        part = read_npy(file, advice=advice, mapped="r", ndim=2, kinds="fiu")
        if start != rows or len(part) != stop - start or not isinstance(part, np.memmap) or not part.flags.c_contiguous:
            raise DeepClusterError(f"{file} does not follow the part before it: write it again with the same command.")
        parts.append(part)
        rows = stop
    if rows != about["rows"] or len({(part.dtype.str, part.shape[1]) for part in parts}) != 1:
        raise DeepClusterError(
            f"The feature table {folder} has {rows:,} of its {about['rows']:,} rows, or parts of several kinds: "
            "write what is missing with the same command."
        )
    return TableInParts(parts), about


def _read_about(folder: Path) -> dict[str, Any]:
    """The description of the table in a folder.

    Raises:
        DeepClusterError: the folder holds no table, or its description is damaged.
    """
    file = folder / ABOUT
    if not file.is_file():
        raise DeepClusterError(
            f"{folder} holds no feature table (it has no {ABOUT}): `deepcluster features` writes one."
        )
    advice = "write the table again with --overwrite."
    about = read_json(file, advice=advice)
    with judged(file, advice):
        if about["format"] != FORMAT or about["version"] != VERSION:
            raise ValueError("it is of another format or version")
        if type(about.get("finished")) is not bool:
            raise ValueError("it does not say whether the table is finished")
        if about["finished"]:
            _check_about(about, about["rows"], about.get("width", 0))
    return about


def _check_about(about: dict[str, Any], rows: int, width: int) -> None:
    """Raises ValueError: a description is not that of a (rows, width) table."""
    for name, number in (("rows", rows), ("width", width)):
        if type(about.get(name, number)) is not int or about.get(name, number) != number:
            raise ValueError(f"its {name} are {str(about[name])[:80]}, and those of the table {number:,}")
    bad = about.get("bad", [])
    if not isinstance(bad, list) or any(type(row) is not int or not 0 <= row < rows for row in bad):
        raise ValueError("its bad rows are no rows of the table")
    for name in ("data", "source_fingerprint"):
        if not isinstance(about.get(name, ""), str):
            raise ValueError(f"its {name.replace('_', ' ')} is no text")


def _prepare(folder: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Make the folder one of this table, unfinished."""
    if folder.exists() and not folder.is_dir():
        raise DeepClusterError(f"{folder} is a file: a table in parts needs a folder as --out.")
    begun = (folder / ABOUT).exists()
    if folder.is_dir():
        other = next((path.name for path in folder.iterdir() if not _is_own(path.name, begun)), None)
        if other is not None:
            raise DeepClusterError(
                f"{folder} holds other files, such as {other}: choose an empty or new folder as --out."
            )
        if begun and not overwrite:
            there = _read_about(folder)
            for name in IDENTITY:
                if there.get(name) != about.get(name):
                    raise DeepClusterError(
                        f"{folder} was begun with {name.replace('_', ' ')} {there.get(name)}, and now it is"
                        f" {about.get(name)}: choose another --out, or replace the table with --overwrite."
                    )
        remove_leftovers(folder)
        if overwrite:
            for path in folder.iterdir():
                if path.name != ABOUT:  # it identifies the parts until the last one is gone
                    path.unlink()
    write_json(folder / ABOUT, {**about, "finished": False}, sealed=True)


def _is_own(name: str, begun: bool) -> bool:
    """Whether a file in a table's folder is the table's; parts are only beside a table.json."""
    leftover = name.startswith(".") and name.endswith(".part")
    return leftover or (begun and (name == ABOUT or re.fullmatch(r"part-\d{12}-\d{12}\.(npy|json)", name) is not None))


def _finished(file: Path, *, checked: bool = True) -> tuple[int, list[int]] | None:
    """Width and bad rows of a part that is there; None where it has to be made."""
    with suppress(DeepClusterError), judged(file, ""):
        about = read_json(file.with_suffix(".json"), advice="")
        table = read_npy(file, advice="", mapped="r", checked=checked, ndim=2, kinds="f")
        start, stop = _span(file)
        _check_about(about | {"rows": stop - start}, *table.shape)
        if table.dtype == np.float32:
            return table.shape[1], list(about["bad"])
    return None


def _part_name(start: int, stop: int) -> str:
    return f"part-{start:012d}-{stop:012d}.npy"


def _span(file: Path) -> tuple[int, int]:
    """First row and end of the part that a file's name says."""
    start, stop = file.stem.split("-")[1:]
    return int(start), int(stop)

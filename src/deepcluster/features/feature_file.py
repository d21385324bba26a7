"""Images -> a feature table on disk: one file, or parts of which the finished ones outlive a kill.

Batches are cut from all rows, decodable or not, at the same places for one file and for parts: so both are equal bit
for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from deepcluster.data.cache import Pixels, window
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.parts import ABOUT, FORMAT, VERSION, part_name, read_about
from deepcluster.io import remove_leftovers, write_json

#: Images described at a time; parts begin at multiples of it.
BATCH = 256
#: Rows of a part unless another number of parts is asked for: 2 GiB of 2048 features.
PART_ROWS = 1 << 18

#: What a table depends on: one that was begun with anything else is another table.
IDENTITY = ("format", "version", "weights", "tap", "image_size", "source_fingerprint", "rows", "part_rows")

Describe = Callable[[Pixels, Path], tuple[np.ndarray, np.ndarray]]
"""Index (M,) and features (M, D) of the images that can be decoded; may memory-map the features to the file it is
given."""


def write_table(describe: Describe, pixels: Pixels, file: Path) -> tuple[int, list[int]]:
    """One .npy (N, D) float32 of all images, whole or not at all; rows of bad images are NaN.

    Returns:
        D, and the rows that are bad.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        index, features = describe(pixels, part)
        width = features.shape[1]
        if not part.exists() or len(index) < len(pixels):
            whole = file.with_name(f".{file.name}.whole.part")
            _scatter(whole, len(pixels), index, features)
            del features
            os.replace(whole, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return width, np.setdiff1d(np.arange(len(pixels)), index).tolist()


def write_parts(
    describe: Describe,
    pixels: Pixels,
    folder: Path,
    about: dict[str, Any],
    *,
    parts: int | None = None,
    overwrite: bool = False,
    skipped: Callable[[int], None] = lambda images: None,
    group: ProcessGroup = SINGLE,
) -> tuple[int, list[int]]:
    """The same table as `write_table` in several files; parts that a killed call finished are not made again.

    Args:
        folder: where the parts go, with `table.json`.
        about: what the table is to say of itself; a call goes on with what another began if they agree in `IDENTITY`.
        parts: about how many; None = `PART_ROWS` rows each.
        overwrite: begin anew whatever is there.
        skipped: called with the number of images of the parts that are there already.
        group: the processes that share the parts, in turns; all of them see `folder`.

    Returns:
        D, and the rows that are bad.

    Raises:
        DeepClusterError: the folder holds another table or other files.
    """
    step = PART_ROWS if parts is None else BATCH * -(-len(pixels) // (BATCH * parts))
    about = {"format": FORMAT, "version": VERSION, **about, "rows": len(pixels), "part_rows": step}
    with group.collective_section():
        if group.is_first:
            _prepare(folder, about, overwrite)
    spans = [(start, min(start + step, len(pixels))) for start in range(0, len(pixels), step)]
    with group.collective_section():
        for start, stop in spans[group.rank :: group.size]:
            file = folder / part_name(start, stop)
            if _finished(file) is None:
                _write_part(describe, window(pixels, start, stop), file)
            else:
                skipped(stop - start)
    bad: list[int] = []
    width = 0
    for start, stop in spans:
        known = _finished(folder / part_name(start, stop))
        if known is None:  # another process says that it made it, and here it is not
            raise DeepClusterError(f"{folder} is not the same folder for all processes: give one on a shared disk.")
        width = known[0]
        bad += [start + row for row in known[1]]
    if group.is_first:
        write_json(folder / ABOUT, {**about, "width": width, "bad": bad, "finished": True})
    group.barrier()
    return width, bad


def weights_digest(network: nn.Module) -> str:
    """Hex digest of all parameters and buffers, with their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).numpy().tobytes())
    return digest.hexdigest()


def _write_part(describe: Describe, pixels: Pixels, file: Path) -> tuple[int, list[int]]:
    beside = file.with_name(f".{file.name}.new.part")
    try:
        width, bad = write_table(describe, pixels, beside)
        write_json(file.with_suffix(".json"), {"width": width, "bad": bad})
        with open(beside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, file)  # last: where it is, all of the part is
    finally:
        beside.unlink(missing_ok=True)
    return width, bad


def _finished(file: Path) -> tuple[int, list[int]] | None:
    """Width and bad rows of a part that is there; None where it has to be made."""
    try:
        about = json.loads(file.with_suffix(".json").read_text())
        table = np.load(file, mmap_mode="r", allow_pickle=False)
        start, stop = (int(number) for number in file.stem.split("-")[1:])
        if table.shape == (stop - start, about["width"]) and table.dtype == np.float32:
            return int(about["width"]), list(about["bad"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    return None


def _prepare(folder: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder one of this table, unfinished."""
    if folder.exists() and not folder.is_dir():
        raise DeepClusterError(f"{folder} is a file: a table in parts needs a folder as --out.")
    begun = (folder / ABOUT).exists()
    if folder.is_dir():
        strange = next((path.name for path in folder.iterdir() if not _own(path.name, begun)), None)
        if strange is not None:
            raise DeepClusterError(
                f"{folder} holds other files, such as {strange}: choose an empty or new folder as --out."
            )
        if begun and not overwrite:
            _same_table(folder, about)
        remove_leftovers(folder)
        if overwrite:
            for path in folder.iterdir():
                if path.name != ABOUT:  # it says whose the parts are, until the last one is gone
                    path.unlink()
    write_json(folder / ABOUT, {**about, "finished": False})


def _own(name: str, begun: bool) -> bool:
    """Whether a file in a table's folder is the table's; parts are only beside a table.json."""
    left = name.startswith(".") and name.endswith(".part")
    return left or (begun and (name == ABOUT or re.fullmatch(r"part-\d{12}-\d{12}\.(npy|json)", name) is not None))


def _same_table(folder: Path, about: dict[str, Any]) -> None:
    there = read_about(folder)
    for name in IDENTITY:
        if there.get(name) != about.get(name):
            raise DeepClusterError(
                f"{folder} was begun with {name.replace('_', ' ')} {there.get(name)}, and now it is {about.get(name)}: "
                "choose another --out, or begin anew with --overwrite."
            )


def _scatter(file: Path, rows: int, index: np.ndarray, features: np.ndarray) -> None:
    """Writes (M, D) features at their positions in an (N, D) table; the other rows are NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, features.shape[1]))
    if len(index) < rows:
        table[np.setdiff1d(np.arange(rows), index)] = np.nan
    for start in range(0, len(index), 65536):
        table[index[start : start + 65536]] = features[start : start + 65536]
    table.flush()

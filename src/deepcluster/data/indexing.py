"""Making a manifest: shards are scanned several at a time, and each scan is kept in the cache, also after a kill."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from deepcluster.data import storage
from deepcluster.data.archive import Members, find_format, format_of
from deepcluster.data.decode_pool import require_handles
from deepcluster.data.manifest import DIGESTED, Manifest, relative, write_manifest
from deepcluster.data.naming import labels_of_members
from deepcluster.data.shards import Shard, cached_members, evict_members, loss_by, row_type
from deepcluster.errors import DeepClusterError, counted
from deepcluster.io import explain_os_errors, write_array, writing
from deepcluster.reading import read_text

#: Shards that are handed to a process at a time.
CHUNK = 4
#: A row of the table before the largest offset is known.
WIDE = row_type(2**63)


def index_shards(
    found: Sequence[str],
    out: Path,
    *,
    labels: bool = True,
    workers: int = 0,
    progress: Callable[[int], None] = lambda shards: None,
) -> Manifest:
    """Write a manifest of shards, in the order given.

    A shard that is missing or broken is in the manifest with the images that were found in it and its trouble.

    Args:
        found: paths and URLs of shards, from `named`.
        out: the manifest, a .json file; its tables are put beside it.
        labels: take labels from a .cls beside each image, or from class folders, where every image has one.
        workers: processes; 0 = as many as there are cores, 1 = this one.
        progress: called with the number of shards that got done.

    Raises:
        DeepClusterError: `out` is no .json or another file, another process writes it, or no shard holds an image.
    """
    if out.suffix != ".json":
        raise DeepClusterError(f"A manifest is a .json file, not {out.name!r}: change --out.")
    manifest = write_manifest(out, partial(_located, found, out, labels, workers, progress))
    evict_members()
    return manifest


def _located(
    found: Sequence[str],
    out: Path,
    labels: bool,
    workers: int,
    progress: Callable[[int], None],
    scratch: Path,
) -> tuple[list[Shard], tuple[str, ...], list[Path]]:
    """The shards, the classes, and the tables of their images in the folder `scratch`."""
    shards: list[Shard] = []
    kinds: dict[tuple[str, str | None], int] = {}  # folder of images, and text of their .cls -> its number
    row, base = 0, str(out.absolute().parent)
    with writing(scratch / "rows", "wb") as rows, writing(scratch / "numbers", "wb") as numbers:
        for place, (size, stamp, members) in zip(found, _scanned(found, workers), strict=True):
            located = np.zeros(len(members.names), WIDE)
            located["offset"], located["length"] = members.offsets // format_of(place).unit, members.lengths
            texts = members.classes or [None] * len(located)
            own = [(name.rpartition("/")[0], text) for name, text in zip(members.names, texts, strict=True)]
            inside = [kinds.setdefault(kind, len(kinds)) for kind in own]
            with explain_os_errors(out):
                rows.write(located.tobytes())
                numbers.write(np.array(inside, "<i4").tobytes())
            shards.append(Shard(relative(place, base), len(located), size, row, stamp, members.trouble))
            row += len(located)
            progress(1)
    if not row:
        trouble = next((f"; the first, {one.path}, {one.trouble}" for one in shards if one.trouble), "")
        raise DeepClusterError(f"there is no image in {counted(len(found), 'shard')}{trouble}: check the pattern")
    # The classes are found over all shards, as over one folder.
    paths, texts = [f"{folder}/" for folder, _ in kinds], [text for _, text in kinds]
    label_of, classes = labels_of_members(paths, texts) if labels else (None, ())
    wide = np.memmap(scratch / "rows", WIDE, "r")
    kind = row_type(int(wide["offset"].max()))
    pieces = [slice(start, start + DIGESTED) for start in range(0, row, DIGESTED)]
    tables = [write_array(scratch / "index.npy", (wide[piece].astype(kind) for piece in pieces), row)]
    if label_of is not None:
        narrow, numbered = label_of.astype("<i4"), np.memmap(scratch / "numbers", "<i4", "r")
        tables.append(write_array(scratch / "labels.npy", (narrow[numbered[piece]] for piece in pieces), row))
    return shards, classes, tables


def _scanned(found: Sequence[str], workers: int) -> Iterator[tuple[int, str, Members]]:
    """Size, version and members of each shard."""
    count = min(workers or os.cpu_count() or 1, -(-len(found) // CHUNK))
    if count <= 1:
        yield from map(_scan_one, found)
        return
    require_handles(6 * count)
    with ProcessPoolExecutor(count, initializer=_end_with_parent) as pool:
        window = 4 * count * CHUNK  # the names of so many shards wait in memory at most
        for start in range(0, len(found), window):
            yield from pool.map(_scan_one, found[start : start + window], chunksize=CHUNK)


def _end_with_parent() -> None:
    """Lets this process end when the one that asked for it was killed, which else it would not notice; between the two
    there may be a third, the fork server of Python 3.14."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _scan_one(place: str) -> tuple[int, str, Members]:
    try:
        size, stamp = storage.stat(place)
    except OSError as error:
        return 0, "", Members.none(loss_by(error))
    return size, stamp, cached_members(place, size, stamp)


def named(patterns: Sequence[str]) -> list[str]:
    """The shards that patterns name, see `storage.expand`; a .txt file lists some, one a line, from its own folder.

    Raises:
        DeepClusterError: nothing matches, a name is not a shard's, a shard is named twice.
    """
    words: list[str] = []
    for pattern in patterns:
        is_list = pattern.endswith(".txt") and not storage.is_url(pattern)
        words += _listed(Path(pattern).expanduser()) if is_list else [pattern]
    found = [place for word in words for place in storage.expand(word)]
    wrong = next((place for place in found if find_format(place) is None), None)
    if wrong is not None:
        raise DeepClusterError(f"{wrong} is no .tar or .zip file: shards are, and a .txt file may list them")
    storage.refuse_twice(found)
    return found


def _listed(file: Path) -> list[str]:
    """The patterns in a list, whose paths start at its folder."""
    text = read_text(file, advice="give a text file that lists shards", names=True)
    lines = map(str.strip, text.replace("\r", "\n").split("\n"))
    words = [line for line in lines if line and not line.startswith("#")]
    return [word if storage.is_url(word) else os.path.join(file.parent, word) for word in words]

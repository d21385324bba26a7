"""Making a manifest: every shard is read once, several at a time, and what is done stays done after a kill."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepcluster.data import storage
from deepcluster.data.archive import find_format, format_of, scan
from deepcluster.data.decode_pool import require_handles
from deepcluster.data.manifest import (
    Manifest,
    mapped,
    open_tables,
    read_manifest,
    relative,
    table_digest,
    write_manifest,
)
from deepcluster.data.naming import labels_from_parents, natural_key
from deepcluster.data.shards import Shard, index_file, read_members, row_type, write_members
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_array
from deepcluster.reading import read_head, read_npy, read_text

#: Shards that are handed to a process at a time.
CHUNK = 4


@dataclass(frozen=True)
class Found:
    """What reading one shard found."""

    images: int  # how many it holds
    bytes: int  # its size
    stamp: str  # changes with it
    trouble: str = ""  # why it could not be read to its end; empty when it could
    largest: int = 0  # the largest offset in it, in its format's units
    folders: tuple[str, ...] = ()  # of its images
    row: int = -1  # the row of the earlier manifest's table where its images are; -1 = they are in `file`
    file: str = ""  # the file with its members


@dataclass(frozen=True)
class _Earlier:
    """An earlier manifest at the same place, and its tables."""

    manifest: Manifest
    table: np.ndarray
    folders: np.ndarray | None  # (rows,) places in the manifest's folders

    def known(self) -> dict[str, Found]:
        """Path -> what it says of a shard, for those that were read to their end."""
        found = {}
        for path, images, size, row, stamp, trouble in self.manifest.shards:
            if not trouble:
                rows = slice(row, row + images)
                numbers = [] if self.folders is None else np.unique(self.folders[rows]).tolist()
                folders = tuple(self.manifest.folders[k] for k in numbers)
                largest = int(self.table["offset"][rows].max(initial=0))
                found[path] = Found(images, size, stamp, largest=largest, folders=folders, row=row)
        return found


def index_shards(
    found: Sequence[str],
    out: Path,
    *,
    labels: bool = True,
    workers: int = 0,
    progress: Callable[[int], None] = lambda shards: None,
) -> Manifest:
    """Write a manifest of shards, in the order given.

    Shards that a manifest at `out` has already, unchanged, are not read again; nor are those that a killed call got
    done. A shard that is missing or broken is in the manifest with the images that were found in it and its
    trouble.

    Args:
        found: paths and URLs of shards, from `named`.
        out: the manifest, a .json file; its tables are put beside it.
        labels: take labels from class folders, where every image has one.
        workers: processes; 0 = as many as there are cores, 1 = this one.
        progress: called with the number of shards that got done.

    Raises:
        DeepClusterError: `out` is no .json or another file, or none of the shards holds an image.
    """
    if out.suffix != ".json":
        raise DeepClusterError(f"A manifest is a .json file, not {out.name!r}: change --out.")
    paths = [relative(place, str(out.absolute().parent)) for place in found]
    earlier = _earlier(out, labels)
    known = earlier.known() if earlier else {}
    parts = out.with_name(f".{out.name}.parts")
    jobs = [(place, known.get(path), parts) for place, path in zip(found, paths, strict=True)]
    results = []
    for result in _in_parallel(jobs, workers):
        results.append(result)
        progress(1)
    if not any(result.images for result in results):
        trouble = next((f"; the first, {p}, {r.trouble}" for p, r in zip(found, results, strict=True) if r.trouble), "")
        raise DeepClusterError(f"there is no image in the {len(found):,} shards{trouble}: check the pattern")
    manifest = _merge(out, paths, results, earlier, labels)
    if earlier is not None:  # its tables, which nothing names any more
        for name in set(earlier.manifest.tables) - set(manifest.tables):
            out.with_name(name).unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


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
    twice = next((place for place, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        raise DeepClusterError(f"the shard {twice} is named twice: name each once")
    return found


def _listed(file: Path) -> list[str]:
    """The patterns in a list, whose paths start at its folder."""
    text = read_text(file, advice="give a text file that lists shards", names=True)
    lines = map(str.strip, text.replace("\r", "\n").split("\n"))
    words = [line for line in lines if line and not line.startswith("#")]
    return [word if storage.is_url(word) else os.path.join(file.parent, word) for word in words]


def _earlier(out: Path, labels: bool) -> _Earlier | None:
    """The manifest that is there already, where it can serve: undamaged, and with folders if labels are wanted."""
    if not out.is_file():
        return None
    try:
        manifest = read_manifest(out)
        table, folders = open_tables(out, manifest)
        if manifest.places is not None:
            folders = mapped(out, manifest.places)
    except DeepClusterError:
        if b'"deepcluster manifest"' not in read_head(out, 4096):
            raise  # another file, which is not to be replaced
        return None
    if not labels:
        return _Earlier(manifest, table, None)
    if folders is None or folders.shape != table.shape or folders.dtype.kind != "i" or not len(folders):
        return None
    if not 0 <= folders.min() <= folders.max() < len(manifest.folders):
        return None
    return _Earlier(manifest, table, folders)


def _in_parallel(jobs: Sequence[tuple[str, Found | None, Path]], workers: int) -> Iterator[Found]:
    count = min(workers or os.cpu_count() or 1, -(-len(jobs) // CHUNK))
    if count <= 1:
        yield from map(_index_one, jobs)
        return
    require_handles(6 * count)
    with ProcessPoolExecutor(count, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        yield from pool.map(_index_one, jobs, chunksize=CHUNK)


def _end_with(parent: int) -> None:
    """Lets this process end soon after its parent was killed, which else it would not notice."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _index_one(job: tuple[str, Found | None, Path]) -> Found:
    """Reads one shard, unless the earlier manifest or a killed call has what it holds."""
    place, known, parts = job
    try:
        size, stamp = storage.stat(place)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return Found(0, 0, "", "is missing" if missing else f"cannot be opened ({error.strerror or error})")
    if known is not None and (known.bytes, known.stamp) == (size, stamp):
        return known
    file = index_file(parts, place, size, stamp)
    members = None
    with suppress(Exception):  # absent or damaged
        members = read_members(file)
    if members is None:
        members = scan(place)
        write_members(file, members)
    return Found(
        len(members.names),
        size,
        stamp,
        members.trouble,
        int(members.offsets.max(initial=0)) // format_of(place).unit,
        tuple(dict.fromkeys(map(_folder_of, members.names))),
        file=str(file),
    )


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _merge(out: Path, paths: list[str], results: list[Found], earlier: _Earlier | None, asked: bool) -> Manifest:
    """Writes the tables, and last the manifest that names them."""
    ends = np.cumsum([result.images for result in results]).tolist()
    shards = [
        Shard(path, result.images, result.bytes, end - result.images, result.stamp, result.trouble)
        for path, result, end in zip(paths, results, ends, strict=True)
    ]
    for left in out.parent.glob(f".{out.stem}.*.npy.*.part"):  # by a killed call
        left.unlink(missing_ok=True)

    def write(file: Path, kind: np.dtype, rows_of: Callable[[str, Found], np.ndarray]) -> str:
        blocks = (rows_of(shard.path, result) for shard, result in zip(shards, results, strict=True) if shard.images)
        return write_array(file, (np.asarray(block, kind) for block in blocks), ends[-1]).name

    kind = row_type(max(result.largest for result in results))

    def located(path: str, result: Found) -> np.ndarray:
        if result.row >= 0:
            assert earlier is not None
            return np.asarray(earlier.table[result.row : result.row + result.images], kind)
        members = read_members(Path(result.file))
        rows = np.zeros(result.images, kind)
        rows["offset"], rows["length"] = members.offsets // format_of(path).unit, members.lengths
        return rows

    tag = f"{out.stem}.{uuid.uuid4().hex[:8]}"
    index = write(out.with_name(f"{tag}.index.npy"), kind, located)
    labels = places = None
    classes: tuple[str, ...] = ()
    folders = sorted({folder for result in results for folder in result.folders} if asked else (), key=natural_key)
    if folders:
        own, classes = labels_from_parents([f"{folder}/" for folder in folders])  # over all shards, as over a folder
        if own is not None:
            order = np.argsort(own, kind="stable").tolist()
            folders, own = [folders[k] for k in order], own[order]
        number = {folder: k for k, folder in enumerate(folders)}

        def placed(path: str, result: Found) -> np.ndarray:
            if result.row >= 0:
                assert earlier is not None and earlier.folders is not None
                before = np.array([number.get(folder, -1) for folder in earlier.manifest.folders])
                return np.asarray(before[earlier.folders[result.row : result.row + result.images]])
            return np.array([number[_folder_of(name)] for name in read_members(Path(result.file)).names])

        if own is not None:
            label_of = own
            labels = write(
                out.with_name(f"{tag}.labels.npy"), np.dtype("<i4"), lambda path, result: label_of[placed(path, result)]
            )
        if len(classes) != len(folders):
            places = write(out.with_name(f"{tag}.places.npy"), np.dtype("<i4"), placed)
    advice = "index the shards again"
    table = read_npy(out.with_name(index), advice=advice, mapped="r")
    known = None if labels is None else read_npy(out.with_name(labels), advice=advice, mapped="r")
    content = table_digest(table, known)
    manifest = Manifest(shards, index, labels, classes, asked, content, tuple(folders), places)
    write_manifest(out, manifest)
    return manifest

"""Making a manifest: every shard is read once, several at a time, and what is done stays done after a kill."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deepcluster.data import storage
from deepcluster.data.manifest import (
    Manifest,
    open_index,
    open_labels,
    read_manifest,
    relative,
    write_manifest,
)
from deepcluster.data.naming import labels_from_parents, natural_key
from deepcluster.data.shards import ShardList, kind_of, read_members, row_type, scan, write_members
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_atomic

#: Shards that are handed to a process at a time.
TOGETHER = 4


@dataclass(frozen=True)
class Found:
    """What reading one shard found.

    Attributes:
        images: how many it holds.
        bytes: its size.
        stamp: what tells its version.
        trouble: why it could not be read to its end; empty when it could.
        largest: the largest offset in it, in its units.
        classes: the class folders in it; None where an image has none.
        known: the row of the old manifest's table where its images are; -1 = they lie in `part`.
        part: the file with its images.
    """

    images: int
    bytes: int
    stamp: str
    trouble: str = ""
    largest: int = 0
    classes: tuple[str, ...] | None = ()
    known: int = -1
    part: str = ""


@dataclass(frozen=True)
class _Old:
    """An earlier manifest, what of it may be used again, and its tables."""

    manifest: Manifest
    shards: dict[str, int]
    table: np.ndarray
    labels: np.ndarray | None


def index_shards(
    found: Sequence[str],
    out: Path,
    *,
    labels: bool = True,
    workers: int = 0,
    progress: Callable[[int], None] = lambda shards: None,
) -> Manifest:
    """Write a manifest of shards, in their order.

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
    base = str(out.absolute().parent)
    paths = [relative(place, base) for place in found]
    old = _earlier(out, labels)
    parts = out.with_name(f".{out.name}.parts")
    jobs = [(place, _known(old, path), parts) for place, path in zip(found, paths, strict=True)]
    results = []
    for result in _in_parallel(jobs, workers):
        results.append(result)
        progress(1)
    if not any(result.images for result in results):
        trouble = next((f"; the first, {p}, {r.trouble}" for p, r in zip(found, results, strict=True) if r.trouble), "")
        raise DeepClusterError(f"there is no image in the {len(found):,} shards{trouble}: check the pattern")
    manifest = _merge(out, paths, results, old, labels)
    if old is not None:  # its tables, which nothing names any more
        for name in (old.manifest.index, old.manifest.labels):
            if name and name not in (manifest.index, manifest.labels):
                out.with_name(name).unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def named(patterns: Sequence[str]) -> list[str]:
    """The shards that patterns name, see `places.matching`; a .txt file lists some, one a line, from its own folder.

    Raises:
        DeepClusterError: nothing matches, a name is not a shard's, a shard is named twice.
    """
    found: list[str] = []
    for pattern in patterns:
        if pattern.endswith(".txt") and not storage.is_url(pattern):
            found += _listed(Path(pattern).expanduser())
        else:
            found += storage.matching(pattern)
    wrong = next((place for place in found if kind_of(place) is None), None)
    if wrong is not None:
        raise DeepClusterError(f"{wrong} is no .tar or .zip file: shards are, and a .txt file may list them")
    if len(set(found)) < len(found):
        seen: set[str] = set()
        twice = next(place for place in found if place in seen or seen.add(place))  # type: ignore[func-returns-value]
        raise DeepClusterError(f"the shard {twice} is named twice: name each once")
    return found


def _listed(file: Path) -> list[str]:
    """The shards of a list, whose paths start at its folder."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DeepClusterError(f"the list of shards {file} cannot be read ({error}): give a text file") from None
    words = [line for line in lines if line and not line.startswith("#")]
    return [
        place
        for word in words
        for place in storage.matching(word if storage.is_url(word) else os.path.join(file.parent, word))
    ]


def _earlier(out: Path, labels: bool) -> _Old | None:
    """The manifest that is there already, where it can serve: whole, and with labels if they are wanted."""
    if not out.is_file():
        return None
    try:
        manifest = read_manifest(out)
        table = open_index(out, manifest)
        known = open_labels(out, manifest, len(table)) if manifest.labels else None
    except DeepClusterError:
        if not _ours(out):
            raise
        return None
    if labels and not manifest.asked:
        return None
    whole = {path: k for k, path in enumerate(manifest.shards.paths) if not manifest.troubles[k]}
    return _Old(manifest, whole, table, known)


def _ours(out: Path) -> bool:
    """Whether a file that cannot be used looks like a manifest, which may be replaced."""
    return b'"deepcluster manifest"' in out.read_bytes()[:4096]


def _known(old: _Old | None, path: str) -> Found | None:
    """What an earlier manifest knows of a shard."""
    if old is None or path not in old.shards:
        return None
    shard, shards = old.shards[path], old.manifest.shards
    return Found(
        int(shards.images[shard]), int(shards.bytes[shard]), old.manifest.stamps[shard], known=int(shards.rows[shard])
    )


def _in_parallel(jobs: Sequence[tuple[str, Found | None, Path]], workers: int) -> Iterator[Found]:
    count = min(workers or os.cpu_count() or 1, -(-len(jobs) // TOGETHER))
    if count <= 1:
        yield from map(_index_one, jobs)
        return
    with ProcessPoolExecutor(count, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        yield from pool.map(_index_one, jobs, chunksize=TOGETHER)


def _end_with(parent: int) -> None:
    """Lets this process end soon after its parent was killed, which else it would not notice."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _index_one(job: tuple[str, Found | None, Path]) -> Found:
    """Reads one shard, unless an earlier manifest or a killed call knows it."""
    place, known, parts = job
    try:
        size, stamp = storage.look(place)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return Found(0, 0, "", "is missing" if missing else f"cannot be opened ({error.strerror or error})")
    if known is not None and (known.bytes, known.stamp) == (size, stamp):
        return known
    where = place if storage.is_url(place) else os.path.abspath(place)
    key = hashlib.blake2b(f"{where}\0{size}\0{stamp}".encode(errors="surrogateescape"), digest_size=12).hexdigest()
    part = parts / f"{key}.npz"
    members = None
    with suppress(Exception):  # not there, or not whole
        members = read_members(part)
    if members is None:
        members = scan(place)
        write_members(members, part)
    kind = kind_of(place)
    assert kind is not None
    largest = int(members.offsets.max(initial=0)) // kind.unit
    labels, classes = labels_from_parents(members.names)
    known_classes = None if labels is None and members.names else classes
    return Found(len(members.names), size, stamp, members.trouble or "", largest, known_classes, part=str(part))


def _merge(out: Path, paths: list[str], results: list[Found], old: _Old | None, asked: bool) -> Manifest:
    """Writes the tables, and last the manifest that names them."""
    images = np.array([result.images for result in results], np.int64)
    shards = ShardList(
        str(out.absolute().parent),
        paths,
        images,
        np.array([result.bytes for result in results], np.int64),
        np.cumsum(images) - images,
    )
    tag = f"{out.stem}.{uuid.uuid4().hex[:8]}"
    digest = hashlib.blake2b(digest_size=16)
    _remove_leftovers(out)
    index = write_atomic(out.with_name(f"{tag}.index.npy"), partial(_fill_index, shards, results, old, digest))
    classes = _classes(results, old) if asked else None
    labels = None
    if classes:
        fill = partial(_fill_labels, shards, results, old, classes, digest)
        labels = write_atomic(out.with_name(f"{tag}.labels.npy"), fill).name
    manifest = Manifest(
        shards,
        [result.stamp for result in results],
        [result.trouble for result in results],
        index.name,
        labels,
        classes or (),
        asked,
        digest.hexdigest(),
    )
    write_manifest(out, manifest)
    return manifest


def _remove_leftovers(out: Path) -> None:
    """What a killed call left half-written beside the manifest."""
    for left in out.parent.glob(f".{out.stem}.*.npy.*.part"):
        left.unlink(missing_ok=True)


def _classes(results: list[Found], old: _Old | None) -> tuple[str, ...] | None:
    """The class folders of all shards in natural order; None where an image has none."""
    names: set[str] = set()
    for result in results:
        if result.known >= 0 and result.images:
            if old is None or old.labels is None:
                return None
            used = np.unique(old.labels[result.known : result.known + result.images])
            names.update(old.manifest.classes[k] for k in used.tolist())
        elif result.classes is None:
            return None
        else:
            names.update(result.classes)
    return tuple(sorted(names, key=natural_key))


def _fill_index(shards: ShardList, results: list[Found], old: _Old | None, digest: hashlib.blake2b, file: Path) -> None:
    largest = max(result.largest for result in results)
    wide = old is not None and old.table.dtype != row_type(0) and any(result.known >= 0 for result in results)
    kind = row_type(2**32 if wide else largest)
    table = np.lib.format.open_memmap(file, "w+", kind, (int(shards.images.sum()),))
    for row, path, result in zip(shards.rows.tolist(), shards.paths, results, strict=True):
        if not result.images:
            continue
        part = np.zeros(result.images, kind)
        if result.known >= 0:
            assert old is not None
            known = old.table[result.known : result.known + result.images]
            part["offset"], part["length"] = known["offset"], known["length"]
        else:
            members, unit = read_members(Path(result.part)), _unit(path)
            part["offset"], part["length"] = members.offsets // unit, members.lengths
        table[row : row + result.images] = part
        digest.update(part["offset"].astype("<u8").tobytes())
        digest.update(part["length"].tobytes())
    table.flush()


def _fill_labels(
    shards: ShardList,
    results: list[Found],
    old: _Old | None,
    classes: tuple[str, ...],
    digest: hashlib.blake2b,
    file: Path,
) -> None:
    number = {name: k for k, name in enumerate(classes)}
    table = np.lib.format.open_memmap(file, "w+", "<i4", (int(shards.images.sum()),))
    for row, result in zip(shards.rows.tolist(), results, strict=True):
        if not result.images:
            continue
        if result.known >= 0:
            assert old is not None and old.labels is not None
            own, names = old.labels[result.known : result.known + result.images], old.manifest.classes
        else:
            found, names = labels_from_parents(read_members(Path(result.part)).names)
            assert found is not None
            own = found
        codes = np.array([number.get(name, -1) for name in names], "<i4")[own]
        table[row : row + result.images] = codes
        digest.update(codes.tobytes())
    table.flush()


def _unit(path: str) -> int:
    kind = kind_of(path)
    assert kind is not None
    return kind.unit

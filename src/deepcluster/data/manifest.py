"""A manifest: shards by the thousand as one source, opened in seconds without opening a shard; see docs/scale.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deepcluster.data.archive import find_format
from deepcluster.data.shards import Shard, Shards, fingerprint_of
from deepcluster.data.storage import is_url
from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.io import explain_os_errors, scratch_folder, write_text
from deepcluster.lock import locked
from deepcluster.reading import judged, read_head, read_json, read_npy

FORMAT = "deepcluster manifest"
VERSION = 1
BUSY = "{} is being written by {}: wait for its end, or choose another --out."
DIGESTED = 1 << 20
"""Rows of a table that are digested at a time."""
CHECKED = 1 << 25
"""Rows up to which a table is compared with the manifest's digest when it is opened: a third of a second."""


@dataclass(frozen=True)
class Manifest:
    """What a manifest file says."""

    shards: list[Shard]  # in order; relative paths start from the manifest's folder
    index: str  # name of the .npy with `offset` and `length` of each image, beside the manifest
    labels: str | None  # name of the .npy with the label of each image, beside the manifest; None without labels
    classes: tuple[str, ...]  # class names
    digest: str  # of the tables

    @property
    def tables(self) -> list[str]:
        """Names of all that lies beside the manifest."""
        return [name for name in (self.index, self.labels) if name is not None]


def open_manifest(name: str) -> Shards:
    """Open a manifest that `deepcluster index` wrote.

    Raises:
        DeepClusterError: it is no manifest, it is damaged, or a table beside it is missing or does not fit.
    """
    file = Path(name).expanduser()
    manifest = read_manifest(file)
    shards = manifest.shards
    if not any(shard.images for shard in shards):
        raise DeepClusterError(f"the manifest {name} names no image: index shards that hold some")
    table, labels = open_tables(file, manifest)
    reopen = partial(open_manifest, str(file.absolute()))
    if labels is not None:
        labels = _in_order(labels, shards)
    fingerprint, base = fingerprint_of(shards, manifest.digest, manifest.classes), str(file.absolute().parent)
    return Shards(name, shards, table, fingerprint, base=base, labels=labels, classes=manifest.classes, reopen=reopen)


def read_manifest(file: Path) -> Manifest:
    """What a manifest says, without its tables.

    Raises:
        DeepClusterError: it cannot be read, is something else, of another version, or damaged.
    """
    content = read_json(file, advice="write a manifest of shards with `deepcluster index`")
    if content.get("format") != FORMAT:
        raise DeepClusterError(
            f"{file} is no manifest of shards: write one with `deepcluster index SHARDS --out {file}`"
        )
    if content.get("version") != VERSION:
        raise DeepClusterError(
            f"{file} is a manifest of version {content.get('version')} and this program reads {VERSION}: "
            "index the shards again, or update deepcluster"
        )
    with judged(f"the manifest {file}", "index the shards again"):
        return _parsed(content)


def check_replaceable(file: Path) -> None:
    """Raises DeepClusterError where the file is there and is no manifest; a damaged one is."""
    if file.is_file() and f'"{FORMAT}"'.encode() not in read_head(file, 4096):
        read_manifest(file)


def write_manifest(file: Path, make: Callable[[Path], tuple[list[Shard], tuple[str, ...], list[Path]]]) -> Manifest:
    """Write a manifest and its tables, in place of an earlier one.

    Args:
        make: gives the shards, the classes, and the tables, which it writes into the folder that it gets: index.npy
            and, where there are labels, labels.npy.

    Raises:
        DeepClusterError: there is another file, or another process writes this manifest.
    """
    check_replaceable(file)
    with scratch_folder(file) as scratch, locked(file.with_name(f".{file.name}.lock"), partial(BUSY.format, file)):
        shards, classes, tables = make(scratch)
        content = table_digest(*(read_npy(table, advice="give the command again", mapped="r") for table in tables))
        names = [f"{file.stem}.{content[:8]}.{table.name}" for table in tables]
        for table, name in zip(tables, names, strict=True):
            with explain_os_errors(file):
                table.replace(file.with_name(name))
        manifest = Manifest(shards, names[0], names[1] if len(names) > 1 else None, classes, content)
        head: dict[str, Any] = {"format": FORMAT, "version": VERSION} | vars(manifest)
        rows = (shard._asdict().items() for shard in head.pop("shards"))
        lines = [json.dumps({name: value for name, value in row if value or name != "trouble"}) for row in rows]
        opening = json.dumps(head, indent=1)[:-2]  # without its closing brace
        write_text(file, f'{opening},\n "shards": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")
        ours = re.compile(re.escape(file.stem) + r"\.[0-9a-f]{8}\.(index|labels)\.npy")
        beside = list(file.absolute().parent.iterdir())
        # of the manifest before, or of a killed command
        left = [old for old in beside if ours.fullmatch(old.name) and old.name not in names]
        others = [read_head(other, 4096) for other in beside if left and _may_name_tables(other)]
        for old in left:
            if not any(
                json.dumps(old.name).encode() in head for head in others
            ):  # one that was renamed keeps its tables
                old.unlink(missing_ok=True)
    return manifest


def _may_name_tables(file: Path) -> bool:
    return file.suffix == ".json" and file.is_file() and os.access(file, os.R_OK)


def open_tables(file: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows,) `offset` and `length`, and (rows,) int32 labels where there are some, memory-mapped.

    Raises:
        DeepClusterError: a table is missing, damaged, or does not fit the manifest.
    """
    table = _mapped(file, manifest.index)
    integers = table.dtype.names == ("offset", "length") and all(table.dtype[k].kind == "u" for k in range(2))
    rows = max((shard.row + shard.images for shard in manifest.shards), default=0)
    labels = None if manifest.labels is None else _mapped(file, manifest.labels)
    if not integers or len(table) < rows:
        needed = f"{rows:,} rows of offset and length"
    elif labels is not None and (labels.shape != table.shape or labels.dtype.kind != "i"):
        needed = f"{len(table):,} labels"
    elif len(table) <= CHECKED and table_digest(table, labels) != manifest.digest:
        needed = "the tables that were written with it"
    else:
        return table, labels
    raise DeepClusterError(
        f"{' or '.join(manifest.tables)} does not fit the manifest {file}, which needs {needed}: index the shards again"
    )


def table_digest(table: np.ndarray, labels: np.ndarray | None = None) -> str:
    """Digest of the tables of a manifest, read piece by piece."""
    return digest(
        *(
            digest(*(rows[start : start + DIGESTED] for start in range(0, len(rows), DIGESTED)))
            for rows in (table, labels)
            if rows is not None
        )
    )


def _parsed(content: dict[str, Any]) -> Manifest:
    shards = [Shard(**entry) for entry in content["shards"]]
    for number, shard in enumerate(shards, 1):
        if not _is_text(shard.path, shard.stamp, shard.trouble) or find_format(shard.path) is None:
            raise ValueError(f"{str(shard.path)[:80]!r} is no path of a .tar or .zip shard")
        os.fsencode(shard.path)
        if any(type(count) is not int or not 0 <= count < 2**62 for count in shard[1:4]):
            raise ValueError(f"its shard {number:,} has no numbers of images, bytes and its first row")
    if sum(shard.images for shard in shards) >= 2**62:
        raise ValueError("its shards have too many images")
    index, labels, classes = (content[name] for name in ("index", "labels", "classes"))
    tables = [index] if labels is None else [index, labels]
    if not _is_text(*tables) or any(PurePosixPath(name).name != name or not name.endswith(".npy") for name in tables):
        raise ValueError("a table is no .npy file beside the manifest")
    if not isinstance(classes, list) or not _is_text(*classes, content["digest"]):
        raise ValueError("its classes or digest are no text")
    return Manifest(shards, index, labels, tuple(classes), content["digest"])


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) and "\0" not in value for value in values)


def _mapped(file: Path, name: str) -> np.ndarray:
    advice = f"the manifest {file.name} needs it beside it; copy it there, or index the shards again"
    return read_npy(file.with_name(name), advice=advice, mapped="r", ndim=1)


def _in_order(labels: np.ndarray, shards: list[Shard]) -> np.ndarray:
    """Labels of the images in the order of the shards: a copy only where somebody has moved or taken out lines."""
    images = np.array([shard.images for shard in shards])
    if np.array_equal([shard.row for shard in shards], np.cumsum(images) - images):
        return labels[: images.sum()]
    return np.concatenate([labels[shard.row : shard.row + shard.images] for shard in shards])


def relative(place: str, base: str) -> str:
    """How a manifest in the folder `base` names a shard: from there, but for URLs and absolute paths elsewhere."""
    if is_url(place):
        return place
    step = os.path.relpath(os.path.abspath(place), base)
    outside = step == os.pardir or step.startswith(os.pardir + os.sep)
    return place if outside and os.path.isabs(place) else step.replace(os.sep, "/")

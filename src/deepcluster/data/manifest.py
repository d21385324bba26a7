"""A manifest: shards by the thousand as one source, opened in seconds without opening a shard.

It is a JSON file that people can read, and beside it one .npy table with the place of every image, which is only
memory-mapped. docs/scale.md describes the format.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deepcluster.data.archive import find_format
from deepcluster.data.shards import ShardList, Shards
from deepcluster.data.storage import is_url
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_text

FORMAT = "deepcluster manifest"
VERSION = 1
FIELDS = ("path", "images", "bytes", "row", "stamp")


@dataclass(frozen=True)
class Manifest:
    """What a manifest file says."""

    shards: ShardList  # the shards in order
    index: str  # name of the .npy with `offset` and `length` of each image, beside the manifest
    labels: str | None  # name of the .npy with the label of each image, beside the manifest; None without labels
    classes: tuple[str, ...]  # class names
    asked: bool  # whether labels were to be taken from class folders
    digest: str  # of both tables


def open_manifest(name: str) -> Shards:
    """Open a manifest that `deepcluster index` wrote.

    Raises:
        DeepClusterError: it is no manifest, it is damaged, or a table beside it is missing or does not fit.
    """
    file = Path(name).expanduser()
    manifest = read_manifest(file)
    shards = manifest.shards
    if not shards.images.sum():
        raise DeepClusterError(f"the manifest {name} names no image: index shards that hold some")
    table, labels = open_tables(file, manifest)
    reopen = partial(open_manifest, str(file.absolute()))
    if labels is not None:
        labels = _in_order(labels, shards)
    fingerprint = shards.fingerprint(manifest.digest, manifest.classes)
    return Shards(name, shards, table, fingerprint, labels=labels, classes=manifest.classes, reopen=reopen)


def read_manifest(file: Path) -> Manifest:
    """What a manifest says, without its tables.

    Raises:
        DeepClusterError: it cannot be read, is something else, of another version, or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeepClusterError(
            f"{file} cannot be read as a manifest ({error}): write it with `deepcluster index`"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DeepClusterError(
            f"{file} is no manifest of shards: write one with `deepcluster index SHARDS --out {file}`"
        )
    if content.get("version") != VERSION:
        raise DeepClusterError(
            f"{file} is a manifest of version {content.get('version')} and this program reads {VERSION}: "
            "index the shards again, or update deepcluster"
        )
    try:
        return _parsed(content, str(file.absolute().parent))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DeepClusterError(
            f"the manifest {file} is damaged ({type(error).__name__}: {error}): index the shards again"
        ) from None


def write_manifest(file: Path, manifest: Manifest) -> None:
    """The manifest file, one line a shard; written whole, after its tables."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "index": manifest.index,
        "labels": manifest.labels,
        "class_folders": manifest.asked,
        "classes": list(manifest.classes),
        "digest": manifest.digest,
    }
    shards = manifest.shards
    columns = (shards.images.tolist(), shards.bytes.tolist(), shards.rows.tolist(), shards.stamps)
    lines = []
    for path, *values, trouble in zip(shards.paths, *columns, shards.troubles, strict=True):
        entry = dict(zip(FIELDS, (path, *values), strict=True))
        lines.append(json.dumps(entry | {"trouble": trouble} if trouble else entry))
    opening = json.dumps(head, indent=1)[:-2]  # without its closing brace
    write_text(file, f'{opening},\n "shards": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def open_tables(file: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows,) `offset` and `length`, and (rows,) int32 labels where there are some, memory-mapped.

    Raises:
        DeepClusterError: a table is missing, damaged, or does not fit the manifest.
    """
    table = _mapped(file, manifest.index)
    integers = table.dtype.names == ("offset", "length") and all(table.dtype[k].kind == "u" for k in range(2))
    needed = int((manifest.shards.rows + manifest.shards.images).max(initial=0))
    if table.ndim != 1 or not integers or len(table) < needed:
        raise _misfit(file, manifest.index, f"{needed:,} rows of offset and length")
    if manifest.labels is None:
        return table, None
    labels = _mapped(file, manifest.labels)
    if labels.shape != table.shape or labels.dtype.kind != "i":
        raise _misfit(file, manifest.labels, f"{len(table):,} labels")
    return table, labels


def _misfit(file: Path, name: str, needed: str) -> DeepClusterError:
    return DeepClusterError(
        f"{file.with_name(name)} does not fit the manifest {file}, which needs {needed}: index the shards again"
    )


def _parsed(content: dict[str, Any], base: str) -> Manifest:
    entries = content["shards"]
    paths = [entry["path"] for entry in entries]
    images, sizes, rows = (
        np.array([entry[field] for entry in entries], np.int64) for field in ("images", "bytes", "row")
    )
    for path in paths:
        if not isinstance(path, str) or find_format(path) is None:
            raise ValueError(f"{path!r} is no path of a .tar or .zip shard")
    if any((column < 0).any() for column in (images, sizes, rows)):
        raise ValueError("a shard has a negative number")
    names = [content["index"], *([content["labels"]] if content["labels"] is not None else [])]
    if any(PurePosixPath(name).name != name or not name.endswith(".npy") for name in names):
        raise ValueError("a table is no .npy file beside the manifest")
    return Manifest(
        ShardList(
            base,
            paths,
            images,
            sizes,
            rows,
            [str(entry.get("stamp", "")) for entry in entries],
            [str(entry.get("trouble", "")) for entry in entries],
        ),
        content["index"],
        content["labels"],
        tuple(map(str, content["classes"])),
        bool(content["class_folders"]),
        str(content["digest"]),
    )


def _mapped(file: Path, name: str) -> np.ndarray:
    beside = file.with_name(name)
    try:
        table: np.ndarray = np.load(beside, mmap_mode="r", allow_pickle=False)
        return table
    except (OSError, ValueError, EOFError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DeepClusterError(
            f"{beside}, which the manifest {file.name} needs beside it, {why}: copy it there, or index the shards again"
        ) from None


def _in_order(labels: np.ndarray, shards: ShardList) -> np.ndarray:
    """Labels of the images in the order of the shards: a copy only where somebody has moved or taken out lines."""
    total = int(shards.images.sum())
    if np.array_equal(shards.rows, np.cumsum(shards.images) - shards.images):
        return labels[:total]
    parts = zip(shards.rows.tolist(), shards.images.tolist(), strict=True)
    return np.concatenate([labels[row : row + count] for row, count in parts])


def relative(place: str, base: str) -> str:
    """How a manifest in the folder `base` names a shard: from there, but for URLs and absolute paths elsewhere."""
    if is_url(place):
        return place
    step = os.path.relpath(os.path.abspath(place), base)
    outside = step == os.pardir or step.startswith(os.pardir + os.sep)
    return place if outside and os.path.isabs(place) else step.replace(os.sep, "/")

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
from deepcluster.data.shards import Shard, Shards, fingerprint_of
from deepcluster.data.storage import is_url
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_text

FORMAT = "deepcluster manifest"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What a manifest file says."""

    shards: list[Shard]  # in order; relative paths start from the manifest's folder
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
        return _parsed(content)
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
    rows = (shard._asdict().items() for shard in manifest.shards)
    lines = [json.dumps({name: value for name, value in row if value or name != "trouble"}) for row in rows]
    opening = json.dumps(head, indent=1)[:-2]  # without its closing brace
    write_text(file, f'{opening},\n "shards": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def open_tables(file: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows,) `offset` and `length`, and (rows,) int32 labels where there are some, memory-mapped.

    Raises:
        DeepClusterError: a table is missing, damaged, or does not fit the manifest.
    """
    table = _mapped(file, manifest.index)
    integers = table.dtype.names == ("offset", "length") and all(table.dtype[k].kind == "u" for k in range(2))
    needed = max((shard.row + shard.images for shard in manifest.shards), default=0)
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


def _parsed(content: dict[str, Any]) -> Manifest:
    shards = [Shard(**entry) for entry in content["shards"]]
    for shard in shards:
        if not isinstance(shard.path, str) or find_format(shard.path) is None:
            raise ValueError(f"{shard.path!r} is no path of a .tar or .zip shard")
        if min(shard.images, shard.bytes, shard.row) < 0:
            raise ValueError("a shard has a negative number")
    names = [content["index"], *([content["labels"]] if content["labels"] is not None else [])]
    if any(PurePosixPath(name).name != name or not name.endswith(".npy") for name in names):
        raise ValueError("a table is no .npy file beside the manifest")
    classes = tuple(map(str, content["classes"]))
    asked, content_digest = bool(content["class_folders"]), str(content["digest"])
    return Manifest(shards, content["index"], content["labels"], classes, asked, content_digest)


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

"""Some images of a source as something that `open_images` takes: a list of files, or a manifest of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.data.folder import Files
from deepcluster.data.manifest import check_replaceable, relative, write_manifest
from deepcluster.data.naming import printable
from deepcluster.data.shards import Shard, Shards
from deepcluster.data.source import ImageSource
from deepcluster.errors import DeepClusterError
from deepcluster.io import require_writable, write_array, write_csv, write_text

NEEDS: dict[str, tuple[type, str]] = {".txt": (Files, "files of their own"), ".json": (Shards, "in tar or zip shards")}
"""By the ending of what is written: the source it is of, and in words."""


def check_subset_name(out: Path, source: ImageSource | None) -> None:
    """Raises DeepClusterError where `write_subset` cannot write images of this source under this name, or would replace
    a .json file that is no manifest."""
    if out.suffix not in (*NEEDS, ".csv"):
        raise DeepClusterError(f"Samples are written as .txt, .csv or .json, not as {out.name!r}: change --out.")
    kind, words = NEEDS.get(out.suffix, (object, ""))
    if not isinstance(source, kind):
        other = next((ending for ending, (fits, _) in NEEDS.items() if isinstance(source, fits)), ".csv")
        whose = "the table (it does not say which)" if source is None else source.name
        raise DeepClusterError(f"The images of {whose} are not {words}: give --out a {other} file, not {out.name}.")
    require_writable(out)
    if out.suffix == ".json":
        check_replaceable(out)


def write_subset(source: ImageSource | None, index: np.ndarray, out: Path, cluster: np.ndarray) -> None:
    """Writes the images at `index` (M,), ascending, to what `check_subset_name` has let pass.

    A .txt has their paths; a .csv index, path, cluster and, where there are labels, label, and is opened like a .txt
    where the images are files of their own; a .json is a manifest of their shards, with its tables beside it.

    Args:
        source: None = it is not known, and a .csv has no paths.
        cluster: (N,) of all images, for the .csv.
    """
    if out.suffix == ".json":
        assert isinstance(source, Shards)
        _write_manifest(source, index, out)
    elif out.suffix == ".txt":
        write_text(out, "".join(f"{_path(source, image, out)}\n" for image in index.tolist()))
    else:
        write_csv(out, _rows(source, index, out, cluster))


def _path(source: ImageSource | None, image: int, out: Path) -> str:
    """The path of an image as a list in the folder of `out` names it."""
    if not isinstance(source, Files):
        return "" if source is None else source.path(image)
    path = printable(relative(os.path.join(source.root, source.paths[image]), str(out.absolute().parent)))
    if path != path.strip() or "\n" in path or "\r" in path:
        raise DeepClusterError(f"The name {path!r} cannot stand on a line of a list: rename the file.")
    return path


def _rows(source: ImageSource | None, index: np.ndarray, out: Path, cluster: np.ndarray) -> Iterator[Sequence[Any]]:
    labels = None if source is None else source.labels
    names = () if source is None else source.classes
    yield "index", "path", "cluster", *(["label"] if labels is not None else [])
    for image in index.tolist():
        label = [] if labels is None else [names[labels[image]] if labels[image] >= 0 else ""]
        yield image, _path(source, image, out), int(cluster[image]), *label


def _write_manifest(source: Shards, index: np.ndarray, out: Path) -> None:
    base = str(out.absolute().parent)
    counts = np.diff(np.searchsorted(index, source.starts))
    firsts = np.cumsum(counts) - counts
    shards: list[Shard] = []
    rows: list[np.ndarray] = []
    for number in np.flatnonzero(counts).tolist():
        first, count, old = int(firsts[number]), int(counts[number]), source.shards[number]
        rows.append(source.table[old.row + index[first : first + count] - source.starts[number]])
        shards.append(old._replace(path=relative(source.place(number), base), images=count, row=first))
    table = np.concatenate(rows)
    labels = None if source.labels is None else np.asarray(source.labels)[index].astype("<i4")

    def make(scratch: Path) -> tuple[list[Shard], tuple[str, ...], list[Path]]:
        parts = {"index.npy": table} | ({} if labels is None else {"labels.npy": labels})
        return shards, tuple(source.classes), [write_array(scratch / name, rows) for name, rows in parts.items()]

    write_manifest(out, make)

"""Images in parquet files, as data sets on the Hugging Face hub are kept: `images/*.parquet`, `hf:NAME`.

A column holds the encoded bytes of each image, by themselves or beside a path. Rows are read a row group at a time, the
last of which is kept, so that images in order are read once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from deepcluster.data import storage
from deepcluster.data.folder import LABELS, some_labels
from deepcluster.data.naming import natural_key, printable
from deepcluster.data.source import Encoded, ImageSource
from deepcluster.digest import digest
from deepcluster.errors import BadImage, DeepClusterError, first_line, warn
from deepcluster.reading import parse_json, regular_size

HUB = "hf:"
CONVERTED = "refs/convert/parquet"
"""Revision in which the hub keeps the parquet files that it makes of data sets in other forms."""


@dataclass(eq=False, repr=False)
class ParquetImages(Encoded):
    """An `ImageSource` over a column of images in parquet files."""

    name: str
    files: list[str]
    column: str
    groups: np.ndarray  # (G, 3) int64 file, row group in it, and first image of each row group
    count: int
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    held: tuple[int, Any] = field(default=(-1, None))  # the row group that was read last, and its images

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        file, _, _ = self.groups[self._group(index)]
        start = self.groups[self.groups[:, 0] == file][0, 2]
        return f"{printable(Path(self.files[file]).name)}/{index - start:06d}"

    def raw(self, index: int) -> bytes:
        group = self._group(index)
        at, images = self.held
        if at != group:
            file, number, _ = self.groups[group]
            try:
                images = _open(self.files[file]).read_row_group(int(number), columns=[self.column]).column(0)
            except (DeepClusterError, OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
                raise BadImage(first_line(error)) from None
            self.held = group, images
        found = images[index - int(self.groups[group, 2])].as_py()
        content = found.get("bytes") if isinstance(found, dict) else found
        if content is None:
            raise BadImage("the row holds no bytes of an image")
        return bytes(content)

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self.groups[:, 2], index, side="right")) - 1

    def marks(self) -> np.ndarray:
        marks = np.array([storage.mark(file) for file in self.files], np.uint64)
        sizes = np.diff(np.append(self.groups[:, 2], self.count))
        return np.repeat(marks[self.groups[:, 0]], sizes)

    def fingerprint(self) -> str:
        return digest(self.count, self.column, storage.content(self.files))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"held": (-1, None)}


def open_parquet(name: str, files: list[str] | None = None) -> ImageSource:
    """One or several parquet files of images, by a name, a glob or braces.

    Images are the column of bytes, or of bytes and paths; of several, the one called image, or the first. Labels are
    the first column named in `folder.LABELS`, with the class names that Hugging Face's `datasets` keeps beside it.

    Raises:
        DeepClusterError: no such files, a damaged one, or none with a column of images.
    """
    files = storage.expand(name) if files is None else files
    if storage.is_url(files[0]):
        raise DeepClusterError(f"{name} lies on another machine: fetch parquet files before they are read")
    opened = [_open(file) for file in files]
    schema = opened[0].schema_arrow
    columns = [each.name for each in schema if _holds_images(each.type)]
    if not columns:
        raise DeepClusterError(
            f"{printable(files[0])} has no column of images, which are bytes: its columns are {', '.join(schema.names)}"
        )
    column = next((each for each in columns if each.casefold() in ("image", "img")), columns[0])
    if len(columns) > 1:
        warn(f"{name} has {len(columns)} columns of images, of which {column!r} is read")
    groups, first = [], 0
    for number, (file, each) in enumerate(zip(files, opened, strict=True)):
        if column not in each.schema_arrow.names:
            raise DeepClusterError(f"{printable(file)} has no column {column!r}, which {printable(files[0])} has")
        for group in range(each.num_row_groups):
            groups.append((number, group, first))
            first += each.metadata.row_group(group).num_rows
    if not first:
        raise DeepClusterError(f"{name} holds no image")
    labels, classes = _labels(opened, schema)
    return ParquetImages(name, files, column, np.array(groups, np.int64), first, labels, classes)


def open_hub(name: str) -> ImageSource:
    """`hf:NAME?split=train&revision=main`: a data set of the Hugging Face hub, whose parquet files are fetched once.

    Without a split the files of `train` are taken where there are such, which is told, else all.
    """
    from huggingface_hub import snapshot_download

    repo, _, query = name.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"split", "revision"}:
        raise DeepClusterError(f"{HUB}{repo} has no option {min(unknown)!r}: it takes split and revision")
    fetch = partial(snapshot_download, repo, repo_type="dataset", allow_patterns="*.parquet")
    try:
        for revision in [options["revision"]] if "revision" in options else ["main", CONVERTED]:
            folder = Path(fetch(revision=revision))
            if files := sorted((str(file) for file in folder.rglob("*.parquet")), key=natural_key):
                break
    except Exception as error:  # of the connection, the hub, the disk
        raise DeepClusterError(f"{HUB}{repo} could not be fetched: {first_line(error)}") from None
    if not files:
        raise DeepClusterError(f"{HUB}{repo} has no parquet files: fetch it, and give its folder or archives")
    by_split = {file: set(re.split(r"[/\\._-]", str(Path(file).relative_to(folder)))) for file in files}
    split = options.get("split") or ("train" if any("train" in words for words in by_split.values()) else None)
    chosen = [file for file in files if split is None or split in by_split[file]]
    if not chosen:
        raise DeepClusterError(
            f"{HUB}{repo} has no files of the split {split!r}, the first being {Path(files[0]).name}"
        )
    if "split" not in options and len(chosen) < len(files):
        warn(f"{HUB}{repo}: only its split {split!r} is read; ?split=NAME names another")
    return open_parquet(name, chosen)


def _open(file: str) -> Any:
    """A parquet file, whose table of contents is read."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        regular_size(file)
        return ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DeepClusterError(
            f"{printable(file)} cannot be read as parquet ({first_line(error)}): restore it, or leave it out"
        ) from None


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(each.name == "bytes" and _holds_images(each.type) for each in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _labels(opened: list[Any], schema: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(N,) labels and the names of the classes, by the columns of labels."""
    plain = {each.casefold(): each for each in reversed(schema.names)}
    column = next((plain[each] for each in LABELS if each in plain), None)
    if column is None or any(column not in each.schema_arrow.names for each in opened):
        return None, ()
    values = [value for each in opened for value in each.read(columns=[column]).column(0).to_pylist()]
    names = _class_names(schema, column)
    if names and all(value is None or (isinstance(value, int) and value < len(names)) for value in values):
        labels = np.array([-1 if value is None else max(value, -1) for value in values], np.int64)
        return labels, tuple(names)
    return some_labels([None if value is None else str(value) for value in values])


def _class_names(schema: Any, column: str) -> list[str]:
    """Names of classes 0, 1, ... that `datasets` wrote into the file; none where it did not."""
    try:
        about = parse_json((schema.metadata or {})[b"huggingface"])
        return [printable(str(each)) for each in about["info"]["features"][column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []

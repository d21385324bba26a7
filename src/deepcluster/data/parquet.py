"""Images in parquet files, as data sets on the Hugging Face hub are kept: `images/*.parquet`, `hf:NAME`.

A column holds the encoded bytes of each image, by themselves or beside a path. Rows can only be read a row group at a
time, the last of which each process keeps: images in order are read once or few times, images in random order as often
as a group has rows. The decode cache reads in order; where the images do not fit into it, tar shards are faster.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from deepcluster.data import storage
from deepcluster.data.folder import LABELS
from deepcluster.data.naming import natural_key, printable, some_labels
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

    def __post_init__(self) -> None:
        self._firsts: dict[int, int] = {}  # file -> its first image
        for file, _, first in self.groups.tolist():
            self._firsts.setdefault(file, first)
        shared = os.path.commonpath([os.path.dirname(file) for file in self.files])
        self._names = [printable(os.path.relpath(file, shared or ".")) for file in self.files]

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        file = int(self.groups[self._group(index), 0])
        return f"{self._names[file]}/{index - self._firsts[file]:06d}"

    def raw(self, index: int) -> bytes:
        group = self._group(index)
        at, images = self.held
        if at != group:
            file, number, _ = self.groups[group]
            try:
                with _opened(self.files[file]) as opened:
                    images = opened.read_row_group(int(number), columns=[self.column]).column(0)
            except DeepClusterError as error:
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
    column, label, groups, first = "", None, [], 0
    values: list[Any] = []
    about: dict[bytes, bytes] = {}
    others: dict[str, None] = {}  # names of columns, in order
    for number, file in enumerate(files):
        with _opened(file) as opened:
            schema = opened.schema_arrow
            column = column or _image_column(name, file, schema)
            rows = opened.metadata.num_rows
            if not any(each.name == column and (_holds_images(each.type) or not rows) for each in schema):
                other = printable(files[0])
                raise DeepClusterError(
                    f"{printable(file)} has no column {column!r} of images, which {other} has: leave it out"
                )
            if label is None:
                label, about = _label_column(schema, column), schema.metadata or {}
            start = first
            for group in range(opened.num_row_groups):
                if rows := opened.metadata.row_group(group).num_rows:
                    groups.append((number, group, first))
                    first += rows
            if label in schema.names:
                values += [None] * (start - len(values))  # of files without labels
                values += opened.read(columns=[label]).column(0).to_pylist()
            elif label is None:
                others |= dict.fromkeys(each for each in schema.names if each != column)
    if not first:
        raise DeepClusterError(f"{name} holds no image")
    if label is None and others:
        warn(f"{name} has no column `label`, so its images have no labels; not used: {', '.join(others)}")
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if label is not None:
        labels, classes = _labels(values + [None] * (first - len(values)), _class_names(about, label))
    return ParquetImages(name, files, column, np.array(groups, np.int64), first, labels, classes)


def open_hub(name: str) -> ImageSource:
    """`hf:NAME?config=plain&split=train&revision=main`: a data set of the Hugging Face hub, whose parquet files are
    fetched once.

    Without a split the files of `train` are taken where there are such, which is told, else all.

    Raises:
        DeepClusterError: there is no such data set or split, it cannot be fetched, or it has several configurations and
            none is named.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    repo, _, query = name.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"config", "split", "revision"}:
        raise DeepClusterError(f"{HUB}{repo} has no option {min(unknown)!r}: it takes config, split and revision")
    revisions = [options["revision"]] if "revision" in options else ["main", CONVERTED]

    def files_of(revision: str, split: str) -> dict[PurePosixPath, str]:
        """Place in the data set -> file, of those with the word `split` in their place, all where it is empty."""
        pattern = f"*{split}*.parquet" if split else "*.parquet"
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=pattern))
        found = {PurePosixPath(file.relative_to(folder).as_posix()): str(file) for file in folder.rglob("*.parquet")}
        return {
            place: found[place]
            for place in sorted(found, key=lambda place: natural_key(str(place)))
            if not split or split in re.split(r"[/._-]", str(place))
        }

    asked, chosen, split = options.get("split", ""), {}, ""
    try:
        for revision, split in itertools.product(revisions, [asked] if asked else ["train", ""]):
            try:
                chosen = files_of(revision, split)
            except RevisionNotFoundError:
                if revision != CONVERTED:  # which the hub has of some
                    raise
            if chosen:
                break
    except Exception as error:  # of the connection, the hub, the disk
        raise DeepClusterError(f"{HUB}{repo} could not be fetched: {first_line(error)}") from None
    if "config" in options:
        chosen = {place: file for place, file in chosen.items() if place.parts[0] == options["config"]}
    elif len(configs := {place.parts[0] for place in chosen if len(place.parts) > 1}) > 1:
        raise DeepClusterError(f"{HUB}{repo} has {', '.join(sorted(configs))}: name one, as by ?config={min(configs)}")
    if not chosen:
        named = " and ".join(f"{key} {options[key]!r}" for key in ("config", "split") if key in options)
        raise DeepClusterError(f"{HUB}{repo} has no parquet files{f' of {named}' if named else ''}: look at its files")
    if split != asked:
        warn(f"{HUB}{repo}: its split {split!r} is read; ?split=NAME names another")
    return open_parquet(name, list(chosen.values()))


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """A parquet file, whose table of contents is read; what pyarrow finds wrong with it is one sentence."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        regular_size(file)
        with ExitStack() as stack:
            # pyarrow takes names in UTF-8 only
            place = file if printable(file) == file else stack.enter_context(storage.open_stream(file))
            yield stack.enter_context(ParquetFile(place))
    except DeepClusterError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise DeepClusterError(
            f"{printable(file)} cannot be read as parquet ({first_line(error)}): restore it, or leave it out"
        ) from None


def _image_column(name: str, file: str, schema: Any) -> str:
    columns = [each.name for each in schema if _holds_images(each.type) and each.name.casefold() not in LABELS]
    if not columns:
        raise DeepClusterError(
            f"{printable(file)} has no column of images, which are bytes; its columns are {', '.join(schema.names)}: "
            "put the images into it, or list their paths in a .csv"
        )
    column = next((each for each in columns if each.casefold() in ("image", "img")), columns[0])
    if len(columns) > 1:
        warn(f"{name} has {len(columns)} columns of images, of which {column!r} is read")
    return str(column)


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(each.name == "bytes" and _holds_images(each.type) for each in kind)
    if types.is_dictionary(kind):
        return _holds_images(kind.value_type)
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in tests)


def _label_column(schema: Any, column: str) -> str | None:
    from pyarrow.types import is_nested  # several labels of one image are no class

    found = [each.name for each in schema if each.name != column and not is_nested(each.type)]
    plain = {each.casefold(): each for each in reversed(found)}
    return next((plain[each] for each in LABELS if each in plain), None)


def _labels(values: list[Any], names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(N,) labels and the names of the classes, of what the column of labels holds."""
    if names and all(value is None or (isinstance(value, int) and value < len(names)) for value in values):
        return np.array([-1 if value is None else max(value, -1) for value in values], np.int64), tuple(names)
    return some_labels([_text(value) for value in values])


def _text(value: Any) -> str | None:
    """A label as text; NaN, which tables of floats have for "nothing", is none."""
    if value is None or value != value:
        return None
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _class_names(about: dict[bytes, bytes], column: str) -> list[str]:
    """Names of classes 0, 1, ... that `datasets` wrote into the file; none where it did not."""
    try:
        found = parse_json(about[b"huggingface"])["info"]["features"][column]["names"]
        return [printable(str(each)) for each in found]
    except (KeyError, TypeError, ValueError):
        return []

"""Images that lie as files: a folder of any nesting, a list file, a Python list of paths, one file."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deepcluster.data import storage
from deepcluster.data.decode import encoded
from deepcluster.data.formats import CONTAINERS, HEAD, UNREAD_PICTURES
from deepcluster.data.naming import (
    MASKS,
    find_on_disk,
    is_hidden,
    is_picture,
    labels_from_parents,
    natural_key,
    printable,
    some_labels,
)
from deepcluster.data.source import Encoded, ImageSource
from deepcluster.digest import digest
from deepcluster.errors import BadImage, DeepClusterError, counted, warn
from deepcluster.reading import read_csv, read_head, read_text


@dataclass(eq=False, repr=False)
class Files(Encoded):
    """An `ImageSource` of files under one folder, in the order given."""

    name: str
    root: Path  # folder that relative paths start from
    paths: list[str]  # POSIX paths, relative to `root` or absolute
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return printable(self.paths[index])

    def raw(self, index: int) -> bytes:
        return encoded(os.path.join(self.root, self.paths[index]))

    def marks(self) -> np.ndarray:
        return np.fromiter((storage.mark(os.path.join(self.root, path)) for path in self.paths), np.uint64)

    def fingerprint(self) -> str:
        return digest(self.paths, storage.content([os.path.join(self.root, path) for path in self.paths]))


def open_folder(name: str) -> ImageSource:
    """All images under a folder, links followed, hidden ones left out, in natural order of their relative path.

    Of a folder of VOC's the masks are left out, and the classes of TinyImageNet's validation images are those of the
    table beside them.
    """
    root = Path(name).expanduser()
    paths: list[str] = []
    class_of: dict[str, str] = {}  # path -> the path that would say its class
    masks: set[str] = set()
    others: Counter[str] = Counter()  # ending -> files that are no images
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link back to a folder above, or a second link to the same one
            inner.clear()
            continue
        visited.add(real)
        masks |= MASKS & set(inner)
        inner[:] = sorted((step for step in inner if not is_hidden(step) and step not in MASKS), key=natural_key)
        prefix = Path(folder).relative_to(root).as_posix()
        if ANNOTATIONS in names:
            class_of |= _annotated(Path(folder) / ANNOTATIONS, "" if prefix == "." else f"{prefix}/")
        for file in itertools.filterfalse(is_hidden, names):
            if is_picture(file, partial(read_head, os.path.join(folder, file), HEAD)):
                paths.append(file if prefix == "." else f"{prefix}/{file}")
            else:
                others[os.path.splitext(file)[1].lower()] += 1
    if not paths:
        ending = max((".tar", ".zip", ".parquet"), key=lambda kind: others[kind])
        if others[ending]:
            kind = "parquet files" if ending == ".parquet" else f"{ending[1:]} shards"
            pattern = root / f"*{ending}"
            raise DeepClusterError(f"{name} holds {kind}, not image files: name them as '{pattern}'")
        wrong = f"of {counted(others.total(), 'file')} in {name} none has the name of an image (.jpg, .png, .webp …)"
        wrong = wrong if others else f"the folder {name} is empty"
        raise DeepClusterError(f"{wrong}: give a folder that holds images, at any depth")
    unread = {ending: others[ending] for ending in UNREAD_PICTURES + CONTAINERS if others[ending]}
    if unread:
        found = ", ".join(f"{count:,} {ending}" for ending, count in unread.items())
        warn(f"{name} also holds what is not read here ({found}): convert or unpack it to have its pictures, too")
    if masks:
        warn(f"{name}: the masks in {' and '.join(sorted(masks))} are no photos and are left out")
    paths.sort(key=natural_key)
    return Files(name, root, paths, *labels_from_parents([class_of.get(path, path) for path in paths]))


ANNOTATIONS = "val_annotations.txt"
"""TinyImageNet's table of validation images: in each line name, class and box, divided by tabs."""


def _annotated(table: Path, prefix: str) -> dict[str, str]:
    """Path of each image of TinyImageNet's table -> the path that it would have among the training images."""
    advice = "put back the table as TinyImageNet has it, or rename it"
    rows = [line.split("\t") for line in read_text(table, advice=advice, names=True).splitlines()]
    return {f"{prefix}images/{row[0]}": f"{prefix}{row[1]}/images/{row[0]}" for row in rows if len(row) > 1}


PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABELS = ("label", "labels", "class", "class_name", "category", "target")
"""What columns of .csv files may be called, the likeliest first."""


def open_list_file(name: str) -> ImageSource:
    """A .txt file with one path a line, or a .csv file with a header; paths start at its folder.

    Of a .csv file, the first column named in `PATHS` is the path and the first in `LABELS` the label, in any case.
    """
    file = Path(name).expanduser()
    advice = "give a text file in UTF-8 with one image path a line"
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if file.suffix.lower() == ".csv":
        header, *rows = read_csv(file, advice=advice, names=True) or [[]]
        path_at, label_at = _column(header, PATHS), _column(header, LABELS)
        if path_at is None:
            raise DeepClusterError(f"{name} has no column `path`: its first line must read `path` or `path,label`")
        for number, row in enumerate(rows, 2):
            if "".join(row[len(header) :]).strip():
                raise DeepClusterError(
                    f"row {number:,} of {name} has {len(row)} fields and its header {len(header)}: "
                    "put texts that hold what divides fields into quotes"
                )
        table = [row for row in rows if len(row) > path_at and row[path_at].strip()]
        if lost := sum(1 for row in rows if "".join(row).strip()) - len(table):
            warn(f"{counted(lost, 'row')} of {name} without a path {'is' if lost == 1 else 'are'} left out")
        paths = [row[path_at] for row in table]
        others = [column.strip() for k, column in enumerate(header) if k not in (path_at, label_at)]
        if label_at is not None:
            labels, classes = some_labels([row[label_at] if len(row) > label_at else None for row in table])
            if meant := [column for column in others if column.casefold() in (*PATHS, *LABELS, "split")]:
                taken = f"{header[path_at].strip()!r} and {header[label_at].strip()!r}"
                warn(f"{name}: the columns {taken} are read; not used: {', '.join(meant)}")
        elif others:
            warn(f"{name} has no column `label`, so its images have no labels; not used: {', '.join(others)}")
    else:
        lines = read_text(file, advice=advice, names=True).replace("\r", "\n").split("\n")
        paths = [line for line in lines if line.strip()]
    if not paths:
        raise DeepClusterError(f"the list {name} names no image: write one path a line, relative to its folder")
    source = Files(name, file.parent, [_spelled(file.parent, path) for path in paths], labels, classes)
    if not any(os.path.exists(os.path.join(source.root, path)) for path in source.paths):
        raise DeepClusterError(
            f"of {counted(len(paths), 'file')} listed in {name} none exists, the first being {source.path(0)}: "
            "paths start at the folder of the list"
        )
    return source


def _spelled(root: Path, path: str) -> str:
    """A path of a list as the disk spells it, still relative if it was; spaces around it are its own if there is
    such a file."""
    if (plain := path.strip()) != path and not os.path.lexists(os.path.join(root, path)):
        path = plain
    found = find_on_disk(os.path.join(root, path))
    return found if os.path.isabs(path) else found.removeprefix(os.path.join(root, ""))


def open_paths(paths: Sequence[str]) -> ImageSource:
    """A list of image files, relative to the working folder."""
    if len(paths) == 1:
        return open_file(paths[0], "list")
    plain = [find_on_disk(os.path.expanduser(path)) for path in paths]
    if not any(os.path.isfile(path) for path in plain):
        raise DeepClusterError(f"none of the {len(plain)} image files given exists, the first being {plain[0]}")
    return Files("list", Path.cwd(), plain)


def open_file(path: str, name: str | None = None) -> ImageSource:
    """A single image file, relative to the working folder."""
    source = Files(name or path, Path.cwd(), [os.path.expanduser(path)])
    try:
        source.read(0)
    except BadImage as error:
        raise DeepClusterError(
            f"{path} cannot be read as an image ({error}): "
            "give an image, a folder, a .tar, .zip, .json, .npy, .txt or .csv"
        ) from None
    return source


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """Where the first of these names stands in a header."""
    plain = [column.strip().casefold() for column in header]
    return next((plain.index(name) for name in names if name in plain), None)

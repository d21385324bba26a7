"""Which images are relevant to which query: queries, their boxes, and sets of images.

Read from the MATLAB files of the data sets, from the names of Holidays, or made from groups of images of one thing.
This file knows neither networks nor rankings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deepcluster.data.source import ImageSource
from deepcluster.errors import DeepClusterError, counted
from deepcluster.reading import judged

Sets = tuple[np.ndarray, ...]
"""For each query int64 indices into the names."""
Measures = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Suffix of the score's name -> sets that are relevant, sets that are ignored."""

REVISITED: Measures = {
    "_easy": (("easy",), ("hard", "junk")),
    "_medium": (("easy", "hard"), ("junk",)),
    "_hard": (("hard",), ("easy", "junk")),
}
"""Radenović et al., CVPR 2018, §3.3."""


@dataclass(frozen=True)
class GroundTruth:
    """Q queries in a database of N images."""

    name: str  # of the data set
    kind: str  # "classic" (Oxford5k, Paris6k), "revisited", "holidays" or "groups"
    names: tuple[str, ...]  # N, of files without folder and suffix; for groups, the paths of the source
    queries: tuple[str, ...]  # Q names of the same form, which may be in the database or not
    # (Q, 4) float64, left, top, right and bottom of the object in each query's image, in pixels; None = whole images
    boxes: np.ndarray | None
    sets: dict[str, Sets]  # name of a set -> for each query the indices into `names`

    @property
    def measures(self) -> Measures:
        """What is scored, by suffix of the score's name."""
        return REVISITED if self.kind == "revisited" else {"": (("ok",), ("junk",))}

    @property
    def ignores_own_image(self) -> bool:
        """Whether a query is not searched in its own image; by tradition it is in Oxford5k and Paris6k."""
        return self.kind in ("holidays", "groups")

    def subset(self, keep: np.ndarray, ask: np.ndarray) -> GroundTruth:
        """The same for the images `keep` (N,) bool and the queries `ask` (Q,) bool."""
        number = np.cumsum(keep) - 1
        asked = np.flatnonzero(ask)
        return replace(
            self,
            names=tuple(name for name, kept in zip(self.names, keep, strict=True) if kept),
            queries=tuple(self.queries[query] for query in asked),
            boxes=None if self.boxes is None else self.boxes[asked],
            sets={
                grade: tuple(number[sets[query][keep[sets[query]]]] for query in asked)
                for grade, sets in self.sets.items()
            },
        )

    def union(self, sets: Sequence[str], query: int) -> np.ndarray:
        """(M,) int64 indices of a query in any of these sets."""
        return np.concatenate([self.sets[name][query] for name in sets])


def read_ground_truth(file: str | Path) -> GroundTruth:
    """Reads gnd_oxford5k.mat, gnd_paris6k.mat, gnd_roxford5k.mat, gnd_rparis6k.mat or gnd_holidays.mat;
    DeepClusterError for a pickle, which is never opened, and for what is damaged or something else."""
    file = Path(file)
    if file.suffix in (".pkl", ".pickle"):
        raise DeepClusterError(
            f"{file} is a pickle, which could run any program and is not opened: give {file.with_suffix('.mat').name},"
            " which is published with it and holds the same."
        )
    from scipy.io import loadmat

    advice = (
        "give a complete gnd_oxford5k.mat, gnd_paris6k.mat, gnd_roxford5k.mat, gnd_rparis6k.mat or gnd_holidays.mat."
    )
    with judged(file, advice):
        truth = _from_matlab(file.stem.removeprefix("gnd_"), loadmat(file))
        _check(truth)
    return truth


def _from_matlab(name: str, found: dict[str, Any]) -> GroundTruth:
    gnd = found["gnd"].reshape(-1)
    fields = gnd.dtype.names or ()

    def texts(cells: np.ndarray) -> tuple[str, ...]:
        return tuple(stem(str(cell.item())) for cell in cells.reshape(-1))

    def sets(*grades: str) -> dict[str, Sets]:  # MATLAB counts from one
        return {
            grade: tuple(np.unique(cell.reshape(-1).astype(np.int64)) - 1 for cell in gnd[grade]) for grade in grades
        }

    if "feature_name" in found:
        names, queries = texts(found["feature_name"]), texts(found["query_list"][:, 0])
        return GroundTruth(name, "holidays", names, queries, None, sets("ok", "junk"))
    names, boxes = texts(found["imlist"]), np.stack([box.reshape(4) for box in gnd["bbx"]]).astype(np.float64)
    if "easy" in fields:
        return GroundTruth(name, "revisited", names, texts(found["qimlist"]), boxes, sets("easy", "hard", "junk"))
    queries = tuple(names[int(index) - 1] for index in found["qidx"].reshape(-1))
    return GroundTruth(name, "classic", names, queries, boxes, sets("ok", "junk"))


def _check(truth: GroundTruth) -> None:
    """Raises: ValueError."""
    if not truth.queries or len(set(truth.names)) < len(truth.names):
        raise ValueError("it has no query, or a name twice")
    for grade, sets in truth.sets.items():
        if len(sets) != len(truth.queries):
            raise ValueError(f"{len(sets)} sets {grade} for {len(truth.queries)} queries")
        for indices in sets:
            if len(indices) and not 0 <= indices.min() <= indices.max() < len(truth.names):
                raise ValueError(f"a set {grade} names an image beyond the {len(truth.names)}")
    boxes = truth.boxes
    if boxes is not None and not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError("a box is empty")


def holidays_by_name(source: ImageSource) -> GroundTruth:
    """The Holidays set by its rule: images 1234xx show one place, and 123400 is the query (Jégou et al., ECCV 2008);
    DeepClusterError for other names, and where no place has a query and another image."""
    names = sorted(stem(source.path(row)) for row in range(len(source)))
    strange = next((name for name in names if not re.fullmatch(r"\d{6}", name)), None)
    if strange is not None:
        raise DeepClusterError(
            f"{source.name} is not the Holidays set, whose images are named like 123400.jpg and not {strange}: give"
            " --ground-truth a file or --group a pattern."
        )
    places = [rows for rows in _by_key(name[:4] for name in names).values() if names[rows[0]].endswith("00")]
    if not places:
        raise DeepClusterError(
            f"{source.name} holds no query of Holidays (a name that ends in 00) with another image of its place: give"
            " the complete set."
        )
    sets = {"ok": tuple(rows[1:] for rows in places), "junk": tuple(rows[:1] for rows in places)}
    return GroundTruth("holidays", "holidays", tuple(names), tuple(names[rows[0]] for rows in places), None, sets)


def groups(source: ImageSource, pattern: str | None = None) -> GroundTruth:
    """Every image as a query among all others; those of its group are relevant.

    Args:
        source: any images; without a pattern its labels, such as one folder for each thing, are the groups.
        pattern: a regular expression that is searched in the path; the group is what its first parenthesis
            matches, or all of the match. Images without a match belong to no group, and are distractors.

    Raises:
        DeepClusterError: the pattern is invalid, there are no labels, or no group has two images.
    """
    paths = tuple(source.path(row) for row in range(len(source)))
    group = _by_labels(source) if pattern is None else _by_pattern(paths, pattern)
    members = _by_key(group)
    queries = [index for index, key in enumerate(group) if key in members]
    if not queries:
        how = f"by {pattern!r}" if pattern is not None else "by label"
        example = f", the first of which is {paths[0]}" if paths else ""
        raise DeepClusterError(
            f"No two of the {counted(len(paths), 'image')} of {source.name}{example}, belong together {how}: give"
            " --group a pattern whose parenthesis matches the same text for images of the same thing."
        )
    if len(members) == 1 and len(queries) == len(paths):
        raise DeepClusterError(
            f"All images of {source.name} belong to one group, so everything found would be right: give images of two"
            " groups or more."
        )
    sets = {
        "ok": tuple(members[str(group[index])] for index in queries),
        "junk": tuple(np.array([index]) for index in queries),
    }
    return GroundTruth(source.name, "groups", paths, tuple(paths[index] for index in queries), None, sets)


def _by_key(keys: Iterable[str | None]) -> dict[str, np.ndarray]:
    """Key -> the positions that have it, for keys of at least two positions."""
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if key is not None:
            members.setdefault(key, []).append(index)
    return {key: np.array(rows) for key, rows in members.items() if len(rows) > 1}


def _by_labels(source: ImageSource) -> list[str | None]:
    if source.labels is None or not (source.labels >= 0).any():
        raise DeepClusterError(
            f"Nothing says which images of {source.name} show the same thing: give --ground-truth a gnd_....mat,"
            r" --group a pattern such as 'obj(\d+)__', or a source with one folder for each thing."
        )
    return [str(label) if label >= 0 else None for label in source.labels.tolist()]


def _by_pattern(paths: Sequence[str], pattern: str) -> list[str | None]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DeepClusterError(
            rf"--group {pattern!r} is not a regular expression ({error}): give one such as 'obj(\d+)__'."
        ) from error
    found = [expression.search(path) for path in paths]
    return [None if match is None else match[1 if expression.groups else 0] for match in found]


def locate_images(truth: GroundTruth, source: ImageSource) -> tuple[np.ndarray, np.ndarray]:
    """Where the images and queries of the ground truth are, by the names of their files in whatever folder: (N,) and
    (Q,) int64 indices of the source, -1 = missing. DeepClusterError where a query is missing, or a name is there
    twice."""
    if truth.kind == "groups":
        number = {path: row for row, path in enumerate(truth.names)}
        return np.arange(len(truth.names)), np.array([number[path] for path in truth.queries])
    wanted = {*truth.names, *truth.queries}
    place: dict[str, int] = {}
    for row in range(len(source)):
        name = stem(source.path(row))
        if name in place:
            first = source.path(place[name])
            raise DeepClusterError(
                f"{source.name} holds the image {name} of {truth.name} twice, as {first} and {source.path(row)}: remove"
                " one of them."
            )
        if name in wanted:
            place[name] = row
    missing = [name for name in truth.queries if name not in place]
    if missing:
        raise DeepClusterError(
            f"{len(missing)} of {counted(len(truth.queries), 'query')} of {truth.name}"
            f" {'is' if len(missing) == 1 else 'are'} not in {source.name}, the first being {missing[0]}: give --data"
            " the complete set, its files named as in the ground truth."
        )
    rows = [np.array([place.get(name, -1) for name in names]) for names in (truth.names, truth.queries)]
    return rows[0], rows[1]


def stem(path: str) -> str:
    """The name of a file without folder and suffix."""
    return PurePosixPath(path.replace("\\", "/")).stem

"""The clusters in their current state for the page: table, members by distance, nearest clusters, outliers.

Everything is an array of N or K numbers, so that a page of a million images takes milliseconds. This file does not
know images, requests, or where edits are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deepcluster.data.naming import natural_key
from deepcluster.errors import DeepClusterError
from deepcluster.explore.groups import Groups
from deepcluster.explore.vectors import Vectors
from deepcluster.features.knn import nearest_rows
from deepcluster.visualize.clusters import main_classes

SORTS = ("size", "distance", "purity", "name", "number", "label")
SAMPLE = 20_000
"""Members of a changed cluster from which its center is computed."""


@dataclass(frozen=True)
class Table:
    """G groups that have images, by number; -1 comes first where some images are in none.

    Attributes:
        number: (G,) int64.
        size: (G,) int64.
        distance: (G,) float32 mean distance to the center, NaN = unknown.
        label: (G,) int64 most frequent class, -1 = none.
        purity: (G,) float32 share of the labelled images that have it, NaN = unknown.
    """

    number: np.ndarray
    size: np.ndarray
    distance: np.ndarray
    label: np.ndarray
    purity: np.ndarray

    @cached_property
    def row(self) -> dict[int, int]:
        """Group -> its row."""
        return {int(number): row for row, number in enumerate(self.number)}


class Catalog:
    """Clusters with their edits, distances and labels.

    Args:
        groups: who is where.
        distance: (N,) float32 to the center of the cluster that was found, NaN = unknown; None = all unknown.
        centroids: gives the (K, P) centers; asked for when they are first needed.

    Attributes:
        vectors: with them the centers of changed clusters are exact; `refresh` after they are set.
        version: another number after every change; pages ask by it whether to look again.
        own: (N,) float32 distance of each image to the center of its group now.
    """

    def __init__(self, groups: Groups, distance: np.ndarray | None, centroids: Callable[[], np.ndarray]) -> None:
        self.groups = groups
        unknown = np.full(len(groups), np.nan, np.float32)
        self.distance = unknown if distance is None else np.asarray(distance, np.float32)
        self.own = self.distance.copy()
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] = ()
        self.vectors: Vectors | None = None
        self.version = 0
        self._centroids = centroids
        self._moved: dict[int, np.ndarray | None] = {}
        self._cache: dict[str, tuple[int, Any]] = {}

    def set_labels(self, labels: np.ndarray | None, classes: tuple[str, ...]) -> None:
        """Take (N,) labels, -1 = none, for purity and for search."""
        if labels is not None and len(labels) == len(self.groups) and (np.asarray(labels) >= 0).any():
            self.labels, self.classes = np.asarray(labels, np.int64), classes
        self.version += 1

    def refresh(self) -> None:
        """Measure again all clusters that are not as they were found."""
        changed = self.groups.group != self.groups.original
        self.update(set(self.groups.group[changed].tolist()) | set(self.groups.original[changed].tolist()))

    def update(self, groups: set[int]) -> None:
        """Measure again clusters whose images have changed, all of them in one pass over the images."""
        self.version += 1
        numbers = np.asarray(sorted(groups - {-1}), np.int64)
        if not len(numbers):
            return
        members, slot = self._members_of(numbers)
        stays = self.groups.original[members] == numbers[slot]
        size, stayed = (np.bincount(one, minlength=len(numbers)) for one in (slot, slot[stays]))
        was = np.bincount(_slots(self.groups.original, numbers) + 1, minlength=len(numbers) + 1)[1:]
        as_found = (stayed == size) & (size == was)
        self.own[members] = self.distance[members]
        ends = np.cumsum(size)
        for place, number in enumerate(numbers.tolist()):
            self._moved.pop(number, None)
            if not as_found[place]:
                self._moved[number] = self._measure(members[ends[place] - size[place] : ends[place]])
        if self.vectors is not None:
            bad = self.vectors.bad
            home = _slots(self.groups.group[bad], numbers)
            self.own[bad[(home >= 0) & ~as_found[home]]] = np.nan

    def _members_of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M,) images of the groups `numbers`, by group and then ascending, and the index of each one's group."""
        slot = _slots(self.groups.group, numbers)
        members = np.flatnonzero(slot >= 0)
        members = members[np.argsort(slot[members], kind="stable")]
        return members, slot[members]

    def table(self) -> Table:
        """All groups that have images."""
        found: Table = self._cached("table", self._count)
        return found

    def _cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once for each version."""
        if self._cache.get(name, (None,))[0] != self.version:
            self._cache[name] = (self.version, compute())
        return self._cache[name][1]

    def rows(
        self,
        *,
        sort: str = "size",
        descending: bool = True,
        search: str = "",
        hidden: bool = False,
        part: slice = slice(None),
    ) -> dict[str, Any]:
        """A part of the table.

        Args:
            sort: one of `SORTS`; a DeepClusterError otherwise.
            search: words that number, name or main class must hold, whatever their case.
        """
        table = self.table()
        chosen = np.flatnonzero(hidden | ~self.groups.is_hidden(table.number))
        words = search.casefold().split()
        if words:
            about = zip(table.number[chosen].tolist(), table.label[chosen].tolist(), strict=True)
            texts = [f"{one} {self.groups.name(one)} {self.class_name(label) or ''}".casefold() for one, label in about]
            chosen = chosen[[all(word in text for word in words) for text in texts]]
        ordered = self._order(table, chosen, sort, descending)
        return {
            "total": len(chosen),
            "all": len(table.number),
            "rows": [self.row(int(table.number[row])) for row in ordered[part]],
        }

    def row(self, group: int) -> dict[str, Any]:
        """One group for the page.

        Raises:
            DeepClusterError: it has no images.
        """
        table = self.table()
        row = self._row(group)
        label = int(table.label[row])
        return {
            "id": group,
            "name": self.groups.name(group),
            "named": group in self.groups.names,
            "size": int(table.size[row]),
            "distance": json_number(table.distance[row]),
            "label": self.class_name(label),
            "purity": json_number(table.purity[row]),
            "hidden": group in self.groups.hidden,
            "edited": group in self._moved,
        }

    def members(self, group: int, *, farthest: bool = False) -> np.ndarray:
        """(M,) images of a group by distance to its center; unknown distances come last."""
        self._row(group)
        members = self.groups.members(group)
        own = self.own[members]
        return members[np.argsort(-own if farthest else own, kind="stable")]

    def nearest(self, groups: list[int], count: int = 8) -> dict[int, list[tuple[int, float]]]:
        """The groups whose centers are nearest to those of `groups`, nearest first, with the distance; hidden ones are
        left out."""
        numbers, centers = self._cached("centers", self._visible_centers)
        found: dict[int, list[tuple[int, float]]] = {group: [] for group in groups}
        asked = np.asarray([group for group in groups if group >= 0], np.int64)
        if not len(asked) or not len(numbers):
            return found
        position, apart = nearest_rows(centers, min(count + 1, len(numbers)), queries=self._centers(asked))
        for group, near, squared in zip(asked.tolist(), numbers[position], apart, strict=True):
            others = [(int(one), float(np.sqrt(far))) for one, far in zip(near, squared, strict=True) if one != group]
            found[group] = others[:count]
        return found

    def _visible_centers(self) -> tuple[np.ndarray, np.ndarray]:
        """(M,) groups that are not hidden, and their (M, P) centers."""
        numbers = self.table().number
        numbers = numbers[(numbers >= 0) & ~self.groups.is_hidden(numbers)]
        return numbers, self._centers(numbers)

    def cover(self, group: int) -> int:
        """The image that represents a group: the one nearest to its center."""
        return int(self._cached("covers", self._covers)[self._row(group)])

    def _covers(self) -> np.ndarray:
        """(G,) int64, the image nearest to the center of each group, found for all of them in one pass."""
        numbers = self.table().number
        order = np.argsort(self.own, kind="stable")[::-1]  # the nearest is written last, what is unknown first
        first = np.zeros(len(numbers), np.int64)
        first[np.searchsorted(numbers, self.groups.group[order])] = order
        return first

    def outliers(self) -> tuple[np.ndarray, np.ndarray]:
        """(M,) images by how far from their center they are for their cluster, farthest first, and their scores.

        The score is the distance over the cluster's mean distance; clusters of one image, and hidden ones, have none.
        """
        table = self.table()
        usable = (table.size > 2) & (table.number >= 0) & ~self.groups.is_hidden(table.number)
        mean = np.where(usable, table.distance, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = self.own / mean[np.searchsorted(table.number, self.groups.group)]
        known = np.flatnonzero(np.isfinite(score))
        known = known[np.argsort(-score[known], kind="stable")]
        return known, score[known]

    def image(self, index: int) -> dict[str, Any]:
        """One image for the page."""
        group = int(self.groups.group[index])
        return {
            "id": index,
            "cluster": group,
            "distance": json_number(self.own[index]),
            "label": self.class_name(int(self.labels[index])) if self.labels is not None else None,
            "selected": bool(self.groups.selected[index]),
        }

    def classes_in(self, group: int, most: int = 6) -> list[dict[str, Any]]:
        """The most frequent classes of a group, with their shares; none without labels."""
        if self.labels is None:
            return []
        labels = self.labels[self.groups.members(group)]
        counts = np.bincount(labels[labels >= 0])
        best = [int(k) for k in np.argsort(-counts, kind="stable")[:most] if counts[k]]
        total = max(int(counts.sum()), 1)
        return [{"label": self.class_name(k), "share": round(float(counts[k] / total), 4)} for k in best]

    def class_name(self, label: int) -> str | None:
        """A class in words; None where there is none."""
        if label < 0:
            return None
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    def current_group(self, cluster: int, vector: np.ndarray) -> int:
        """The group that a new image of the found `cluster`, at (P,) `vector`, belongs to after all edits."""
        now = np.unique(self.groups.group[self.groups.original == cluster])
        now = now[now >= 0]
        return int(now[np.linalg.norm(self._centers(now) - vector, axis=1).argmin()]) if len(now) else cluster

    def _row(self, group: int) -> int:
        found = self.table().row.get(group)
        if found is None:
            raise DeepClusterError(f"There is no cluster {group} with images in it: choose one of the list.")
        return found

    def _count(self) -> Table:
        group = self.groups.group + 1  # -1 gets a place
        counts, known = np.bincount(group), np.isfinite(self.own)
        number = np.flatnonzero(counts)
        with np.errstate(invalid="ignore"):
            distance = np.bincount(group, np.where(known, self.own, 0)) / np.bincount(group, known)
        labels = np.full(len(self.groups), -1) if self.labels is None else self.labels
        main = (column[number - 1] for column in main_classes(self.groups.group, labels, len(counts)))
        return Table(number - 1, counts[number], distance[number].astype(np.float32), *main)

    def _order(self, table: Table, chosen: np.ndarray, sort: str, descending: bool) -> list[int]:
        """Rows `chosen` of the table in order; what is unknown comes last either way."""
        if sort not in SORTS:
            raise DeepClusterError(f"There is no order by {sort!r}: choose one of {', '.join(SORTS)}.")
        values: list[Any]
        if sort == "name":
            values = list(map(self.groups.name, table.number.tolist()))
        else:
            values = (
                list(map(self.class_name, table.label.tolist())) if sort == "label" else getattr(table, sort).tolist()
            )
        keys: dict[int, Any] = {}
        for row in chosen.tolist():
            value = values[row]
            if value is not None and value == value:  # NaN is unknown too
                keys[row] = natural_key(value) if isinstance(value, str) else value
        known = sorted(keys, key=keys.__getitem__, reverse=descending)
        return known + [row for row in chosen.tolist() if row not in keys]

    def _centers(self, numbers: np.ndarray) -> np.ndarray:
        """(M, P) centers of groups."""
        centroids = self._centroids()
        found = np.empty((len(numbers), centroids.shape[1]), np.float32)
        plain = (numbers < len(centroids)) & ~np.isin(numbers, list(self._moved))
        found[plain] = centroids[numbers[plain]]
        unknown = []
        for place in np.flatnonzero(~plain):
            center = self._moved.get(int(numbers[place]))
            if center is None:
                unknown.append(place)
            else:
                found[place] = center
        if unknown:
            found[unknown] = self._mixed(numbers[unknown], centroids)
        return found

    def _mixed(self, numbers: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """(M, P) centers of groups from the (K, P) centers that their images had at first."""
        from scipy.sparse import csr_matrix

        order = np.argsort(numbers)
        members, slot = self._members_of(numbers[order])
        first = self.groups.original[members]
        fine = (first >= 0) & (first < len(centroids))
        ones = np.ones(int(fine.sum()), np.float32)
        # Images of the same group and the same origin are added up: as many terms as pairs of these are left.
        pairs = csr_matrix((ones, (order[slot[fine]], first[fine])), shape=(len(numbers), len(centroids)))
        total = np.asarray(pairs.sum(1))
        result: np.ndarray = np.asarray(pairs @ centroids) / np.maximum(total, 1)
        return result

    def _measure(self, members: np.ndarray) -> np.ndarray | None:
        """The center of a changed group by its vectors, to which its images' distances are taken; None without."""
        if self.vectors is None or not len(members):
            return None
        step = max(1, len(members) // SAMPLE)
        center: np.ndarray = np.asarray(self.vectors.rows[members[::step]]).mean(0)
        for start in range(0, len(members), 65536):
            part = members[start : start + 65536]
            self.own[part] = np.linalg.norm(self.vectors.rows[part] - center, axis=1)
        return center


def _slots(group: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The place of each of N groups in ascending `numbers`; -1 = it is none of them."""
    table = np.full(max(int(group.max(initial=-1)), int(numbers.max(initial=-1))) + 2, -1, np.int64)
    table[numbers] = np.arange(len(numbers))
    result: np.ndarray = table[group]  # a group of -1 finds the last place, which stays -1
    return result


def json_number(value: Any) -> float | None:
    """A number with four decimals; None for NaN and infinity, which JSON does not have."""
    return round(float(value), 4) if np.isfinite(value) else None

"""The clusters in their current state for the page: table, members by distance, nearest clusters, outliers.

Everything is an array of N or K numbers, so that a page of a million images takes milliseconds. This file does not
know images, requests, or where edits are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from scipy.sparse import csr_array

from deepcluster.data.naming import natural_key
from deepcluster.errors import DeepClusterError
from deepcluster.explore.groups import Groups
from deepcluster.explore.table import Table, count
from deepcluster.explore.vectors import BLOCK, Vectors
from deepcluster.features.knn import nearest_rows
from deepcluster.visualize.clustered_images import class_name, mean_distances
from deepcluster.visualize.clusters import NAMING, clarity, clearness, named_by

T = TypeVar("T")
SORTS = ("clear", "size", "distance", "purity", "name", "number", "label")
SAMPLE = 20_000
"""Members of a changed cluster from which its center is computed."""


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
        group, original, numbers = self.groups.group, self.groups.original, sorted(groups - {-1})
        was = np.bincount(original + 1, minlength=max(numbers, default=-1) + 2)[1:]
        members = np.flatnonzero(np.isin(group, numbers))
        members = members[np.argsort(group[members], kind="stable")]
        self.own[members] = self.distance[members]
        parts = np.split(members, np.searchsorted(group[members], numbers[1:]))
        for number, part in zip(numbers, parts, strict=False):
            self._moved.pop(number, None)
            as_found = len(part) == was[number] and (original[part] == number).all()
            if len(part) and not as_found:
                self._moved[number] = self._measure(part)
        if self.vectors is not None:
            bad = self.vectors.bad
            self.own[bad[np.isin(self.groups.group[bad], list(self._moved))]] = np.nan

    def table(self) -> Table:
        """All groups that have images."""
        return self._cached("table", lambda: count(self.groups.group, self.own, self.labels))

    def _cached(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed once for each version."""
        if self._cache.get(name, (None,))[0] != self.version:
            self._cache[name] = (self.version, compute())
        found: T = self._cache[name][1]
        return found

    def rows(
        self,
        *,
        sort: str = "clear",
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
            texts = [f"{one} {self.name(one)} {self.class_name(label) or ''}".casefold() for one, label in about]
            chosen = chosen[[all(word in text for word in words) for text in texts]]
        chosen = chosen[np.argsort(-table.size[chosen], kind="stable")]  # of equal ones the larger comes first
        ordered = self._order(table, chosen, sort, descending)
        return {
            "total": len(chosen),
            "all": len(table.number),
            "clusters": int((table.number[chosen] >= 0).sum()),  # without the images that are in none
            "all_clusters": int((table.number >= 0).sum()),
            "rows": [self.row(int(table.number[row])) for row in ordered[part]],
        }

    def row(self, group: int) -> dict[str, Any]:
        """One group for the page; a DeepClusterError where it has no images."""
        table, row = self.table(), self._row(group)
        return {
            "id": group,
            "name": self.name(group),
            "given": self.groups.names.get(group, ""),
            "size": int(table.size[row]),
            "distance": json_number(table.distance[row]),
            "clear": clearness(self.clear()[row]),
            "label": self.class_name(int(table.label[row])),
            "purity": json_number(table.purity[row]),
            "hidden": group in self.groups.hidden,
            "edited": group in self._moved,
        }

    def name(self, group: int) -> str:
        """What a group is called: as a person has named it, else by the class of half of its images, else by number."""
        if group not in self.groups.names and group >= 0:
            table, row = self.table(), self._row(group)
            if table.purity[row] >= NAMING:
                return named_by(self.class_name(int(table.label[row])) or "")
        return self.groups.name(group)

    def clear(self) -> np.ndarray:
        """(G,) float32, how clear each group of the table is, see `clarity`; NaN = hidden, or unknown."""
        return self._cached("clear", self._clear)

    def _clear(self) -> np.ndarray:
        table, (numbers, centers) = self.table(), self._cached("centers", self._visible_centers)
        found = np.full((len(table.number), centers.shape[1]), np.nan, np.float32)
        found[np.searchsorted(table.number, numbers)] = centers
        return clarity(table.size, table.distance, found)

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
        """(M,) images that are farther from their center than their cluster's images are on average, by more than two
        standard deviations of those distances, and their scores, the highest first.

        The score is the distance over the cluster's mean distance; hidden clusters have no outliers.
        """
        table = self.table()
        usable = (table.number >= 0) & ~self.groups.is_hidden(table.number)
        place = np.searchsorted(table.number, self.groups.group)
        mean = np.where(usable, table.distance, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = self.own / mean[place]
            spread = np.sqrt(mean_distances(place, (score - 1) ** 2, len(mean)))
        found = np.flatnonzero(score > 1 + 2 * spread[place])
        found = found[np.argsort(-score[found], kind="stable")]
        return found, score[found]

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
        return class_name(self.classes, label) if label >= 0 else None

    def current_group(self, cluster: int, vector: np.ndarray) -> int:
        """The group that a new image of the found `cluster`, at (P,) `vector`, belongs to after all edits."""
        now = np.unique(self.groups.group[self.groups.original == cluster])
        now = now[now >= 0]
        return int(now[np.linalg.norm(self._centers(now) - vector, axis=1).argmin()]) if len(now) else cluster

    def _row(self, group: int) -> int:
        number = self.table().number
        row = int(np.searchsorted(number, group))
        if row == len(number) or number[row] != group:
            raise DeepClusterError(f"There is no cluster {group} with images in it: choose one of the list.")
        return row

    def _order(self, table: Table, chosen: np.ndarray, sort: str, descending: bool) -> list[int]:
        """Rows `chosen` of the table in order; what is unknown comes last either way."""
        if sort not in SORTS:
            raise DeepClusterError(f"There is no order by {sort!r}: choose one of {', '.join(SORTS)}.")
        rows = chosen.tolist()
        column = getattr(table, "number" if sort == "name" else sort) if sort != "clear" else self.clear()
        if sort == "clear":  # those that are of one class come before all others
            column = column + 2 * (table.purity >= NAMING)
        values: list[Any] = column[chosen].tolist()
        if sort in ("name", "label"):
            words = map(self.name if sort == "name" else self.class_name, values)
            values = [None if word is None else natural_key(word) for word in words]
        known = {row: value for row, value in zip(rows, values, strict=True) if value is not None and value == value}
        return sorted(known, key=known.__getitem__, reverse=descending) + [row for row in rows if row not in known]

    def _centers(self, numbers: np.ndarray) -> np.ndarray:
        """(M, P) centers of groups."""
        centroids = self._centroids()
        found = np.zeros((len(numbers), centroids.shape[1]), np.float32)
        as_found = numbers < len(centroids)
        found[as_found] = centroids[numbers[as_found]]
        moved = np.flatnonzero(np.isin(numbers, list(self._moved)))
        if self.vectors is None and len(moved):
            found[moved] = self._mixed(numbers[moved])
        else:
            for place in moved:
                found[place] = self._moved[int(numbers[place])]
        return found

    def _mixed(self, numbers: np.ndarray) -> np.ndarray:
        """(M, P), for each of the groups the mean of the centers that its images had at first."""
        centroids = self._centroids()
        order = np.sort(numbers)
        first = self.groups.original
        known = np.isin(self.groups.group, numbers) & (first >= 0) & (first < len(centroids))
        place = np.searchsorted(order, self.groups.group[known])
        shape = (len(numbers), len(centroids))
        counts = csr_array((np.ones(len(place), np.float32), (place, first[known])), shape=shape)
        mixed: np.ndarray = counts @ centroids / np.maximum(counts.sum(1), 1)[:, None]
        return mixed[np.searchsorted(order, numbers)]

    def _measure(self, members: np.ndarray) -> np.ndarray | None:
        """The (P,) center of a changed group by its images' vectors, to which their distances are then taken; None
        without vectors: edits and names need no model, and the center is mixed from those at first when asked for."""
        if self.vectors is None:
            return None
        step = max(1, len(members) // SAMPLE)
        center: np.ndarray = np.asarray(self.vectors.rows[members[::step]]).mean(0)
        for start in range(0, len(members), BLOCK):
            part = members[start : start + BLOCK]
            self.own[part] = np.linalg.norm(self.vectors.rows[part] - center, axis=1)
        return center


def json_number(value: Any) -> float | None:
    """A number with four decimals; None for NaN and infinity, which JSON does not have."""
    return round(float(value), 4) if np.isfinite(value) else None

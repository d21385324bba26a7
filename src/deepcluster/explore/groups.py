"""Clusters that a person edits: every edit is a patch, and every patch has an inverse.

This file knows numbers and names only; it does not know where edits are stored or requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepcluster.errors import DeepClusterError, counted

NAME_LENGTH = 200
"""Characters of a name at most."""
NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass
class Patch:
    """What an edit sets of `Groups`: indices (M,) of images and their new values (M,), or new values by group; a name
    that is None is taken away, and `after` is the new `next`, None = as before."""

    group: tuple[np.ndarray, np.ndarray] = NOTHING
    selected: tuple[np.ndarray, np.ndarray] = NOTHING
    names: dict[int, str | None] = field(default_factory=dict)
    hidden: dict[int, bool] = field(default_factory=dict)
    after: int | None = None


class Groups:
    """N images in groups with names, some of them hidden, some images selected.

    Args:
        assignment: (N,) integers, the groups as they were found; -1 = none. Never written to.

    Attributes:
        original: that assignment.
        group: (N,) int64, the group of each image now.
        selected: (N,) bool.
        names: group -> name given by a person.
        hidden: groups that are not shown.
        next: the number that the next new group will get.
        touched: groups whose images the last patch changed.
    """

    def __init__(self, assignment: np.ndarray) -> None:
        self.original = np.asarray(assignment)
        self.group = self.original.astype(np.int64)
        self.selected = np.zeros(len(self.group), bool)
        self.names: dict[int, str] = {}
        self.hidden: set[int] = set()
        self.next = int(self.group.max(initial=-1)) + 1
        self.touched: set[int] = set()

    def __len__(self) -> int:
        return len(self.group)

    def members(self, group: int) -> np.ndarray:
        """(M,) int64 ascending, the images of a group."""
        return np.flatnonzero(self.group == group)

    def is_hidden(self, groups: np.ndarray) -> np.ndarray:
        """Which of these groups are hidden."""
        return np.isin(groups, list(self.hidden))

    def name(self, group: int) -> str:
        """What a group is called."""
        return self.names.get(group) or (f"cluster {group}" if group >= 0 else "no cluster")

    def apply(self, patch: Patch) -> Patch:
        """Apply `patch` and return its inverse."""
        (moved, into), (marked, on) = patch.group, patch.selected
        back = Patch(
            (moved, self.group[moved]),
            (marked, self.selected[marked]),
            {group: self.names.get(group) for group in patch.names},
            {group: group in self.hidden for group in patch.hidden},
            self.next,
        )
        self.touched = set(np.union1d(self.group[moved], into).tolist()) - {-1}
        self.group[moved], self.selected[marked] = into, on
        self.names = {group: name for group, name in (self.names | patch.names).items() if name is not None}
        hidden = dict.fromkeys(self.hidden, True) | patch.hidden
        self.hidden = {group for group, is_hidden in hidden.items() if is_hidden}
        self.next = self.next if patch.after is None else patch.after
        return back

    def plan(self, edit: Mapping[str, Any]) -> Patch:
        """The patch that an edit means for the current groups.

        Args:
            edit: `{"op": "rename", "cluster", "name"}`, `{"op": "merge", "clusters", "into"}`,
                `{"op": "split", "cluster", "parts": [[images that leave], ...]}`, `{"op": "hide", "clusters",
                "hidden"}`, `{"op": "move", "images", "to"}` (`to` null = a new cluster; images may be "selection"),
                or `{"op": "select", "images" or "cluster" or "all", "on"}`.

        Raises:
            DeepClusterError: it is none of these, or does not fit the clusters there are.
        """
        match edit.get("op"):
            case "rename":
                return Patch(names={self._existing(edit.get("cluster")): _name(edit.get("name"))})
            case "hide":
                return Patch(hidden=dict.fromkeys(self._several(edit.get("clusters")), _truth(edit.get("hidden"))))
            case "merge":
                return self._merge(edit)
            case "split":
                return self._split(edit)
            case "move":
                return self._move(edit)
            case "select":
                return self._select(edit)
            case other:
                ops = "rename, merge, split, hide, move, select"
                raise DeepClusterError(f"There is no edit {other!r}: choose one of {ops}.")

    def _merge(self, edit: Mapping[str, Any]) -> Patch:
        clusters = self._several(edit.get("clusters"))
        if len(clusters) < 2:
            raise DeepClusterError("A merge needs at least two clusters: mark more of them.")
        into = edit.get("into")
        if into is None:
            into = clusters[int(np.argmax(self._sizes()[clusters]))]
        if type(into) is not int or into not in clusters:
            raise DeepClusterError(f"Cluster {into!r} is not among those to be merged: choose one of them to stay.")
        images = np.flatnonzero(np.isin(self.group, [one for one in clusters if one != into]))
        patch = self._moved(images, into)
        if into in self.hidden and not self.hidden.issuperset(clusters):
            patch.hidden[into] = False  # a visible cluster does not become hidden
        if into not in self.names:
            named = [self.names[one] for one in clusters if one in self.names]
            patch.names |= {into: named[0]} if named else {}
        return patch

    def _split(self, edit: Mapping[str, Any]) -> Patch:
        cluster = self._existing(edit.get("cluster"))
        parts = edit.get("parts")
        if not isinstance(parts, list) or not parts:
            raise DeepClusterError(f"A split of cluster {cluster} needs the images of each new part.")
        images = [self._images(part) for part in parts]
        leaving = np.concatenate(images)
        if any(not len(part) for part in images) or len(np.unique(leaving)) != len(leaving):
            raise DeepClusterError("The parts of a split must hold images, each of them once.")
        if (self.group[leaving] != cluster).any() or len(leaving) >= (self.group == cluster).sum():
            raise DeepClusterError(f"A split of cluster {cluster} must leave it some images and take no others.")
        values = np.concatenate([np.full(len(part), self.next + k) for k, part in enumerate(images)])
        new = range(self.next, self.next + len(images))
        hidden = dict.fromkeys(new, True) if cluster in self.hidden else {}
        return Patch((leaving, values), hidden=hidden, after=self.next + len(images))

    def _move(self, edit: Mapping[str, Any]) -> Patch:
        images = self._images(edit.get("images"))
        if not len(images):
            raise DeepClusterError("No image is selected to be moved.")
        to = edit.get("to")
        target = self.next if to is None else self._existing(to)
        patch = self._moved(images, target)
        patch.after = self.next + 1 if to is None else None
        return patch

    def _moved(self, images: np.ndarray, into: int) -> Patch:
        """Images go `into` a group; groups that become empty are neither named nor hidden."""
        leaving = np.bincount(self.group[images] + 1, minlength=self.next + 1)[1:]
        empty = set(np.flatnonzero((leaving > 0) & (leaving == self._sizes())).tolist()) - {into}
        names: dict[int, str | None] = dict.fromkeys(empty & self.names.keys())
        return Patch(
            (images, np.full(len(images), into)), names=names, hidden=dict.fromkeys(empty & self.hidden, False)
        )

    def _sizes(self) -> np.ndarray:
        """(next,) int64, the images of each group."""
        return np.bincount(self.group + 1, minlength=self.next + 1)[1:]

    def _select(self, edit: Mapping[str, Any]) -> Patch:
        on = _truth(edit.get("on"))
        if edit.get("all") is True:
            images = np.flatnonzero(self.selected != on)
        elif "cluster" in edit:
            images = self.members(self._existing(edit["cluster"]))
        else:
            images = self._images(edit.get("images"))
        return Patch(selected=(images, np.full(len(images), on)))

    def _existing(self, cluster: Any, sizes: np.ndarray | None = None) -> int:
        sizes = self._sizes() if sizes is None else sizes
        if type(cluster) is not int or not 0 <= cluster < len(sizes) or not sizes[cluster]:
            raise DeepClusterError(f"There is no cluster {cluster!r} with images in it: choose one of the list.")
        return cluster

    def _several(self, clusters: Any) -> list[int]:
        if not isinstance(clusters, list) or not clusters:
            raise DeepClusterError("No cluster is marked: mark at least one.")
        sizes = self._sizes()
        return list(dict.fromkeys(self._existing(one, sizes) for one in clusters))

    def _images(self, images: Any) -> np.ndarray:
        """(M,) int64 indices, each once, ascending."""
        if images == "selection":
            return np.flatnonzero(self.selected)
        if not isinstance(images, list) or not all(type(one) is int for one in images):
            raise DeepClusterError("Images are chosen by a list of their indices.")
        if images and not 0 <= min(images) <= max(images) < len(self):
            raise DeepClusterError(f"Some of these images do not exist: indices are 0 to {len(self) - 1}.")
        return np.unique(np.asarray(images, np.int64))


def describe(edit: Mapping[str, Any]) -> str:
    """An edit in a few words, for the undo button and the log."""
    op = edit.get("op")
    if op == "rename":
        return f"rename cluster {edit['cluster']}"
    if op == "merge":
        return f"merge {len(edit['clusters'])} clusters"
    if op == "split":
        return f"split cluster {edit['cluster']} in {len(edit['parts']) + 1}"
    if op == "hide":
        return f"{'hide' if edit['hidden'] else 'show'} {counted(len(edit['clusters']), 'cluster')}"
    verb = "move" if op == "move" else "select" if edit.get("on") else "deselect"
    images = edit.get("images")
    if images == "selection":
        return f"{verb} the selection"
    return f"{verb} {counted(len(images), 'image')}" if isinstance(images, list) else f"{verb} images"


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise DeepClusterError("This edit needs true or false.")
    return value


def _name(value: Any) -> str | None:
    """A name of one line; None where it is empty."""
    if not isinstance(value, str):
        raise DeepClusterError("A name must be text.")
    name = " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())
    if len(name) > NAME_LENGTH:
        raise DeepClusterError(f"A name has at most {NAME_LENGTH} characters; this one has {len(name)}.")
    return name or None

"""Contact sheets: the images of a cluster, sorted by distance to its center, the largest clusters first.

Only the images on the sheet are decoded. This file does not know how a page of them is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.data.cache import load_pixels
from deepcluster.engine.subject import short_side
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.grid import grid, thumbnail
from deepcluster.visualize.groups import same_length
from deepcluster.visualize.page import line

if TYPE_CHECKING:
    from deepcluster.data.source import ImageSource
    from deepcluster.engine.run import Run
    from deepcluster.visualize.groups import Groups

Read = Callable[[int], "np.ndarray | None"]


@dataclass(frozen=True)
class Contact:
    """What one cluster looks like.

    Attributes:
        cluster: its number.
        size: images in it.
        nearest: indices of the images nearest to the center, nearest first.
        farthest: indices of those farthest from it, farthest last; none of them in `nearest`.
        distance: mean Euclidean distance to the center; None where it is not known.
        label: its most frequent class; None without labels.
        purity: share of its labelled images that have that class.
    """

    cluster: int
    size: int
    nearest: np.ndarray
    farthest: np.ndarray
    distance: float | None = None
    label: str | None = None
    purity: float | None = None


def contact(
    cluster: int,
    assignment: np.ndarray,
    distance: np.ndarray | None = None,
    *,
    images: int = 12,
    farthest: int = 0,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> Contact:
    """Choose the images that stand for one cluster.

    Args:
        assignment: (N,) int64, -1 = none.
        distance: (N,) distance of each image to its own center, NaN = unknown and sorted last; None = in
            the order of the source.
        images: how many nearest ones at most.
        farthest: how many farthest ones at most, of those left.
        labels: (N,) int64, -1 = none.
        classes: names of the labels.
    """
    members = np.flatnonzero(assignment == cluster)
    mean = None
    if distance is not None:
        order = np.argsort(distance[members], kind="stable")  # NaN goes last
        members = members[order]
        known = distance[members][np.isfinite(distance[members])]
        mean = float(known.mean()) if len(known) else None
    near = members[:images]
    far = members[max(len(members) - farthest, len(near)) :]
    name, share = majority(labels[members], classes) if labels is not None else (None, None)
    return Contact(cluster, len(members), near, far, mean, name, share)


def majority(labels: np.ndarray, classes: Sequence[str]) -> tuple[str | None, float | None]:
    """The most frequent class of some images and its share; (None, None) where none has a label."""
    known = labels[labels >= 0]
    if not len(known):
        return None, None
    counts = np.bincount(known)
    top = int(counts.argmax())
    return (classes[top] if top < len(classes) else f"class {top}"), float(counts[top] / len(known))


def largest(assignment: np.ndarray, k: int) -> np.ndarray:
    """(K,) int64 numbers of all clusters, largest first, then by number."""
    sizes = np.bincount(assignment[assignment >= 0], minlength=k)
    return np.argsort(-sizes, kind="stable")


def reader(source: ImageSource, side: int) -> Read:
    """`read(index)` for thumbnails of `side` pixels; it gives None for an image that cannot be read any more."""

    def read(index: int) -> np.ndarray | None:
        try:
            return source.read(int(index), side)
        except (BadImage, DeepClusterError, OSError, ValueError):
            return None

    return read


def sheet(shown: Sequence[Contact], read: Read, *, side: int = 96, columns: int = 12) -> np.ndarray:
    """(H, W, 3) uint8 page with a heading and the images of every cluster, the farthest after a gap.

    Args:
        read: gives the pixels of an index, or None.
        side: of a thumbnail, in pixels.
        columns: thumbnails in a row.
    """
    width = columns * (side + 4) + 4
    parts = []
    for one in shown:
        for heading, indices in ((describe(one), one.nearest), ("farthest from the center", one.farthest)):
            thumbs = [_missing(side) if (image := read(i)) is None else thumbnail(image, side) for i in indices]
            if thumbs:
                parts.append(np.pad(line(heading, width), ((6, 0), (0, 0), (0, 0)), constant_values=255))
                rows = grid(thumbs, columns)
                parts.append(np.pad(rows, ((0, 6), (0, width - rows.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(parts) if parts else np.full((side, width, 3), 255, dtype=np.uint8)


def describe(one: Contact) -> str:
    """A cluster in one line: number, size, and what else is known of it."""
    words = [f"cluster {one.cluster}", f"{one.size:,} image{'s' * (one.size != 1)}"]
    if one.label is not None and one.purity is not None:
        words.append(f"{one.label} {one.purity:.0%}")
    if one.distance is not None:
        words.append(f"mean distance {one.distance:.2f}")
    return "  ·  ".join(words)


def distances(run: Run, source: ImageSource, clusters: np.ndarray) -> np.ndarray | None:
    """(N,) distance of the images in `clusters` to their own center, NaN for all others; None if unknown.

    A run that kept its distances is asked; otherwise the images of those clusters, and no others, are put
    through the network.
    """
    kept = getattr(run, "distance", None)
    if kept is not None:
        return np.asarray(kept)
    assignment = np.asarray(run.assignment)
    members = np.flatnonzero(np.isin(assignment, clusters) & (assignment >= 0))
    found = np.full(len(assignment), np.nan, dtype=np.float32)
    if not len(members):
        return found
    # no cache: these few images are decoded once, and no file is left behind
    pixels = load_pixels(Part(source, members), short_side=short_side(run.image_size), cache_gb=0.0)
    features = run.features(pixels)
    whole = np.isfinite(features).all(axis=1)
    place = run.embed(features[whole])
    centers = np.asarray(run.centroids.cpu())[assignment[members[whole]]]
    found[members[whole]] = np.linalg.norm(place - centers, axis=1)
    return found


class Part:
    """Some images of a source, as a source of its own: image i of it is image `index[i]` of the whole."""

    def __init__(self, source: ImageSource, index: np.ndarray) -> None:
        self.source, self.index = source, index
        self.name = f"{len(index)} images of {source.name}"
        self.labels = None if source.labels is None else source.labels[index]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.index)

    def path(self, index: int) -> str:
        return self.source.path(int(self.index[index]))

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        return self.source.read(int(self.index[index]), short_side)

    def fingerprint(self) -> str:
        import hashlib

        whole = self.source.fingerprint().encode()
        return hashlib.sha256(whole + np.ascontiguousarray(self.index, dtype="<i8").tobytes()).hexdigest()


def clusters_of(
    run: Run,
    *,
    clusters: int = 24,
    images: int = 12,
    farthest: int = 0,
    side: int = 96,
    only: Sequence[int] | None = None,
    groups: Groups | None = None,
    folder: Path | None = None,
) -> list[Path]:
    """Draw `RUN/pictures/clusters.png`, one row for each of the largest clusters; return its path.

    Args:
        clusters: how many of the largest.
        images: nearest images of each.
        farthest: farthest images of each.
        side: of a thumbnail, in pixels.
        only: these clusters instead, each on a page of its own, `cluster-0007.png`.
        groups: other images with their clusters; None = those the run was trained on.
        folder: where to draw; None = `RUN/pictures`.

    Raises:
        DeepClusterError: the training images are gone, or there is no such cluster.
    """
    k = len(run.centroids)
    wrong = [number for number in only or () if not 0 <= number < k]
    if wrong:
        raise DeepClusterError(f"There is no cluster {wrong[0]} in {run.folder}; its clusters are 0 to {k - 1}.")
    source = run.source() if groups is None else groups.source
    assignment = np.asarray(run.assignment) if groups is None else groups.cluster
    if groups is None:
        same_length(run, source, assignment)
    numbers = largest(assignment, k)[:clusters] if only is None else np.asarray(only)
    distance = distances(run, source, numbers) if groups is None else groups.distance
    known: dict[str, Any] = {"labels": source.labels, "classes": source.classes}
    shown = [
        contact(int(number), assignment, distance, images=images, farthest=farthest, **known) for number in numbers
    ]
    read, folder = reader(source, side), folder or Path(run.folder) / "pictures"
    columns = max(1, min(images, 12))
    if only is None:
        return [style.save(sheet(shown, read, side=side, columns=columns), folder / "clusters.png")]
    return [
        style.save(sheet([one], read, side=side, columns=columns), folder / f"cluster-{one.cluster:04d}.png")
        for one in shown
    ]


def _missing(side: int) -> np.ndarray:
    """A pale square in place of an image that is gone."""
    return np.full((side, side, 3), 232, dtype=np.uint8)

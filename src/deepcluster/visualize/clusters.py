"""Clusters as contact sheets: the images of each, sorted by distance to its center, the largest clusters first.

Only the images on the sheet are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.features.knn import nearest_rows
from deepcluster.visualize.clustered_images import (
    SILENT,
    ClusteredImages,
    check_clusters,
    class_name,
    clustered_images,
    reader,
    require_clusters,
)
from deepcluster.visualize.images import WHITE, grid, padded, stacked, text_line, thumbnail
from deepcluster.visualize.style import Pictures

SIDE = 96
"""Pixels of a thumbnail."""
NAMING = 0.5
"""Share of a class from which on it names a cluster."""


def draw_clusters(
    run: Run,
    *,
    data: Any = None,
    clusters: int = 24,
    only: tuple[int, ...] = (),
    images: int = 12,
    farthest: int = 0,
    screen: Screen = SILENT,
) -> Pictures:
    """Clusters as contact sheets, the images nearest to the center first.

    Args:
        data: images to draw, new ones too, which are assigned to the run's clusters; by default those it was trained
            on.
        clusters: how many, the largest first.
        only: these clusters instead, each on a page of its own.
        images: images of each that are nearest to its center.
        farthest: images of each that are farthest from it.
    """
    check_clusters(run, only, len(require_clusters(run, "clusters").centroids))
    shown = clustered_images(run, "clusters", data, screen)
    numbers = np.array(only, np.int64) if only else largest(shown.sizes)[:clusters]
    contacts = [contact(shown, int(number), images=images, farthest=farthest) for number in numbers]
    read, columns = reader(shown.source, SIDE), max(1, min(images, 12))
    if not only:
        return {"clusters": contact_sheet(contacts, read, columns=columns)}
    return {f"cluster-{each.cluster:04d}": contact_sheet([each], read, columns=columns) for each in contacts}


@dataclass
class Contact:
    """What one cluster looks like.

    Attributes:
        nearest, farthest: indices of the images nearest to the center, nearest first, and of others that are farthest
            from it, farthest last.
        distance: mean Euclidean distance to the center; None where it is not known.
        label, purity: its most frequent class and the share of that among its labelled images; None without labels.
    """

    cluster: int
    size: int
    nearest: np.ndarray
    farthest: np.ndarray
    distance: float | None = None
    label: str | None = None
    purity: float | None = None

    @property
    def caption(self) -> str:
        """The cluster in one line: number, size, and what else is known of it."""
        words = [f"cluster {self.cluster}", f"{self.size:,} image{'s' * (self.size != 1)}"]
        if self.label is not None:
            words.append(f"{self.label} {self.purity:.0%}")
        if self.distance is not None:
            words.append(f"mean distance {self.distance:.2f}")
        return "  ·  ".join(words)


def largest(sizes: np.ndarray) -> np.ndarray:
    """(K,) int64 numbers of all clusters of (K,) sizes, largest first, then by number."""
    return np.argsort(-sizes, kind="stable")


def contact(shown: ClusteredImages, cluster: int, *, images: int = 12, farthest: int = 0) -> Contact:
    """Choose the images that represent one cluster; those with unknown distances come last, in the source's order.

    Args:
        images: how many nearest ones at most.
        farthest: how many farthest ones at most, of those left.
    """
    members = np.flatnonzero(shown.cluster == cluster)
    members = members[np.argsort(shown.distance[members], kind="stable")]
    known = shown.distance[members][np.isfinite(shown.distance[members])]
    near, rest = members[:images], members[images:]
    found = Contact(cluster, len(members), near, rest[max(len(rest) - farthest, 0) :])
    if len(known):
        found.distance = float(known.mean())
    if (labels := shown.labels) is not None:
        label, purity = main_classes(np.zeros(len(members), np.int64), labels[members], 1)
        if label[0] >= 0:
            found.label, found.purity = class_name(shown.source.classes, label[0]), float(purity[0])
    return found


def main_classes(cluster: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent class of each of K clusters, (K,) int64, -1 = none, and its share of the cluster's labelled
    images, (K,) float32, NaN = unknown; of equally frequent ones the first.

    Args:
        cluster: (N,), -1 = none.
        labels: (N,) int64, -1 = none.
    """
    label, purity = np.full(k, -1, np.int64), np.full(k, np.nan, np.float32)
    known = (labels >= 0) & (cluster >= 0)
    classes = int(labels.max(initial=0)) + 1
    pair, count = np.unique(cluster[known] * classes + labels[known], return_counts=True)
    row, name = pair // classes, pair % classes
    order = np.lexsort((-name, count, row))  # the most frequent is written last
    label[row[order]] = name[order]
    purity[row[order]] = count[order] / np.bincount(row, count)[row[order]]
    return label, purity


def clarity(sizes: np.ndarray, distance: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """How clear each of G clusters is, (G,) float32 from 0 to 1: near 1, its images are far closer to its center than
    to the next one; at 0, as close to both. A silhouette by centers alone; NaN = unknown.

    The next center is squared as far from the images as from their own center and this one from it, together. Centers
    of few images lie apart by chance, which is taken off: small clusters would all be clear otherwise.

    Args:
        sizes: (G,) images; the own center is compared as if an image had not helped to place it, and one alone is at 0.
        distance: (G,) mean distance to the center, NaN = unknown.
        centers: (G, P), of which rows of empty clusters, or of NaN, are left out.
    """
    apart, there = np.full(len(sizes), np.nan), (sizes > 0) & np.isfinite(centers).all(1)
    own = distance * sizes / np.maximum(sizes - 1, 1)
    if there.sum() > 1:
        next_one, squares = (found[:, 0] for found in nearest_rows(centers[there], 1))
        chance = np.nan_to_num(own[there]) ** 2 / sizes[there]
        apart[there] = np.maximum(squares - chance - chance[next_one], 0)
    with np.errstate(invalid="ignore"):
        found = np.where((sizes > 1) & (apart > 0), 1 - own / np.sqrt(own**2 + apart), 0.0)
    return np.where(np.isfinite(distance) & np.isfinite(apart), found, np.nan).astype(np.float32)


def named_by(label: str) -> str:
    """What a cluster is called by its class; a number alone would be taken for the cluster's own."""
    return f"class {label}" if label.isdigit() else label


def clearness(clarity: float) -> str:
    """A `clarity` in a word; none where it is not known."""
    if not np.isfinite(clarity):
        return ""
    return "clear" if clarity >= 0.45 else "fairly clear" if clarity >= 0.3 else "near another"


def contact_sheet(
    contacts: Sequence[Contact], read: Callable[[int], np.ndarray | None], *, columns: int = 12
) -> np.ndarray:
    """(H, W, 3) uint8 page with a heading and `columns` images a row of every cluster, and of its farthest ones."""
    width = columns * (SIDE + 4) + 4
    parts = []
    for each in contacts:
        for heading, indices in ((each.caption, each.nearest), ("farthest from the center", each.farthest)):
            if len(indices):
                rows = grid([thumbnail(read(index), SIDE) for index in indices], columns)
                parts += [padded(text_line(heading, width), top=6), padded(rows, bottom=6)]
    return stacked(parts, gap=0) if parts else np.full((SIDE, width, 3), WHITE, np.uint8)

"""A balanced sample of uncurated images by their features: what `deepcluster curate` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.clustering.curation import LevelsFromBelow, balanced_sample, check_levels, default_levels, sizes_of
from deepcluster.clustering.duplicates import repeats
from deepcluster.clustering.tables import cluster_table
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import SMALL, load_pixels
from deepcluster.data.source import ImageSource
from deepcluster.engine import run_folder
from deepcluster.engine.describe import FEATURES, WIDTH, described, open_describer, reduced_width
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import short_side
from deepcluster.errors import DeepClusterError, counted
from deepcluster.features.table import open_table
from deepcluster.io import scratch_folder


@dataclass(frozen=True)
class Curation:
    """Which of N images are taken."""

    index: np.ndarray  # (M,) int64, ascending
    cluster: np.ndarray  # (N,) int64 cluster of the lowest level, -1 = a bad image
    duplicate: np.ndarray  # (N,) bool, near-duplicates of an earlier image, which are not taken
    # of each level from the highest down, images per cluster without near-duplicates, before and after
    levels: list[tuple[np.ndarray, np.ndarray]]

    def report(self) -> dict[str, Any]:
        """Numbers of images, and the smallest, median and largest clusters of each level before and after."""
        return {
            "images": len(self.cluster),
            "bad": int((self.cluster < 0).sum()),
            "duplicates": int(self.duplicate.sum()),
            "taken": len(self.index),
            "levels": [
                {
                    "clusters": int((before > 0).sum()),
                    "before": _spread(before[before > 0]),
                    "after": _spread(after[before > 0]),
                }
                for before, after in self.levels
            ],
        }


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())}


def curate_features(
    table: Any,
    size: int,
    *,
    scratch: Path,
    clusters: Sequence[int] | None = None,
    duplicates: float = 0.98,
    resamplings: int = 10,
    seed: int = 0,
    bad: Sequence[int] | None = None,
    whiten: Whitening | None = None,
) -> Curation:
    """A balanced sample of the rows of a feature table (N, D), see `clustering.curation`.

    Args:
        size: how many to take.
        scratch: a folder for what is needed on the way.
        clusters: on each level, from the lowest up; None = `default_levels`.
        duplicates: cosine from which two images of a cluster are near-duplicates, of which the first stays; above 1 =
            all stay.
        resamplings, seed: as in `LevelsFromBelow`.
        bad: rows to leave out; None = those that are not finite.
        whiten: the embedding; None = PCA to 64 dimensions and unit length, as for `deepcluster cluster`.

    Raises:
        DeepClusterError: fewer images than are to be taken, or levels that cannot be.
    """
    check_size(size, len(table))
    if resamplings < 0:
        raise DeepClusterError(f"--resamplings is {resamplings}: give 0 or a larger number.")
    if not duplicates > 0:
        raise DeepClusterError(f"--duplicates is {duplicates}: give a cosine above 0, or a number above 1 to keep all.")
    embedded: Any = None

    def from_below(rows: np.ndarray) -> LevelsFromBelow:
        nonlocal embedded
        embedded = rows
        levels = default_levels(len(rows)) if clusters is None else clusters
        check_levels(levels, len(rows))
        return LevelsFromBelow(levels, resamplings=resamplings, seed=seed, scratch=scratch)

    embedding = whiten or Whitening(WIDTH, whiten=False)
    found = cluster_table(table, from_below, embedding=embedding, scratch=scratch, bad=bad)
    tree, good = found.clusterer, np.flatnonzero(found.assignment >= 0)
    duplicate = np.zeros(len(table), bool)
    duplicate[good] = repeats(embedded, found.assignment[good], duplicates)
    check_size(size, len(table), bad=len(table) - len(good), duplicates=int(duplicate.sum()))
    left = np.where(duplicate, -1, found.assignment)
    index = balanced_sample(size, left, tree.parents_, tree.clusters, seed=seed)
    both = (sizes_of(label, tree.parents_, tree.clusters) for label in (left, left[index]))
    return Curation(index, found.assignment, duplicate, list(zip(*both, strict=True))[::-1])


def check_size(size: int, images: int, *, bad: int = 0, duplicates: int = 0) -> None:
    """Raises DeepClusterError where there are fewer than `size` images, without bad ones and near-duplicates."""
    if not 1 <= size <= images - bad - duplicates:
        less = [f"{bad:,} cannot be decoded"] * (bad > 0) + [
            f"{duplicates:,} {'is a near-duplicate' if duplicates == 1 else 'are near-duplicates'}"
        ] * (duplicates > 0)
        but = f" ({' and '.join(less)})" if less else ""
        raise DeepClusterError(
            f"{counted(size, 'image')} cannot be taken of {images:,}{but}: give --size 1 to"
            f" {images - bad - duplicates}."
        )


def curate_images(
    source: ImageSource,
    size: int,
    folder: Path,
    *,
    backbone: str = "auto",
    image_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    screen: Screen | None = None,
    **how: Any,
) -> Curation:
    """The same of images, whose features are kept in `folder`: another call with the same network begins with them.

    Args:
        backbone, image_size, device: as in `cluster_images`.
        how: as in `curate_features`.

    Raises:
        DeepClusterError: as there, or `folder` holds features of other images or of another network.
        Interrupted: Ctrl-C or SIGTERM; the parts that are finished are kept.
    """
    screen = screen or Screen()
    check_size(size, len(source))
    name, subject = open_describer(source, folder, backbone, image_size=image_size, device=device, screen=screen)
    pixels = load_pixels(source, short_side=short_side(subject.image_size), cache_gb=SMALL / 1e9)
    with described(name, subject, pixels, folder, screen) as (bad, bar):  # one network for the samples of all seeds
        bar.describe("clustering")
        with scratch_folder(folder / FEATURES) as scratch:
            embedding = Whitening(reduced_width(subject), whiten=False)
            table = open_table(folder / FEATURES)[0]
            found = curate_features(table, size, scratch=scratch, seed=seed, bad=bad, whiten=embedding, **how)
    run_folder.tell_bad(pixels, screen)
    return found

"""A unit vector for every image, in the space of the centroids: computed once, kept in the run folder, memory-mapped.

They are written in parts, so that a killed job resumes, and then put into one file.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.engine.describe import FEATURES
from deepcluster.engine.model import MODEL
from deepcluster.errors import DeepClusterError
from deepcluster.explore.jobs import Job
from deepcluster.features.table import open_parts, write_parts
from deepcluster.io import write_array, write_json
from deepcluster.reading import MOST_ARCHIVE, read_bytes, read_json, read_npy

if TYPE_CHECKING:
    from deepcluster.engine.run import Run

PART = 16384
"""Images of a part: what a kill can cost."""
BLOCK = 65536
"""Rows read at a time."""


class Vectors:
    """(N, P) float32 unit rows, memory-mapped or not, one an image; rows of images that cannot be decoded are zero.

    Args:
        bad: indices of the images that cannot be decoded.
    """

    def __init__(self, rows: np.ndarray, bad: np.ndarray) -> None:
        self.rows = rows
        self.bad = np.asarray(bad, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def good(self) -> np.ndarray:
        """(M,) int64, the images that can be decoded."""
        return np.setdiff1d(np.arange(len(self)), self.bad)

    def nearest(self, vector: np.ndarray, count: int, but: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `count` images most similar to (P,) `vector`, exactly: (M,) indices and their (M,) cosine, falling.

        Args:
            but: an image that is left out, which the vector is of.
        """
        similarity = self.rows @ unit_rows(vector[None])[0]
        similarity[self.bad] = -np.inf
        if but is not None:
            similarity[but] = -np.inf
        best = np.argsort(-similarity, kind="stable")[:count]
        best = best[np.isfinite(similarity[best])]
        return best, similarity[best]


def identity(run: Run, fingerprint: str) -> str:
    """What vectors depend on, as a hex digest: the run's model and the images."""
    return digest(fingerprint, read_bytes(run.folder / MODEL, MOST_ARCHIVE))[:12]


def make(run: Run, source: ImageSource, folder: Path, fingerprint: str, job: Job) -> Vectors:
    """Vectors of all images of `source`, those of an earlier call if there are any.

    Args:
        folder: where they are kept.
        fingerprint: of the source.
        job: gets the progress, and may stop the computation; finished parts are kept.
    """
    mark = identity(run, fingerprint)
    parts, file = folder / f"vectors-{mark}", folder / f"vectors-{mark}.npy"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        found = Vectors(read_npy(file, advice="", mapped="r"), read_json(file.with_suffix(".json"), advice="")["bad"])
        if len(found) == len(source):
            return found
    for path in folder.glob("vectors-*"):  # of another model, from before the run was trained on
        if mark not in path.name:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    kept = _features_of(run, len(source), fingerprint)
    job.tell(0, len(source), "decoding images")
    pixels: Any = None if kept else run.pixels(source)
    done = 0

    def ahead(images: int) -> None:
        nonlocal done
        done += images
        job.tell(done, len(source), "computing features")

    def extract(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if kept:
            index = np.setdiff1d(rows, kept[1])
            features = kept[0][index]
        else:
            index, features = run.model.features(pixels, rows, device=run.device, check=ahead)
        width = run.centroids.shape[1]
        return index, run.embed(features) if len(features) else np.zeros((0, width), np.float32)

    about = {"weights": mark, "tap": None, "image_size": run.image_size, "source_fingerprint": fingerprint}
    many = max(1, -(-len(source) // PART))
    _, bad = write_parts(extract, len(source), parts, about, parts=many, skipped=ahead)
    table, _ = open_parts(parts)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(table), BLOCK):
            job.tell(start, len(table), "writing vectors")
            block = table[start : start + BLOCK]
            rows = unit_rows(np.nan_to_num(block))
            rows[~rows.any(1) & np.isfinite(block[:, 0]), 0] = 1  # images that are all alike have no other direction
            yield rows

    write_array(file, blocks(), len(table))
    write_json(file.with_suffix(".json"), {"bad": bad, "images": len(source)}, sealed=True)
    shutil.rmtree(parts, ignore_errors=True)
    return Vectors(read_npy(file, advice="", mapped="r", checked=False), np.asarray(bad, np.int64))


def _features_of(run: Run, images: int, fingerprint: str) -> tuple[Any, list[int]] | None:
    """The features that `cluster` left in the run folder, and the bad rows; None where they are of another network or
    of other images."""
    try:
        table, about = open_parts(run.folder / FEATURES)
    except (OSError, DeepClusterError):
        return None
    mine = (images, fingerprint, run.image_size, digest(run.backbone))
    same = mine == (len(table), *map(about.get, ("source_fingerprint", "image_size", "weights")))
    return (table, list(about["bad"])) if same else None


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """(M, P) float32 rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)

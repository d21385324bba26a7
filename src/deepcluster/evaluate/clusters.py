"""Do the clusters agree with labels nobody showed them? NMI, AMI, ARI, matched accuracy and purity.

Two questions, kept apart by the names of their scores: the run's own clusters (`nmi`, ...), and its
features clustered anew into any number of clusters (`k10_nmi`, ...). This file does not know how a
cluster comes about.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepcluster.clustering import scores
from deepcluster.clustering.kmeans import KMeans
from deepcluster.data.sources import open_images
from deepcluster.engine.log import Screen
from deepcluster.evaluate.labels import labels_of
from deepcluster.evaluate.result import Result
from deepcluster.records import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.engine.runs import Run


def score_assignment(assignment: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yield (name, fraction of 1) for N images that have both a cluster and a label.

    `nmi` has the geometric mean of the entropies below the line, as in arXiv 1807.05520 §4.1. `accuracy`
    matches clusters to classes one to one, by the Hungarian method; with more clusters than classes, every
    image of a cluster left over counts as wrong. `purity` gives each cluster its most frequent class, so it
    rises with the number of clusters by itself.

    Args:
        assignment: (N,) int64 cluster of each image; -1 = none, left out.
        labels: (N,) int64 class of each image; -1 = none, left out.
    """
    known = (assignment >= 0) & (labels >= 0)
    if not known.any():
        raise DeepClusterError("No image has both a cluster and a label: give --data a source with labels.")
    pair = assignment[known], labels[known]
    yield "nmi", float(scores.nmi(*pair))
    yield "ami", float(scores.ami(*pair))
    yield "ari", float(scores.ari(*pair))
    yield "accuracy", float(scores.accuracy(*pair))
    yield "purity", float(scores.purity(*pair))


def evaluate_clusters(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    k: int,
    draws: int = 1,
    seed: int = 0,
    n_init: int = 10,
    device: str | torch.device | None = None,
) -> list[dict[str, Any]]:
    """Cluster features anew into `k` clusters, once per draw, and score every draw against labels.

    Args:
        features: (N, D) float32, already in the space to cluster in; rows with NaN are left out.
        labels: (N,) int64, -1 = none; those images are clustered and not scored.
        k: number of clusters.
        draws: repetitions, with seeds `seed`, `seed + 1`, ...
        n_init: k-means++ starts of a draw; the one with the lowest objective counts.

    Returns:
        One mapping per draw: seed, k, inertia and the scores of `score_assignment`.

    Raises:
        DeepClusterError: fewer images than clusters.
    """
    whole = np.isfinite(features).all(axis=1)
    table = np.ascontiguousarray(features[whole], dtype=np.float32)
    if not 1 <= k <= len(table):
        raise DeepClusterError(f"{len(table)} images cannot be put into k={k} clusters: choose 1 to {len(table)}.")
    found = []
    for number in range(draws):
        kmeans = KMeans(
            k, init="k-means++", n_init=n_init, max_iter=100, tol=1e-4, random_state=seed + number, device=device
        ).fit(table)
        assignment = np.asarray(kmeans.labels_, dtype=np.int64)
        draw = {"seed": seed + number, "k": k, "inertia": float(kmeans.inertia_)}
        found.append(draw | dict(score_assignment(assignment, labels[whole])))
    return found


def clusters(
    run: Run,
    data: Any = None,
    *,
    k: int | str | None = None,
    draws: int = 1,
    seed: int = 0,
    n_init: int = 10,
    screen: Screen | None = None,
) -> Result:
    """Protocol `clusters`: a run's clusters of labelled images, and its features clustered anew.

    Args:
        run: a finished or stopped run.
        data: labelled images to score; None = the training images with the assignment training ended with.
        k: also cluster the run's whitened features into this many clusters; "classes" = as many as there
            are classes.
        draws: repetitions of that, each with its own seed; the scores are their mean and deviation.
        seed: of the first draw.
        n_init: k-means++ starts of a draw.
        screen: shows a bar while features are computed; None = silence.

    Raises:
        DeepClusterError: the images have no labels, or `k` does not fit them.
    """
    source = run.source() if data is None else open_images(data)
    labels = labels_of(source, "clusters")
    if draws < 1:
        raise DeepClusterError(f"draws={draws} is no number of repetitions: give 1 or more.")
    screen = screen or Screen(quiet=True)
    if data is None:
        own = np.asarray(run.assignment)
    else:
        with screen.bar("assigning", len(source)) as advance:
            own = run.assign(source, check=advance).cluster
    found = dict(score_assignment(own, labels))
    known = (own >= 0) & (labels >= 0)
    classes = len(np.unique(labels[labels >= 0]))
    settings: dict[str, Any] = {
        "data": source.name,
        "images": len(known),
        "images_scored": int(known.sum()),
        "classes": classes,
        "clusters": len(run.centroids),
        "clusters_used": len(np.unique(own[known])),
        "assignment": "as training left it" if data is None else "nearest centroid of the saved model",
        "nmi": "geometric mean of the two entropies",
        "accuracy": matching(len(run.centroids), classes),
    }
    if k is None:
        return Result("clusters", settings, found)

    count = _count(k, classes)
    with screen.bar("features", len(source)) as advance:
        features = run.features(source, check=advance)
    table = leading(run.embed(features), count)
    drawn = evaluate_clusters(table, labels, k=count, draws=draws, seed=seed, n_init=n_init)
    settings |= {
        "k": count,
        "draws": draws,
        "seed": seed,
        "anew": f"k-means++ on the {table.shape[1]} leading whitened directions, best of {n_init} starts,"
        f" mean of {draws} draws",
        f"k{count}_accuracy": matching(count, classes),
    }
    for name in found.copy():
        values = np.array([draw[name] for draw in drawn])
        found[f"k{count}_{name}"] = float(values.mean())
        if draws > 1:
            found[f"k{count}_{name}_std"] = float(values.std(ddof=1))
    return Result("clusters", settings, found, drawn)


def leading(whitened: np.ndarray, k: int) -> np.ndarray:
    """(N, P) whitened rows in their first k - 1 directions, L2-normalized again.

    The centers of k groups span k - 1 directions, and those of largest variance hold them; whitening weighs
    all others, which vary within the groups only, alike.
    """
    part = whitened[:, : max(2, k - 1)]
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)


def matching(clusters: int, classes: int) -> str:
    """The sentence that says what `accuracy` means for this many clusters and classes."""
    sentence = f"best one-to-one matching of {clusters:,} clusters and {classes:,} classes"
    if clusters > classes:
        sentence += "; images of clusters without a class count as wrong"
    elif clusters < classes:
        sentence += "; images of classes without a cluster count as wrong"
    return sentence


def _count(k: int | str, classes: int) -> int:
    if k == "classes":
        return classes
    try:
        return int(k)
    except ValueError:
        raise DeepClusterError(f"k={k!r} is no number of clusters: give a number, or 'classes'.") from None

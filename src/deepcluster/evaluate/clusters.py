"""Protocol `clusters`: agreement of clusters with labels, by NMI, AMI, ARI, matched accuracy and purity.

The names of the scores say what was clustered: `nmi`, ... are of the run's own clusters, `k10_nmi`, ... of its features
in a new clustering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from deepcluster.clustering import metrics
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.source import ImageSource
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError, counted
from deepcluster.evaluate.labels import LabeledSources, open_labeled
from deepcluster.evaluate.options import check_counts
from deepcluster.evaluate.result import Result, mean_and_std

SCORES = ("nmi", "ami", "ari", "accuracy", "purity")
"""Functions of `clustering.metrics`, of two (N,) integer arrays, which leave out what is -1 in either."""
WIDTH = 256
"""Directions that the features of a network without a whitening of its own are whitened to, as in the paper."""


def score_assignment(assignment: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Name -> fraction of 1, for N images that have both a cluster and a label.

    `nmi` divides by the geometric mean of the entropies, as in arXiv 1807.05520 §4.1. `accuracy`
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
    return {name: float(getattr(metrics, name)(assignment, labels)) for name in SCORES}


def evaluate_clusters(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    k: int,
    draws: int = 1,
    seed: int = 0,
    n_init: int = 10,
    test: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Clusters features into `k` clusters, once per draw, and scores every draw against labels.

    Args:
        features: (N, D) float32, already in the space to cluster in; rows with NaN are left out.
        labels: (N,) int64, -1 = none; those images are clustered and not scored.
        draws: repetitions, with seeds `seed`, `seed + 1`, ...
        n_init: k-means++ starts of a draw; the one with the lowest objective counts.
        test: (M, D) float32 in the same space, put to the nearest centers; rows with NaN are left out.
        test_labels: (M,) int64 class of each.

    Returns:
        One mapping per draw: seed, k, inertia, the scores of `score_assignment` and those of `score_test`.

    Raises:
        DeepClusterError: fewer images than clusters.
    """
    usable = np.isfinite(features).all(axis=1)
    table = np.ascontiguousarray(features[usable], dtype=np.float32)
    if not 1 <= k <= len(table):
        raise DeepClusterError(
            f"{counted(len(table), 'image')} cannot be put into k={k} clusters: choose 1 to {len(table)}."
        )
    options: dict[str, Any] = {"init": "k-means++", "n_init": n_init, "max_iter": 100, "tol": 1e-4}
    found = []
    for number in range(seed, seed + draws):
        kmeans = KMeans(k, **options, random_state=number).fit(table)
        own = np.asarray(kmeans.labels_, dtype=np.int64), labels[usable]
        draw = {"seed": number, "k": k, "inertia": float(kmeans.inertia_), **score_assignment(*own)}
        if test is not None and test_labels is not None:
            tested = np.isfinite(test).all(axis=1)
            nearest = np.asarray(kmeans.predict(np.ascontiguousarray(test[tested], np.float32)), np.int64)
            draw |= score_test(own, (nearest, test_labels[tested]))
        found.append(draw)
    return found


def clusters(
    subject: Any,
    data: Any = None,
    test: Any = None,
    *,
    k: int | Literal["classes"] | None = None,
    draws: int = 1,
    seed: int = 0,
    n_init: int = 10,
    screen: Screen | None = None,
    on_assignment: Callable[[np.ndarray, np.ndarray, Sequence[str]], object] = lambda assignment, labels, names: None,
) -> Result:
    """NMI, AMI, ARI, matched accuracy and purity of a run's clusters against labels that training never saw.

    A network without clusters of its own has its features clustered.

    Args:
        subject: a run, or any network; see `engine.subject`.
        data: labeled images to score; None = the images of the run, with the assignment at the end of training.
        test: labeled images that take no part in clustering or matching. None = all is compared on the same images.
        k: also cluster the whitened features into this many clusters; classes = as many as there are classes.
        draws: repetitions of that, each with its own seed; the scores are their mean and standard deviation.
        seed: seed of the first draw.
        n_init: k-means++ starts of a draw; the one with the lowest objective counts.
        screen: shows a bar while features are computed; None = silence.
        on_assignment: called with the run's clusters (N,), the classes (N,) and their names, for whoever draws them.

    Raises:
        DeepClusterError: the images have no labels, or `k` does not fit them.
    """
    check_counts(draws=draws)
    k = k if subject.clustered or k else "classes"
    if isinstance(k, str) and k != "classes":
        raise DeepClusterError(f"k={k!r} is not a number of clusters: give a number, or 'classes'.")
    images, screen = open_labeled(subject, data, test, "clusters"), screen or Screen(quiet=True)
    labels, names = images.labels, images.classes
    classes = len(np.unique(labels[labels >= 0]))
    found: dict[str, float] = {}
    settings: dict[str, Any] = {
        "data": images.source.name,
        "test": images.test.name if images.test else "none: clusters and labels are compared on the same images",
        "images": len(labels),
        "classes": classes,
        "nmi": "geometric mean of the two entropies",
    }
    details: dict[str, list[dict[str, Any]]] = {}

    def assigned(source: ImageSource) -> np.ndarray:
        with screen.bar("assigning", len(source)) as advance:
            cluster: np.ndarray = subject.assign(source, check=advance).cluster
        return cluster

    if subject.clustered:
        own = np.asarray(subject.assignment) if data is None else assigned(images.source)
        found |= score_assignment(own, labels)
        known = (own >= 0) & (labels >= 0)
        settings |= {
            "images_scored": int(known.sum()),
            "clusters": len(subject.centroids),
            "clusters_used": len(np.unique(own[known])),
            "assignment": "as training left it" if data is None else "nearest centroid of the saved model",
            "accuracy": matching(len(subject.centroids), classes),
        }
        details["classes"] = class_table(own, labels, names)
        on_assignment(own, labels, names)
        if images.test is not None and images.test_labels is not None:
            found |= score_test((own, labels), (assigned(images.test), images.test_labels))
    drawn: list[dict[str, Any]] = []
    if k is not None:
        count = classes if isinstance(k, str) else k
        table, tested = _features_to_cluster(subject, images, count, screen)
        options: dict[str, Any] = {"draws": draws, "seed": seed, "n_init": n_init}
        drawn = evaluate_clusters(table, labels, k=count, **options, test=tested, test_labels=images.test_labels)
        settings |= {
            "k": count,
            "draws": draws,
            "seed": seed,
            "k_means": f"k-means++ on the {table.shape[1]} leading whitened directions, best of {n_init} starts,"
            f" mean of {draws} draws",
            f"k{count}_accuracy": matching(count, classes),
        }
        scores = [{name: draw[name] for name in draw if name.removeprefix("test_") in SCORES} for draw in drawn]
        for name, value in mean_and_std(scores).items():
            found[f"test_k{count}_{name[5:]}" if name.startswith("test_") else f"k{count}_{name}"] = value
    if images.test is not None:
        settings["test_accuracy"] = "clusters stand for the classes that the other images match them with"
    return Result("clusters", settings, found, drawn, details)


def score_test(known: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """test_NAME -> fraction of 1, of (M,) clusters and (M,) classes of images that the clusters were not made from; by
    the (N,) and (N,) known ones a cluster stands for a class: one to one for `test_accuracy`, and for the most frequent
    class for `test_purity`."""
    scores = {f"test_{name}": value for name, value in score_assignment(*test).items()}
    pair = (test[0] >= 0) & (test[1] >= 0)
    cluster, label = test[0][pair], test[1][pair]
    for name, stands in zip(("accuracy", "purity"), _stands_for(*known), strict=True):
        right = [stands.get(int(one), -1) == int(truth) for one, truth in zip(cluster, label, strict=True)]
        scores[f"test_{name}"] = float(np.mean(right))
    return scores


def _stands_for(assignment: np.ndarray, labels: np.ndarray) -> tuple[dict[int, int], dict[int, int]]:
    """Cluster -> class: matched one to one, and by the most frequent class."""
    from scipy.optimize import linear_sum_assignment

    table, clusters, classes = _counts(assignment, labels)
    matched = zip(*linear_sum_assignment(-table), strict=True)
    one_to_one = {int(clusters[row]): int(classes[column]) for row, column in matched}
    return one_to_one, dict(zip(clusters.tolist(), classes[table.argmax(1)].tolist(), strict=True))


def _counts(assignment: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K', C') images by cluster and class, both as they occur, ascending, and their (K',) and (C',) numbers."""
    known = (assignment >= 0) & (labels >= 0)
    table: np.ndarray = metrics.contingency(assignment, labels).toarray()
    return table, np.unique(assignment[known]), np.unique(labels[known])


def class_table(assignment: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision and recall of each class when each cluster stands for its most frequent class: one row per class.

    Each row has `class`, `images`, `clusters` (that stand for it), `found` (share of its images that are in those),
    `pure` (share of the images in those that are of it; NaN without such a cluster) and `taken_for`, the class whose
    clusters have most of the images that were not found.
    """
    table, _, columns = _counts(assignment, labels)
    owner = table.argmax(1)
    stands = [table[owner == at].sum(0) for at in range(len(columns))]
    counts = np.stack(stands, axis=1)  # (class, class that the image's cluster stands for)
    rows = []
    for at, label in enumerate(columns):
        lost = np.where(np.arange(len(columns)) == at, 0, counts[at])
        inside = counts[:, at].sum()
        rows.append(
            {
                "class": names[label],
                "images": int(counts[at].sum()),
                "clusters": int((owner == at).sum()),
                "found": float(counts[at, at] / counts[at].sum()),
                "pure": float(counts[at, at] / inside) if inside else float("nan"),
                "taken_for": names[columns[lost.argmax()]] if lost.any() else "",
            }
        )
    return rows


def _features_to_cluster(
    subject: Any, images: LabeledSources, count: int, screen: Screen
) -> tuple[np.ndarray, np.ndarray | None]:
    """Whitened features of both sources; whitened as the run does, or, where it does not (ODC, a network alone), as the
    first source has it."""
    tables = []
    for source in filter(None, (images.source, images.test)):
        with screen.bar("features", len(source)) as advance:
            tables.append(subject.features(source, check=advance))
    embed: Callable[[np.ndarray], Any]
    if subject.clustered and subject.model.whitening is not None:
        embed = subject.embed
    else:
        usable = tables[0][np.isfinite(tables[0]).all(axis=1)]
        embed = Whitening(min(WIDTH, *usable.shape)).fit(usable).transform
    ready = [leading(np.asarray(embed(table)), count) for table in tables]
    return ready[0], ready[1] if images.test is not None else None


def leading(whitened: np.ndarray, k: int) -> np.ndarray:
    """(N, P) whitened rows in their first k - 1 directions, L2-normalized again.

    The centers of k groups span k - 1 directions, and those of largest variance hold them; whitening weighs
    all others, which vary within the groups only, alike.
    """
    part = whitened[:, : max(2, k - 1)]
    unit: np.ndarray = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return unit


def matching(clusters: int, classes: int) -> str:
    """The sentence that says what `accuracy` means for this many clusters and classes."""
    left = "clusters without a class" if clusters > classes else "classes without a cluster"
    wrong = f"; images of {left} count as wrong" if clusters != classes else ""
    return f"best one-to-one matching of {counted(clusters, 'cluster')} and {counted(classes, 'class')}{wrong}"

"""Protocol `knn`: the k nearest training images by cosine vote on a run's images; nothing is trained.

The search itself is `features/neighbors.py`. This file knows nothing of clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.open import open_images
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.labels import labels_alike, labels_of
from deepcluster.evaluate.result import Result
from deepcluster.features.neighbors import knn_predict, nearest, score_features, vote

__all__ = ["knn", "knn_predict", "nearest", "score_features", "vote"]

if TYPE_CHECKING:
    from deepcluster.data.cache import Pixels
    from deepcluster.engine.subject import Subject


def knn(
    run: Subject,
    data: Any = None,
    test: Any = None,
    *,
    k: Sequence[int] = (20,),
    tap: str | None = None,
    whitened: bool = False,
    temperature: float = 0.07,
    baseline: bool = False,
    device: str | torch.device | None = None,
    screen: Screen | None = None,
) -> Result:
    """Protocol `knn`: top-1 accuracy of the k nearest training images, by cosine of the backbone's output.

    Args:
        run: a run, or any network; see `engine.subject`.
        data: labelled images to look neighbors up in; None = the training images.
        test: labelled images to classify; None = each image of `data` by all the others.
        k: numbers of neighbors, such as (1, 5, 20, 200).
        tap: a layer to read instead of the output.
        whitened: use features after the run's whitening instead of raw ones.
        baseline: also score the same network as it was before training (`untrained_...`).
        device: where to search; None = where the run computes.
        screen: shows a bar while features are computed; None = silence.

    Raises:
        DeepClusterError: labels are missing, the classes differ, or there are fewer images than neighbors.
    """
    if tap is not None and whitened:
        raise DeepClusterError("The run's whitening fits the backbone's output alone: give either a tap or whitened.")
    counts = tuple(sorted(set(k)))
    if not counts or counts[0] < 1:
        raise DeepClusterError(f"k={tuple(k)} names no number of neighbors: give numbers from 1 up.")
    bank = run.source() if data is None else open_images(data)
    queries = None if test is None else open_images(test)
    if queries is None:
        labels = labels_of(bank, "knn")
        answers, classes = None, int(labels.max()) + 1
    else:
        labels, answers, classes = labels_alike(bank, queries, "knn")

    screen = screen or Screen(quiet=True)
    pixels = run.pixels(bank)
    asked = None if queries is None else run.pixels(queries)
    found: dict[str, float] = {}
    described: dict[str, Any] = {}
    networks = {"untrained_": run.untrained()} if baseline else {}
    for prefix, network in {"": run, **networks}.items():
        table, kept = _described(network, pixels, labels, tap, screen)
        tested, truth = (None, None) if asked is None else _described(network, asked, answers, tap, screen)
        if whitened:
            # a whitening fits one network: the untrained one gets its own, of the same width
            width = len(run.whitening.components)
            whitening = Whitening(width).fit(table) if prefix else run.whitening
            table = whitening.transform(table)
            tested = None if tested is None else whitening.transform(tested)
        pairs = score_features(
            table,
            kept,
            tested,
            truth,
            k=counts,
            classes=classes,
            temperature=temperature,
            device=device or run.device,
        )
        found |= {prefix + name: value for name, value in pairs}
        described = {"images_data": len(table), "images_test": len(table if tested is None else tested)}
        described["dim"] = table.shape[1]
    settings = {
        "data": bank.name,
        "test": "each image by all the others (leave one out)" if queries is None else queries.name,
        **described,
        "k": list(counts),
        "features": (tap or "output") + (", whitened by the run" if whitened else "") + ", L2-normalized",
        "votes": f"top1: softmax of cosine / {temperature:g}; majority_top1: one vote each",
        "temperature": temperature,
        "leave_one_out": queries is None,
    }
    if baseline:
        settings["untrained"] = "the same network with the weights it had before training"
    return Result("knn", settings, found)


def _described(
    run: Subject, pixels: Pixels, labels: np.ndarray | None, tap: str | None, screen: Screen
) -> tuple[np.ndarray, np.ndarray]:
    """(N', D) features and (N',) labels of the images that can be decoded and have a label."""
    assert labels is not None
    with screen.bar("features", len(pixels)) as advance:
        features = run.features(pixels, tap=tap, check=advance)
    usable = np.isfinite(features).all(axis=1) & (labels >= 0)
    if not usable.any():
        name = pixels.source.name
        raise DeepClusterError(f"No image of {name} can be decoded and has a label: give another source.")
    return features[usable], labels[usable]

"""Protocol `knn`: the k nearest training images vote on the class of an image; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import Pixels
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.labels import open_labeled
from deepcluster.evaluate.result import Result
from deepcluster.features.neighbors import score_features


def knn(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    k: Sequence[int] = (20,),
    temperature: float = 0.07,
    tap: str | None = None,
    whitened: bool = False,
    baseline: bool = False,
    device: str | torch.device | None = None,
    screen: Screen | None = None,
) -> Result:
    """Top-1 accuracy of the nearest training images, by cosine of the backbone's output.

    Args:
        subject: a run, or any network; see `engine.subject`.
        data: labeled images to look neighbors up in; None = the images of the run.
        test: labeled images to classify. None = each image of the data by all others.
        k: numbers of neighbors, such as 1 5 20 200.
        temperature: of the softmax of cosines that weighs the votes; the score with one vote each is given, too.
        tap: layer to read. None = the output.
        whitened: use the features after the run's whitening.
        baseline: also score the same network as it was before training.
        device: where to search; None = where the run computes.
        screen: shows a bar while features are computed; None = silence.

    Raises:
        DeepClusterError: labels are missing, the classes differ, or there are fewer images than neighbors.
    """
    if tap is not None and whitened:
        raise DeepClusterError("The run's whitening fits the backbone's output alone: give either a tap or whitened.")
    counts = tuple(sorted(set(k)))
    if not counts or counts[0] < 1:
        raise DeepClusterError(f"k={tuple(k)} is not a number of neighbors: give numbers from 1 up.")
    images, screen = open_labeled(subject, data, test, "knn"), screen or Screen(quiet=True)
    bank, queries = subject.pixels(images.source), None if images.test is None else subject.pixels(images.test)

    def labeled_features(network: Subject, pixels: Pixels, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N', D) features and (N',) labels of the images that can be decoded and have a label."""
        with screen.bar("features", len(pixels)) as advance:
            features = network.features(pixels, tap=tap, check=advance)
        usable = np.isfinite(features).all(axis=1) & (labels >= 0)
        if not usable.any():
            name = pixels.source.name
            raise DeepClusterError(f"No image of {name} can be decoded and has a label: give another source.")
        return features[usable], labels[usable]

    found: dict[str, float] = {}
    counted: dict[str, Any] = {}
    networks = {"untrained_": subject.untrained()} if baseline else {}
    for prefix, network in {"": subject, **networks}.items():
        table, known = labeled_features(network, bank, images.labels)
        tested, truth = None, None
        if queries is not None and images.test_labels is not None:
            tested, truth = labeled_features(network, queries, images.test_labels)
        if whitened:
            # a whitening fits one network: the untrained one gets its own, of the same width
            width = len(subject.whitening.components_)
            whitening = Whitening(width).fit(table) if prefix else subject.whitening
            table = whitening.transform(table)
            tested = None if tested is None else whitening.transform(tested)
        options: dict[str, Any] = {"k": counts, "classes": len(images.classes), "temperature": temperature}
        pairs = score_features(table, known, tested, truth, **options, device=device or subject.device)
        found |= {prefix + name: value for name, value in pairs}
        counted = {"images_data": len(table), "images_test": len(table if tested is None else tested)}
        counted["dim"] = table.shape[1]
    settings = {
        "data": images.source.name,
        "test": "each image by all the others (leave one out)" if images.test is None else images.test.name,
        **counted,
        "k": list(counts),
        "features": (tap or "output") + (", whitened by the run" if whitened else "") + ", L2-normalized",
        "votes": f"top1: softmax of cosine / {temperature:g}; majority_top1: one vote each",
        "temperature": temperature,
        "leave_one_out": images.test is None,
    }
    if baseline:
        settings["untrained"] = "the same network with the weights it had before training"
    return Result("knn", settings, found)

"""k nearest neighbors by cosine: the quickest honest score of features, nothing is trained.

This file does not know how features come about, nor anything of clusters.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.sources import open_images
from deepcluster.engine.log import Screen
from deepcluster.evaluate.labels import labels_alike, labels_of
from deepcluster.evaluate.result import Result
from deepcluster.records import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.data.cache import Pixels
    from deepcluster.engine.runs import Run

SIMILARITIES_AT_ONCE = 2**25  # 128 MiB of float32: bounds the memory for any number of images


def nearest(
    bank: Tensor, queries: Tensor, k: int, *, leave_one_out: bool = False, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `bank` for each query, exactly, by cosine.

    Args:
        bank: (N, D) float32.
        queries: (M, D) float32.
        leave_one_out: the queries are the bank itself; no row is its own neighbor.

    Returns:
        (M, k) float32 similarity in [-1, 1], falling, and (M, k) int64 rows of the bank.

    Raises:
        DeepClusterError: the bank has fewer than `k` rows.
    """
    available = len(bank) - leave_one_out
    if not 1 <= k <= available:
        raise DeepClusterError(f"k={k} neighbors cannot be found among {available} images: choose 1 to {available}.")
    columns = functional.normalize(bank.to(device, torch.float32), dim=1).T.contiguous()
    step = max(1, SIMILARITIES_AT_ONCE // len(bank))
    similarity = torch.empty(len(queries), k)
    rows = torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        near = functional.normalize(queries[part].to(device, torch.float32), dim=1) @ columns
        if leave_one_out:
            near[torch.arange(len(near)), torch.arange(part.start, part.stop)] = -torch.inf
        value, row = near.topk(k, dim=1)
        similarity[part], rows[part] = value.cpu(), row.cpu()
    return similarity, rows


def vote(
    similarity: Tensor, neighbor_labels: Tensor, classes: int, weights: str = "softmax", temperature: float = 0.07
) -> Tensor:
    """(M,) int64 class with the most votes among (M, k) neighbors; of equal classes the first.

    Args:
        similarity: (M, k) cosine of each neighbor.
        neighbor_labels: (M, k) int64 class of each neighbor.
        classes: number of classes.
        weights: "softmax": a vote counts exp(similarity / temperature), as in instance discrimination
            (arXiv 1805.01978 §3.4) and all later self-supervised work; "uniform": a vote is a vote.
        temperature: of the softmax.
    """
    if weights == "softmax":  # relative to the nearest, so that no exponential overflows
        ballots = ((similarity.double() - similarity[:, :1].double()) / temperature).exp()
    elif weights == "uniform":
        ballots = torch.ones_like(similarity, dtype=torch.float64)
    else:
        raise DeepClusterError(f"weights={weights!r} is no way to vote: choose softmax or uniform.")
    urn = torch.zeros(len(ballots), classes, dtype=torch.float64)
    return urn.scatter_add_(1, neighbor_labels, ballots).argmax(dim=1)


def knn_predict(
    bank: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    queries: np.ndarray | Tensor,
    k: int,
    classes: int,
    weights: str = "softmax",
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> Tensor:
    """(M,) int64 class of each of (M, D) `queries`, from (N, D) `bank` with (N,) `labels`, by cosine."""
    known = torch.as_tensor(labels, dtype=torch.int64)
    similarity, rows = nearest(torch.as_tensor(bank), torch.as_tensor(queries), k, device=device)
    return vote(similarity, known[rows], classes, weights, temperature)


def score_features(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray | None,
    answers: np.ndarray | None,
    *,
    k: Sequence[int] = (20,),
    classes: int,
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yield `knnK_top1` (softmax votes) and `knnK_majority_top1` (plain votes) for every K of `k`.

    Args:
        bank: (N, D) float32 features with (N,) labels.
        queries: (M, D) float32 features with (M,) answers; None = leave one out of the bank.
        k: numbers of neighbors; the search is made once, for the largest.
    """
    truth = torch.as_tensor(labels if answers is None else answers)
    table = torch.as_tensor(bank)
    similarity, rows = nearest(
        table,
        table if queries is None else torch.as_tensor(queries),
        max(k),
        leave_one_out=queries is None,
        device=device,
    )
    voters = torch.as_tensor(labels)[rows]
    for count in k:
        for name, weights in (("top1", "softmax"), ("majority_top1", "uniform")):
            answer = vote(similarity[:, :count], voters[:, :count], classes, weights, temperature)
            yield f"knn{count}_{name}", float((answer == truth).double().mean())


def knn(
    run: Run,
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
        run: a finished or stopped run.
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
    networks = {"untrained_": untrained(run)} if baseline else {}
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


def untrained(run: Run) -> Run:
    """The same run with the backbone as it was before the first step."""
    from deepcluster.engine import train

    before = copy.copy(run)
    before.model = dataclasses.replace(run.model, backbone=train.untrained(run.config))
    return before


def _described(
    run: Run, pixels: Pixels, labels: np.ndarray | None, tap: str | None, screen: Screen
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

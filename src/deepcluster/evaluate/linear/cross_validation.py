"""The probe on features that are computed once: logistic regression whose decay a cross-validation chooses.

The test images are never looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.evaluate.linear.classifier import Fit, Problems
from deepcluster.evaluate.linear.parts import folds_of

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Of standardized features; scikit-learn's C is 1 / (decay N)."""
ENOUGH = 1e-3
"""Largest entry of the gradient at the end of a fit that is only to be compared with others."""


@dataclass(frozen=True)
class Chosen:
    """A classifier and how its decay was found.

    Attributes:
        weight: (K, D) float32, of the features as they came, not standardized.
        bias: (K,) float32.
        decay: of the weights of standardized features.
        tried: decay -> accuracy on images that were held out; empty where there was nothing to choose.
    """

    weight: Tensor
    bias: Tensor
    decay: float
    tried: dict[str, float]

    def scores(self, features: Tensor) -> Tensor:
        """(M, K) of (M, D) features."""
        return torch.addmm(self.bias, features, self.weight.T)


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of (N, D) features; infinite for a constant feature, which is then left out."""
    count = len(features)
    mean = sum((part.double().sum(0) for part in features.split(65536)), features.new_zeros(1).double()) / count
    square = sum(((part.double() - mean).square().sum(0) for part in features.split(65536)), torch.zeros_like(mean))
    std = (square / count).sqrt()
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.inf)
    return mean.float(), std.float()


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    decays: Sequence[float] = DECAYS,
    folds: int = 5,
    seed: int = 0,
    loss: str = "softmax",
    tolerance: float = 1e-5,
) -> Chosen:
    """Logistic regression on standardized features.

    Of several decays the one is taken that classifies most held-out images right over k folds of these images, the
    strongest of equals. Folds are solved in step, from strong to weak decay, each fit beginning at the one before;
    after two decays in a row that are worse than the best, weaker ones are not tried.

    Args:
        features: (N, D) float32, on the device where the work is done.
        labels: (N,) int64.
        decays: to choose from.
        folds: at most; no more than the smallest class has images, and with less than two the middle decay is taken.
        tolerance: largest entry of the last fit's gradient.
    """
    mean, std = standardization(features)
    problems = Problems((features - mean) / std, labels, classes, loss)
    decays = sorted(decays, reverse=True)
    tried: dict[str, float] = {}
    start: Fit | None = None
    decay = decays[len(decays) // 2]
    smallest = int(torch.bincount(labels)[labels.unique()].min())
    if len(decays) > 1 and min(folds, smallest) > 1:
        decay, start, tried = _choose(problems, labels, decays, min(folds, smallest), seed)
    found = problems.fit(decay, start=start, tolerance=tolerance)
    weight = (found.weight[0] / std[:, None]).T.contiguous()
    return Chosen(weight, found.bias[0] - weight @ mean, decay, tried)


def _choose(
    problems: Problems, labels: Tensor, decays: Sequence[float], folds: int, seed: int
) -> tuple[float, Fit, dict[str, float]]:
    """The best decay, a place to begin the last fit at, and held-out accuracy of each decay that was tried."""
    fold = torch.from_numpy(folds_of(labels.cpu().numpy(), folds, seed)).to(labels.device)
    held = torch.stack([fold == number for number in range(folds)])  # (folds, N)
    shares = (~held).float()
    shares /= shares.sum(1, keepdim=True)
    tried: dict[str, float] = {}
    best = (-1.0, decays[0])
    start: Fit | None = None
    kept: Fit | None = None
    worse = 0
    for decay in decays:
        start = problems.fit(decay, shares, start, tolerance=ENOUGH)
        accuracy = _held_out_accuracy(problems, start, held, labels)
        tried[f"{decay:g}"] = accuracy
        worse = worse + 1 if accuracy < best[0] else 0
        if accuracy > best[0]:
            best = (accuracy, decay)
            kept = Fit(start.weight.mean(0, keepdim=True), start.bias.mean(0, keepdim=True), start.value[:1], 0)
        if worse == 2:
            break
    assert kept is not None
    return best[1], kept, tried


def _held_out_accuracy(problems: Problems, fit_: Fit, held: Tensor, labels: Tensor) -> float:
    weight = fit_.weight if problems.basis is None else problems.basis.T @ fit_.weight
    right = 0
    for number in range(len(held)):
        rows = held[number].nonzero()[:, 0]
        scores = torch.addmm(fit_.bias[number], problems.features[rows], weight[number])
        right += int((scores.argmax(1) == labels[rows]).sum())
    return right / held.shape[1]


def accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy of (M, K) scores."""
    top1, top5 = hits(scores, labels)
    return top1 / len(labels), top5 / len(labels)


def hits(scores: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many of (M, K) scores have their label first, and how many among the first five."""
    first = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return int(first[:, 0].sum()), int(first.any(1).sum())


def spread(draws: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each score over the draws and, with several, its deviation as NAME_std."""
    out: dict[str, float] = {}
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        out[name] = float(values.mean())
        if len(draws) > 1:
            out[f"{name}_std"] = float(values.std(ddof=1))
    return out

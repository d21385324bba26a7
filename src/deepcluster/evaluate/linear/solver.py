"""A linear classifier on features that are computed once: multinomial logistic regression, or a linear SVM.

The objective is scikit-learn's, divided by C times the number of images: mean loss + decay / 2 |W|^2, so that
decay = 1 / (C N). Several problems that share the features, such as the folds of a cross-validation, are solved in
step. This file knows nothing of images or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepcluster.evaluate.linear.lbfgs import minimize

LOSSES = ("softmax", "squared hinge")
AT_ONCE = 1 << 21
"""Numbers of features, or of scores, that are worked on at a time: they stay near the cores."""
WIDEST = 4096
"""Dimensions up to which the features' second moments are decomposed for the first guess at the Hessian."""


@dataclass(frozen=True)
class Fit:
    """P fitted classifiers.

    Attributes:
        weight: (P, D, K) float32.
        bias: (P, K) float32.
        value: (P,) float64, the objective.
        evaluations: passes over the features.
    """

    weight: Tensor
    bias: Tensor
    value: Tensor
    evaluations: int


class Problems:
    """Classifiers of (N, D) features, all with the same images, each perhaps with some left out.

    Args:
        features: (N, D) float32, about standardized or L2-normalized; where the work is done.
        labels: (N,) int64 below `classes`.
        classes: K.
        loss: "softmax" as scikit-learn's LogisticRegression; "squared hinge", one class against the rest with the
            bias in the penalty, as its LinearSVC.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, loss: str = "softmax") -> None:
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}")
        self.loss = loss
        self.classes = classes
        self.labels = labels.to(features.device)
        self.basis: Tensor | None = None
        if len(features) < features.shape[1] and len(features) <= WIDEST:
            features, self.basis = _spanned(features)
        self.features = features

    def fit(
        self,
        decay: float,
        shares: Tensor | None = None,
        start: Fit | None = None,
        *,
        tolerance: float = 1e-5,
        evaluations: int = 500,
    ) -> Fit:
        """Solves P problems.

        Args:
            decay: of the weights.
            shares: (P, N) weights of the images in each problem, which sum to 1; None = one problem, all images alike.
            start: a fit to begin at, of these P problems.
            tolerance: largest entry of the gradient at the end.
            evaluations: passes over the features, at most.
        """
        count = len(self.features)
        if shares is None:
            shares = self.features.new_full((1, count), 1 / count)
        dim = self.features.shape[1]
        begin = self.features.new_zeros(len(shares), dim + 1, self.classes)
        if start is not None:
            begin[:, :dim] = start.weight if self.basis is None else self.basis.T @ start.weight
            begin[:, dim] = start.bias
        inverse = self._inverse(decay)

        def objective(points: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
            return self._objective(points, shares[list(numbers)], decay)

        points, values, calls = minimize(
            objective, begin, lambda gradient, _: inverse(gradient), tolerance=tolerance, evaluations=evaluations
        )
        weight = points[:, :dim] if self.basis is None else self.basis @ points[:, :dim]
        return Fit(weight, points[:, dim], values, calls)

    def _objective(self, points: Tensor, shares: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        """Values (p,) float64 and gradients (p, D + 1, K) at points (p, D + 1, K)."""
        problems, rows, classes = points.shape
        dim = rows - 1
        flat = points.permute(1, 0, 2).reshape(rows, problems * classes)
        gradient = torch.zeros_like(flat)
        total = torch.zeros(problems, dtype=torch.float64, device=points.device)
        step = max(1024, AT_ONCE // max(dim, problems * classes))
        for first in range(0, len(self.features), step):
            part = slice(first, first + step)
            x, labels = self.features[part], self.labels[part]
            scores = torch.addmm(flat[dim], x, flat[:dim]).view(-1, problems, classes)
            losses = (_softmax_ if self.loss == "softmax" else _squared_hinge_)(scores, labels)
            share = shares[:, part].T
            total += (losses.double() * share).sum(0)
            pull = (scores * share[..., None]).view(-1, problems * classes)
            gradient[:dim].addmm_(x.T, pull)
            gradient[dim] += pull.sum(0)
        slopes = gradient.view(rows, problems, classes).permute(1, 0, 2).contiguous()
        penalized = points if self.loss == "squared hinge" else points[:, :dim]
        slopes[:, : penalized.shape[1]] += decay * penalized
        return (total + decay / 2 * penalized.double().square().sum((1, 2))).cpu(), slopes

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Second moments of the features, decomposed: (D,) and (D, D)."""
        x = self.features
        moments = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for part in x.split(1 << 16):
            moments += (part.T @ part).double()
        values, vectors = torch.linalg.eigh(moments / len(x))
        return values.clamp_min(0).float(), vectors.float()

    def _inverse(self, decay: float):  # type: ignore[no-untyped-def]
        """About the inverse Hessian: where all scores are zero it is exact but for what couples the classes."""
        curvature = 1 / self.classes if self.loss == "softmax" else 2.0
        dim = self.features.shape[1]
        if dim > WIDEST:
            return lambda gradient: gradient / (curvature + decay)
        values, vectors = self._moments
        scale = (1 / (curvature * values + decay + 1e-9))[:, None]

        def inverse(gradient: Tensor) -> Tensor:
            return torch.cat([vectors @ (scale * (vectors.T @ gradient[:dim])), gradient[dim:] / curvature])

        return inverse


def _softmax_(scores: Tensor, labels: Tensor) -> Tensor:
    """Losses (n, P) of scores (n, P, K), which become their gradient."""
    scores -= scores.amax(2, keepdim=True)
    where = labels[:, None, None].expand(-1, scores.shape[1], 1)
    right = scores.gather(2, where)[..., 0]
    total = scores.exp_().sum(2)
    scores /= total[..., None]
    scores.scatter_add_(2, where, scores.new_full((), -1.0).expand(where.shape))
    return total.log() - right


def _squared_hinge_(scores: Tensor, labels: Tensor) -> Tensor:
    """Losses (n, P) of scores (n, P, K), each class against the rest; scores become their gradient."""
    side = torch.full_like(scores, -1.0)
    side.scatter_(2, labels[:, None, None].expand(-1, scores.shape[1], 1), 1.0)
    short = (1 - side * scores).clamp_min_(0)
    scores.copy_(-2 * side * short)
    return short.square().sum(2)


def _spanned(features: Tensor) -> tuple[Tensor, Tensor]:
    """Fewer images than dimensions: the best weights lie in the images' span.

    Returns:
        (N, R) coordinates in an orthonormal basis of the span, and that basis (D, R).
    """
    x = features.double()
    values, vectors = torch.linalg.eigh(x @ x.T)
    keep = values > values[-1] * 1e-12
    length = values[keep].sqrt()
    return (vectors[:, keep] * length).float(), (x.T @ (vectors[:, keep] / length)).float()


def predict(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, K) scores of (N, D) features with (D, K) weights."""
    return torch.addmm(bias, features, weight)

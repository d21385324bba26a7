"""Linear classifiers on features that are computed once: multinomial logistic regression, or a linear SVM.

The objective is scikit-learn's, divided by C times the number of images: mean loss + decay / 2 |W|^2, so that
decay = 1 / (C N). Why not scikit-learn itself: torch's L-BFGS solves all folds of a cross-validation in one pass over
their features, along their principal axes scaled by curvature: seconds instead of minutes (`benchmarks/linear.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepcluster.evaluate.linear.splits import stratified_folds

LOSSES = {"logistic": "softmax", "svm": "squared hinge"}
DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weight decays to choose from, of standardized features."""
COMPARING = 1e-3
"""Largest entry of the gradient at the end of a fit that is only to be compared with others."""
WIDEST = 4096
"""Images or dimensions up to which the principal axes of the features are computed."""
BLOCK = 1 << 21
"""Numbers, of features or of scores, that are worked on at a time, so that they stay in the cache."""


class Fit(NamedTuple):
    """P fitted classifiers."""

    weight: Tensor  # (P, D, K) float32
    bias: Tensor  # (P, K) float32


class Solver:
    """Fits classifiers of (N, D) features, several at once, each perhaps without some of the images.

    Args:
        features: (N, D) float32, roughly standardized or L2-normalized; the work is done on their device.
        labels: (N,) int64 below `classes`.
        classes: K.
        loss: "softmax" as scikit-learn's LogisticRegression; "squared hinge", one class against the rest with the
            bias in the penalty, as its LinearSVC.

    Attributes:
        axes: (D, R) principal axes of the features; None where there are too many to compute them, and R = D.
        features: (N, R) coordinates of the images on these axes.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, loss: str = "softmax") -> None:
        self.loss, self.classes = loss, classes
        self.labels = labels.to(features.device)
        self.axes = principal_axes(features) if min(features.shape) <= WIDEST else None
        self.features = features if self.axes is None else features @ self.axes
        self.variance = torch.linalg.vector_norm(self.features, dim=0).square() / len(self.features)

    def fit(
        self, decay: float, shares: Tensor | None = None, start: Fit | None = None, *, tolerance: float = 1e-5
    ) -> Fit:
        """Solves P problems, by L-BFGS on the sum of their objectives.

        Args:
            decay: of the weights.
            shares: (P, N) weights of the images in each problem, which sum to 1; None = one problem, all images alike.
            start: a fit of these P problems to start from.
            tolerance: largest entry of the gradient at the end, of weights scaled as follows.
        """
        if shares is None:
            shares = self.features.new_full((1, len(self.features)), 1 / len(self.features))
        width = self.features.shape[1]
        # Where all scores are zero, the Hessian is this diagonal, but for what couples the classes.
        curvature = 1 / self.classes if self.loss == "softmax" else 2.0
        hessian = torch.cat([curvature * self.variance + decay + 1e-9, self.variance.new_tensor([curvature])])
        scale = hessian.rsqrt()[:, None]
        points = self.features.new_zeros(len(shares), width + 1, self.classes)
        if start is not None:
            points[:, :width], points[:, width] = self.coordinates(start), start.bias
        points /= scale
        optimizer = torch.optim.LBFGS(
            [points],
            max_iter=500,
            max_eval=500,
            tolerance_grad=tolerance,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def objective() -> float:
            values, gradients = self.objective(points * scale, shares, decay)
            points.grad = gradients * scale
            return float(values.sum())

        optimizer.step(objective)  # type: ignore[no-untyped-call]
        points *= scale
        weight = points[:, :width] if self.axes is None else self.axes @ points[:, :width]
        return Fit(weight, points[:, width])

    def coordinates(self, fit: Fit) -> Tensor:
        """(P, R, K) weights of the coordinates on the principal axes."""
        return fit.weight if self.axes is None else self.axes.T @ fit.weight

    def objective(self, points: Tensor, shares: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        """Values (P,) float64 and gradients (P, D + 1, K) at points (P, D + 1, K): weights and, last, biases."""
        problems, rows, classes = points.shape
        dim = rows - 1
        flat = points.permute(1, 0, 2).reshape(rows, problems * classes)
        gradient = torch.zeros_like(flat)
        total = torch.zeros(problems, dtype=torch.float64, device=points.device)
        step = max(1024, BLOCK // max(dim, problems * classes))
        for first in range(0, len(self.features), step):
            rows_ = slice(first, first + step)
            x, share = self.features[rows_], shares[:, rows_].T
            scores = torch.addmm(flat[dim], x, flat[:dim]).view(-1, problems, classes)
            losses = (_softmax_ if self.loss == "softmax" else _squared_hinge_)(scores, self.labels[rows_])
            total += (losses.double() * share).sum(0)
            weighted = (scores * share[..., None]).view(-1, problems * classes)
            gradient[:dim].addmm_(x.T, weighted)
            gradient[dim] += weighted.sum(0)
        slopes = gradient.view(rows, problems, classes).permute(1, 0, 2).contiguous()
        penalized = points if self.loss == "squared hinge" else points[:, :dim]
        slopes[:, : penalized.shape[1]] += decay * penalized
        return (total + decay / 2 * penalized.double().square().sum((1, 2))).cpu(), slopes


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


def principal_axes(points: Tensor) -> Tensor:
    """(D, R) orthonormal principal axes of the span of (N, D) points, computed in float64 from the smaller of their
    Gram matrix and their second moments."""
    few = len(points) < points.shape[1]
    size = min(points.shape)
    products = torch.zeros(size, size, dtype=torch.float64, device=points.device)
    if few:
        products += points.double() @ points.double().T
    else:
        for rows in torch.split(points, 1 << 16):
            products += (rows.T @ rows).double()
    values, vectors = torch.linalg.eigh(products)
    kept = values > values[-1] * 1e-12
    vectors = vectors[:, kept]
    axes: Tensor = points.T.double() @ (vectors / values[kept].sqrt()) if few else vectors
    return axes.to(points.dtype)


class CrossValidated(NamedTuple):
    """A classifier and how its decay was chosen."""

    weight: Tensor  # (K, D) float32, of the features as they came, not standardized
    bias: Tensor  # (K,) float32
    decay: float  # of the weights of standardized features
    tried: dict[str, float]  # decay -> accuracy on held-out images; empty where there was nothing to choose

    def scores(self, features: Tensor) -> Tensor:
        """(M, K) of (M, D) features."""
        return torch.addmm(self.bias, features, self.weight.T)


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of (N, D) features; infinite for a constant feature, which is then left out."""
    mean = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    square = torch.zeros_like(mean)
    for rows in torch.split(features, 65536):
        mean += rows.double().sum(0) / len(features)
    for rows in torch.split(features, 65536):
        square += (rows.double() - mean).square().sum(0) / len(features)
    std = square.sqrt()
    return mean.float(), torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.inf).float()


def cross_validated_fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    decays: Sequence[float] = DECAYS,
    folds: int = 5,
    seed: int = 0,
    loss: str = "softmax",
) -> CrossValidated:
    """A classifier of standardized features, with the decay that does best on held-out images.

    Of several decays the one is taken that classifies most held-out images correctly over k folds, the strongest of
    equals. Folds are solved in step, from strong to weak decay, each fit starting from the one before; after two decays
    in a row that are worse than the best, weaker ones are not tried.

    Args:
        features, labels: (N, D) float32, on the device where the work is done, and (N,) int64.
        folds: at most; no more than the smallest class has images, and with less than two the middle decay is taken.
    """
    mean, std = standardization(features)
    solver = Solver((features - mean) / std, labels, classes, loss)
    decays = sorted(decays, reverse=True)
    sizes = torch.bincount(labels)
    folds = min(folds, int(sizes[sizes > 0].min()))
    decay, start = decays[len(decays) // 2], None
    tried: dict[str, float] = {}
    if len(decays) > 1 and folds > 1:
        decay, start, tried = _choose(solver, labels, decays, folds, seed)
    fit = solver.fit(decay, start=start)
    weight = (fit.weight[0] / std[:, None]).T.contiguous()
    return CrossValidated(weight, fit.bias[0] - weight @ mean, decay, tried)


def _choose(
    solver: Solver, labels: Tensor, decays: Sequence[float], folds: int, seed: int
) -> tuple[float, Fit, dict[str, float]]:
    """The best decay, a start for the last fit, and held-out accuracy of each decay that was tried."""
    fold = torch.from_numpy(stratified_folds(labels.cpu().numpy(), folds, seed)).to(labels.device)
    held_out = torch.stack([fold == number for number in range(folds)])  # (folds, N)
    shares = (~held_out).float()
    shares /= shares.sum(1, keepdim=True)
    tried: dict[str, float] = {}
    best, best_decay, best_fit = -1.0, decays[0], None
    fit: Fit | None = None
    worse = 0
    for decay in decays:
        fit = solver.fit(decay, shares, fit, tolerance=COMPARING)
        accuracy = _held_out_accuracy(solver, fit, held_out, labels)
        tried[f"{decay:g}"] = accuracy
        worse = worse + 1 if accuracy < best else 0
        if accuracy > best:
            best, best_decay = accuracy, decay
            best_fit = Fit(fit.weight.mean(0, keepdim=True), fit.bias.mean(0, keepdim=True))
        if worse == 2:
            break
    assert best_fit is not None
    return best_decay, best_fit, tried


def _held_out_accuracy(solver: Solver, fit: Fit, held_out: Tensor, labels: Tensor) -> float:
    weight = solver.coordinates(fit)
    right = 0
    for number in range(len(held_out)):
        rows = held_out[number].nonzero()[:, 0]
        scores = torch.addmm(fit.bias[number], solver.features[rows], weight[number])
        right += int((scores.argmax(1) == labels[rows]).sum())
    return right / held_out.shape[1]


def top_accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy of (M, K) scores."""
    top1, top5 = count_hits(scores, labels)
    return top1 / len(labels), top5 / len(labels)


def count_hits(scores: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many of (M, K) scores have their label first, and how many have it among the first five."""
    first = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return int(first[:, 0].sum()), int(first.any(1).sum())

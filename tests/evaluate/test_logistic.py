"""Logistic regression and SVM against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from deepcluster.evaluate.linear import logistic
from deepcluster.evaluate.linear.logistic import DECAYS, LOSSES, Solver, cross_validated_fit, top_accuracies
from deepcluster.evaluate.linear.splits import stratified_folds
from deepcluster.evaluate.result import mean_and_std


def clouds(count: int, dim: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) points of uneven variance, correlated, and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    labels[:classes] = np.arange(classes)
    centers = np.random.default_rng(9).normal(size=(classes, dim))
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(dim, dim)))[0]
    points = ((centers[labels] + 1.5 * random.normal(size=(count, dim))) / np.arange(1, dim + 1)) @ turn
    return (points / points.std(0)).astype(np.float32), labels


def objective(points: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, c: float) -> float:
    """Of multinomial logistic regression, per image, in float64."""
    scores = points.astype(np.float64) @ weight + bias
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(labels)), labels]
    return float(losses.mean() + (weight**2).sum() / (2 * c * len(labels)))


@pytest.mark.parametrize("count, dim", [(400, 12), (60, 90)], ids=["more images", "more dimensions"])
@pytest.mark.parametrize("c", [100.0, 1.0, 0.01])
def test_objective_and_predictions_are_scikit_learns(count: int, dim: int, c: float) -> None:
    points, labels = clouds(count, dim)
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(points.astype(np.float64), labels)
    ours = Solver(torch.from_numpy(points), torch.from_numpy(labels), 4).fit(1 / (c * count), tolerance=1e-6)
    weight, bias = ours.weight[0].double().numpy(), ours.bias[0].double().numpy()
    least = objective(points, labels, theirs.coef_.T, theirs.intercept_, c)
    found = objective(points, labels, weight, bias, c)
    assert found == pytest.approx(least, rel=2e-5, abs=1e-6)  # losses near 0 are known to float32's 6e-8
    new, _ = clouds(300, dim, seed=1)
    assert ((new @ weight + bias).argmax(1) == theirs.predict(new)).mean() > 0.995


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = (torch.from_numpy(part) for part in clouds(2500, 6))
    at = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.rand(1, 2500, generator=torch.Generator().manual_seed(1))
    whole = Solver(points, labels, 4).objective(at, shares, 0.1)
    monkeypatch.setattr(logistic, "BLOCK", 1)
    blocks = Solver(points, labels, 4).objective(at, shares, 0.1)  # of 1024 rows
    torch.testing.assert_close(whole, blocks, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradient_is_autograds(loss: str) -> None:
    points, labels = clouds(50, 5)
    problems = Solver(torch.from_numpy(points), torch.from_numpy(labels), 4, loss)
    at = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.rand(2, 50, generator=torch.Generator().manual_seed(1))
    values, gradients = problems.objective(at, shares, 0.3)
    variable = at.double().requires_grad_()
    scores = torch.einsum("nd,pdk->pnk", problems.features.double(), variable[:, :5]) + variable[:, 5:]
    side = 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), 4) - 1
    if loss == "softmax":
        losses = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), torch.from_numpy(labels).repeat(2), reduction="none"
        ).view(2, 50)
        penalty = variable[:, :5].square().sum((1, 2))
    else:
        losses = (1 - side * scores).clamp_min(0).square().sum(2)
        penalty = variable.square().sum((1, 2))
    expected = (losses * shares).sum(1) + 0.15 * penalty
    torch.autograd.backward(expected.sum())
    torch.testing.assert_close(values, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients.double(), variable.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count, dim", [(300, 10), (40, 60)])
def test_svm_is_linear_svc(count: int, dim: int) -> None:
    points, labels = clouds(count, dim)
    theirs = LinearSVC(C=0.1, tol=1e-8, max_iter=200_000).fit(points, labels)
    ours = Solver(torch.from_numpy(points), torch.from_numpy(labels), 4, "squared hinge").fit(
        1 / (0.1 * count), tolerance=1e-6
    )
    np.testing.assert_allclose(ours.weight[0].T, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(ours.bias[0], theirs.intercept_, atol=2e-3)


def test_problems_in_step_are_problems_alone() -> None:
    points, labels = clouds(240, 8)
    problems = Solver(torch.from_numpy(points), torch.from_numpy(labels), 4)
    fold = torch.from_numpy(stratified_folds(labels, 3, 0))
    shares = torch.stack([(fold != number).float() / (fold != number).sum() for number in range(3)])
    together = problems.fit(1e-3, shares, tolerance=1e-6)
    for number in range(3):
        rows = fold != number
        alone = Solver(torch.from_numpy(points)[rows], torch.from_numpy(labels)[rows], 4).fit(1e-3, tolerance=1e-6)
        torch.testing.assert_close(together.weight[number], alone.weight[0], rtol=2e-2, atol=2e-3)


def test_chosen_decay_is_the_best_of_a_cross_validation() -> None:
    points, labels = clouds(300, 20)
    points = points * 3 + 5  # standardized inside
    decays = (1.0, 1e-2, 1e-5)
    x, y = torch.from_numpy(points), torch.from_numpy(labels)
    found = cross_validated_fit(x, y, 4, decays=decays, folds=4, seed=3)
    plain = (points - points.mean(0)) / points.std(0)
    fold = stratified_folds(labels, 4, 3)
    split = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(4)]
    for decay in decays:
        model = LogisticRegression(C=1 / (decay * 225), max_iter=5000)
        theirs = cross_val_score(model, plain, labels, cv=split)
        assert found.tried[f"{decay:g}"] == pytest.approx(theirs.mean(), abs=0.011)
    best = max(found.tried.values())
    assert found.decay == next(float(decay) for decay, accuracy in found.tried.items() if accuracy == best)
    model = LogisticRegression(C=1 / (found.decay * 300), max_iter=5000, tol=1e-6).fit(plain, labels)
    scores = found.scores(torch.from_numpy(points)).numpy()
    assert (scores.argmax(1) == model.predict(plain)).mean() > 0.99


def test_constant_features_and_tiny_classes_are_survived() -> None:
    points, labels = clouds(30, 5, classes=3)
    points[:, 2] = 7.0
    labels[labels == 2] = 0
    labels[0] = 2  # one image of a class: nothing to cross-validate with
    found = cross_validated_fit(torch.from_numpy(points), torch.from_numpy(labels), 3)
    assert found.tried == {} and found.decay == sorted(DECAYS, reverse=True)[3]
    assert torch.isfinite(found.weight).all() and not found.weight[:, 2].any()


def test_accuracies_by_hand() -> None:
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]])
    assert top_accuracies(scores, torch.tensor([0, 2, 6])) == (1 / 3, 2 / 3)
    assert mean_and_std([{"a": 0.1}, {"a": 0.3}]) == pytest.approx({"a": 0.2, "a_std": 0.2 / 2**0.5})

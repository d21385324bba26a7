"""SVMs of classes against scikit-learn's own and its own cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.svm import COSTS, FALLBACK_COST, FOLD, ClassSVMs, few_shots, fit_svm, fit_svms
from deepcluster.random import seed_of
from deepcluster.resume import ResumeFile


def points(count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = (random.random((count, 3)) < 0.35).astype(int)
    x = labels @ random.normal(size=(3, dim)) + 1.5 * random.normal(size=(count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def sklearn_svm(cost: float, seed: int) -> LinearSVC:
    weight = {1: 2.0, 0: 1.0}
    return LinearSVC(C=cost, dual=True, class_weight=weight, max_iter=2000, tol=1e-6, random_state=seed)


def test_costs_are_those_of_the_benchmark() -> None:
    assert len(COSTS) == 19 and COSTS[0] == 0.5**19 and COSTS[-4:] == (0.5**4, 1, 10, 100)


@pytest.mark.parametrize("dim", [8, 90])  # primal and dual, without and with the points' span
def test_svm_matches_sklearn_at_the_cost_of_its_cross_validation(dim: int) -> None:
    x, labels = points(60, dim)
    costs = (0.01, 1.0, 100.0)
    truth = labels[:, 0]
    svms = fit_svms(x, labels, seed=3, costs=costs)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed_of(3, FOLD, 0) % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        aps = [
            cross_val_score(sklearn_svm(c, 0), x, truth, cv=folds, scoring="average_precision").mean() for c in costs
        ]
        best = sklearn_svm(costs[int(np.argmax(aps))], 0).fit(x, truth)
    assert svms.cost[0] == best.C
    np.testing.assert_allclose(svms.scores(x)[:, 0], best.decision_function(x), atol=0.02)


def test_unknown_labels_are_left_out() -> None:
    x, labels = points(50, 6)
    ignored = labels.copy()
    ignored[::5, 0] = -1
    kept = ignored[:, 0] >= 0
    a = fit_svm(x, ignored[:, 0], seed=1, costs=(1.0, 10.0))
    b = fit_svm(x[kept], labels[kept, 0], seed=1, costs=(1.0, 10.0))
    whole = fit_svm(x, labels[:, 0], seed=1, costs=(1.0, 10.0))
    assert (a.coef_ == b.coef_).all() and (a.coef_ != whole.coef_).any()


def test_classes_with_one_or_no_positive() -> None:
    x, _ = points(20, 4)
    one = np.zeros(20, int)
    one[3] = 1
    both = fit_svms(x, np.stack([one, one * 0], axis=1))
    assert both.cost[0] == FALLBACK_COST and both.cost[1].isnan() and (both.scores(x)[:, 1] == 0).all()
    with pytest.raises(DeepClusterError, match="nothing to learn"):
        fit_svms(x, np.zeros((20, 2), int))


def test_seeds_change_the_folds() -> None:
    x, labels = points(60, 6)

    def costs(seed: int) -> tuple[float, ...]:
        return tuple(fit_svms(x, labels[:, :2], seed=seed, costs=(0.01, 0.1, 1.0, 10.0)).cost.tolist())

    assert costs(0) == costs(0) and len({costs(seed) for seed in range(4)}) > 1


def test_few_shots_draw_the_same_number_of_each_class() -> None:
    labels = np.random.default_rng(0).integers(-1, 2, (200, 4))
    for shots in (1, 4):
        drawn = few_shots(labels, shots, seed=0, sample=0)
        assert ((drawn == 1).sum(0) == shots).all() and ((drawn == 0).sum(0) == 3 * shots).all()
        assert (drawn[drawn >= 0] == labels[drawn >= 0]).all()
    assert (few_shots(labels, 4, 0, 0) == few_shots(labels, 4, 0, 0)).all()
    assert (few_shots(labels, 4, 0, 0) != few_shots(labels, 4, 0, 1)).any()
    assert (few_shots(labels, 500, 0, 0) == labels).all()  # all there are


def test_killed_and_resumed_fits_only_the_missing_classes(tmp_path: Path) -> None:
    x, labels = points(60, 6)
    expected = fit_svms(x, labels, costs=(0.1, 10.0))

    def fit(after_class: Callable[[int], object]) -> ClassSVMs:
        resume = ResumeFile(tmp_path / "svm.state", "settings", save_seconds=0.0)
        options: dict[str, Any] = {"costs": (0.1, 10.0), "after_class": after_class, "resume": resume}
        return ClassSVMs(**resume.run("seed 0", lambda: vars(fit_svms(x, labels, **options))))

    done = 0

    def kill(classes: int) -> None:
        nonlocal done
        done += classes
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(kill)
    calls: list[int] = []
    again = fit(calls.append)
    assert calls == [2, 1]
    assert (again.weight == expected.weight).all() and (again.cost == expected.cost).all()
    calls.clear()
    assert len(fit(calls.append).cost) == 3 and not calls

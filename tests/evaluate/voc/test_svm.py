"""SVMs of classes against scikit-learn's own and its own cross-validation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.svm import COSTS, FALLBACK, few_shots, fit_machine, fit_machines, scores_of


def points(count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = (random.random((count, 3)) < 0.35).astype(int)
    x = labels @ random.normal(size=(3, dim)) + 1.5 * random.normal(size=(count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def theirs(cost: float, seed: int) -> LinearSVC:
    weight = {1: 2.0, 0: 1.0}
    return LinearSVC(C=cost, dual=True, class_weight=weight, max_iter=2000, tol=1e-6, random_state=seed)


def test_costs_are_those_of_the_benchmark() -> None:
    assert len(COSTS) == 19 and COSTS[0] == 0.5**19 and COSTS[-4:] == (0.5**4, 1, 10, 100)


@pytest.mark.parametrize("dim", [8, 90])  # primal and dual, without and with the points' span
def test_the_machine_is_scikit_learns_at_the_cost_of_its_cross_validation(dim: int) -> None:
    x, labels = points(60, dim)
    costs = (0.01, 1.0, 100.0)
    truth = labels[:, 0]
    machine = fit_machines(x, labels, seed=3, costs=costs)[0]
    same = fit_machine(x, truth, seed=_first_seed(3), costs=costs)
    assert machine is not None and same is not None and machine.cost == same.cost
    folds = StratifiedKFold(3, shuffle=True, random_state=_first_seed(3) % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        aps = [cross_val_score(theirs(c, 0), x, truth, cv=folds, scoring="average_precision").mean() for c in costs]
        best = theirs(machine.cost, 0).fit(x, truth)
    assert machine.cost == costs[int(np.argmax(aps))]
    assert machine.folds_ap == pytest.approx(max(aps), abs=0.02)
    np.testing.assert_allclose(scores_of([machine], x)[:, 0], best.decision_function(x), atol=0.02)


def _first_seed(seed: int) -> int:
    from deepcluster.evaluate.voc.svm import FOLD
    from deepcluster.random import seed_of

    return seed_of(seed, FOLD, 0)


def test_ignored_images_change_nothing() -> None:
    x, labels = points(50, 6)
    ignored = labels.copy()
    ignored[::5, 0] = -1
    kept = ignored[:, 0] >= 0
    a = fit_machine(x, ignored[:, 0], seed=1, costs=(1.0, 10.0))
    b = fit_machine(x[kept], labels[kept, 0], seed=1, costs=(1.0, 10.0))
    whole = fit_machine(x, labels[:, 0], seed=1, costs=(1.0, 10.0))
    assert a is not None and b is not None and whole is not None
    assert (a.weight == b.weight).all() and (a.weight != whole.weight).any()


def test_too_few_to_choose_and_none_at_all() -> None:
    x, _ = points(20, 4)
    one = np.zeros(20, int)
    one[3] = 1
    machine = fit_machine(x, one, seed=0)
    assert machine is not None and machine.cost == FALLBACK and np.isnan(machine.folds_ap)
    assert fit_machine(x, np.zeros(20, int), seed=0) is None
    both = fit_machines(x, np.stack([one, one * 0], axis=1))
    assert both[1] is None and (scores_of(both, x)[:, 1] == 0).all()
    with pytest.raises(DeepClusterError, match="nothing to learn"):
        fit_machines(x, np.zeros((20, 2), int))


def test_seeds_change_folds_and_equal_seeds_do_not() -> None:
    x, labels = points(60, 6)
    first, again, other = (fit_machines(x, labels, seed=seed, costs=(0.1, 10.0))[1] for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    assert (first.weight == again.weight).all() and first.folds_ap == again.folds_ap != other.folds_ap


def test_few_shots_draw_so_many_of_each_class() -> None:
    labels = np.random.default_rng(0).integers(-1, 2, (200, 4))
    for shots in (1, 4):
        drawn = few_shots(labels, shots, seed=0, sample=0)
        assert ((drawn == 1).sum(0) == shots).all() and ((drawn == 0).sum(0) == 3 * shots).all()
        assert (drawn[drawn >= 0] == labels[drawn >= 0]).all()
    assert (few_shots(labels, 4, 0, 0) == few_shots(labels, 4, 0, 0)).all()
    assert (few_shots(labels, 4, 0, 0) != few_shots(labels, 4, 0, 1)).any()
    assert (few_shots(labels, 500, 0, 0) == labels).all()  # all there are

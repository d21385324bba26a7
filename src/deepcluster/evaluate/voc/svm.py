"""One linear SVM for each class on fixed features, its cost chosen by cross-validation on the training images.

The settings are those of OpenSelfSup's VOC07 benchmark, after arXiv 1905.01235 §4: squared hinge, positives weigh
twice, at most 2000 iterations, costs .5^4 ... .5^19, 1, 10 and 100, three folds. This file knows no network.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.average_precision import classification_ap
from deepcluster.random import seed_of

COSTS = tuple(sorted([1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20))]))
FOLDS = 3
MAX_ITER = 2000
POSITIVE_WEIGHT = 2.0
FALLBACK = 1.0
"""The cost where there are too few images to choose one, as with a single positive."""
LARGE = 20_000_000
"""Numbers of features from which on classes are fitted in processes of their own, whose start takes seconds."""
FOLD, SHOTS = 11, 12
"""What the keys of random draws are for."""


@dataclass(frozen=True)
class Machine:
    """The SVM of one class: score = features · weight + bias.

    Attributes:
        weight: (D,) float64.
        bias: as named.
        cost: C, chosen by cross-validation, or `FALLBACK`.
        folds_ap: mean average precision over the folds at that cost; NaN where it was not chosen.
        unconverged: fits that had not met liblinear's tolerance after `MAX_ITER` iterations.
    """

    weight: np.ndarray
    bias: float
    cost: float
    folds_ap: float
    unconverged: int


def fit_machines(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
    costs: tuple[float, ...] = COSTS,
    check: Callable[[int], None] = lambda classes: None,
    known: Mapping[int, Machine] | None = None,
    keep: Callable[[int, Machine], None] = lambda number, machine: None,
) -> list[Machine | None]:
    """The SVM of each class.

    Args:
        features: (N, D), L2-normalized.
        labels: (N, C) 1, 0 or -1; images with -1 are left out for that class.
        seed: of the folds, and of liblinear's order of images.
        costs: to choose from.
        check: called with 1 after each class.
        known: class -> machine that an earlier call with the same arguments made.
        keep: called with each class and its new machine.

    Returns:
        C machines; None for a class without positives or without negatives.

    Raises:
        DeepClusterError: no class has both.
    """
    from joblib import Parallel, delayed

    points, basis = _spanned(np.asarray(features, np.float64))
    workers = 1 if points.size * len(costs) < LARGE else min(labels.shape[1], os.cpu_count() or 1)
    columns = np.asarray(labels).T
    done = dict(known or {})
    wanted = [number for number in range(len(columns)) if number not in done]
    tasks = (delayed(fit_machine)(points, columns[k], seed=seed_of(seed, FOLD, k), costs=costs) for k in wanted)
    machines: list[Machine | None] = [done.get(number) for number in range(len(columns))]
    check(len(done))
    for number, machine in zip(wanted, Parallel(n_jobs=workers, return_as="generator")(tasks), strict=True):
        if machine is not None:
            machine = machine if basis is None else replace(machine, weight=basis @ machine.weight)
            keep(number, machine)
        machines[number] = machine
        check(1)
    if not any(machine is not None for machine in machines):
        raise DeepClusterError("No class has images with it and images without it: there is nothing to learn.")
    return machines


def fit_machine(
    features: np.ndarray, labels: np.ndarray, *, seed: int, costs: tuple[float, ...] = COSTS
) -> Machine | None:
    """The SVM of one class, of (N, D) features and (N,) labels; see `fit_machines`."""
    kept = labels >= 0
    x, positive = features[kept], labels[kept] > 0
    few = int(min(positive.sum(), (~positive).sum()))
    if not few:
        return None
    cost, folds_ap, unconverged = FALLBACK, float("nan"), 0
    if len(costs) == 1:
        cost = costs[0]
    elif few >= 2:
        values = []
        for candidate in costs:
            value, late = _folds_ap(x, positive, candidate, min(FOLDS, few), seed)
            values.append(value)
            unconverged += late
        best = int(np.argmax(values))  # the smallest of equals, which is the simplest machine
        cost, folds_ap = costs[best], values[best]
    machine = _fitted(x, positive, cost, seed)
    return Machine(machine.coef_[0], float(machine.intercept_[0]), cost, folds_ap, unconverged + _late(machine))


def scores_of(machines: list[Machine | None], features: np.ndarray) -> np.ndarray:
    """(N, C) scores of (N, D) features; 0 for a class without a machine."""
    scores = np.zeros((len(features), len(machines)))
    for column, machine in enumerate(machines):
        if machine is not None:
            scores[:, column] = features @ machine.weight + machine.bias
    return scores


def few_shots(labels: np.ndarray, shots: int, seed: int, sample: int) -> np.ndarray:
    """Labels with `shots` positives and (C - 1) · `shots` negatives of each class drawn, all others -1.

    Each class is drawn by itself (arXiv 1905.01235 §4.2); one that has fewer gives all it has.

    Args:
        labels: (N, C) 1, 0 or -1.

    Returns:
        (N, C), likewise.
    """
    drawn = np.full_like(labels, -1)
    classes = labels.shape[1]
    for column in range(classes):
        random = np.random.default_rng(seed_of(seed, SHOTS, shots, sample, column))
        for value, wanted in ((1, shots), (0, max(1, classes - 1) * shots)):
            rows = np.flatnonzero(labels[:, column] == value)
            drawn[random.permutation(rows)[:wanted], column] = value
    return drawn


def _folds_ap(x: np.ndarray, positive: np.ndarray, cost: float, folds: int, seed: int) -> tuple[float, int]:
    """Mean average precision on the folds that were left out, and how many fits did not converge."""
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(x, positive)
    values, late = [], 0
    for train, held in splits:
        machine = _fitted(x[train], positive[train], cost, seed)
        late += _late(machine)
        values.append(classification_ap(machine.decision_function(x[held]), positive[held].astype(int), "sklearn"))
    return float(np.mean(values)), late


def _fitted(x: np.ndarray, positive: np.ndarray, cost: float, seed: int):  # type: ignore[no-untyped-def]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        C=cost,
        loss="squared_hinge",
        dual="auto",  # the same optimum either way, and the faster of the two
        class_weight={True: POSITIVE_WEIGHT, False: 1.0},
        max_iter=MAX_ITER,
        random_state=seed % 2**31,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted in place of told hundreds of times
        return machine.fit(x, positive)


def _late(machine) -> int:  # type: ignore[no-untyped-def]
    return int(machine.n_iter_ >= MAX_ITER)


def _spanned(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """With fewer images than dimensions, the same points in coordinates of their span: all that an SVM sees.

    Returns:
        (N, R) points, and the (D, R) basis, or None where they are as they were.
    """
    count, dim = features.shape
    if count >= dim:
        return features, None
    values, vectors = np.linalg.eigh(features @ features.T)
    kept = values > values[-1] * 1e-12
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, features.T @ (vectors[:, kept] / lengths)

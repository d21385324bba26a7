"""One linear SVM for each class on fixed features, its cost chosen by cross-validation on the training images.

scikit-learn's LinearSVC and GridSearchCV with the settings of OpenSelfSup's VOC07 benchmark, after arXiv 1905.01235
§4: squared hinge, positives weigh twice, at most 2000 iterations, costs .5^4 ... .5^19, 1, 10 and 100, three folds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.logistic import principal_axes
from deepcluster.random import seed_of
from deepcluster.resume import ResumeFile

COSTS = tuple(sorted([1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20))]))
FOLDS = 3
MAX_ITER = 2000
POSITIVE_WEIGHT = 2.0
FALLBACK_COST = 1.0
"""The cost where there are too few images to choose one, as with a single positive."""
PARALLEL_SIZE = 20_000_000
"""Numbers of features from which on classes are fitted in processes of their own, whose start takes seconds."""
FOLD, SHOTS = 11, 12
"""Purposes of the keys of random draws."""


@dataclass(frozen=True)
class ClassSVM:
    """The SVM of one class: score = features · weight + bias.

    Attributes:
        weight: (D,) float64 tensor.
        bias: as named.
        cost: C, chosen by cross-validation, or `FALLBACK_COST`.
        converged: whether liblinear met its tolerance within `MAX_ITER` iterations.
    """

    weight: Tensor
    bias: float
    cost: float
    converged: bool


def fit_svms(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
    costs: Sequence[float] = COSTS,
    after_class: Callable[[int], object] = lambda classes: None,
    resume: ResumeFile | None = None,
) -> list[ClassSVM | None]:
    """The SVM of each class.

    Args:
        features: (N, D), L2-normalized.
        labels: (N, C) 1, 0 or -1; images with -1 are left out for that class.
        seed: of the folds, and of liblinear's order of images.
        costs: to choose from, ascending.
        after_class: called with the number of further classes that are done.
        resume: keeps the SVMs that are done as the state of its running stage.

    Returns:
        C SVMs; None for a class without positives or without negatives.

    Raises:
        DeepClusterError: no class has both.
    """
    from joblib import Parallel, delayed

    columns = np.asarray(labels).T
    done = dict((resume.state or {}) if resume else {})  # class, as text -> plain values
    after_class(len(done))
    points, axes = torch.from_numpy(np.asarray(features, np.float64)), None
    if len(points) < points.shape[1]:  # fits of 9,600 dimensions take a fraction of the time
        axes = principal_axes(points)
        points = points @ axes
    workers = 1 if points.numel() * len(costs) < PARALLEL_SIZE else min(len(columns), os.cpu_count() or 1)
    missing = [number for number in range(len(columns)) if str(number) not in done]
    tasks = (delayed(fit_svm)(points.numpy(), columns[k], seed=seed_of(seed, FOLD, k), costs=costs) for k in missing)
    for number, svm in zip(missing, Parallel(n_jobs=workers, return_as="generator")(tasks), strict=True):
        if svm is not None and axes is not None:
            svm = replace(svm, weight=axes @ svm.weight)
        done[str(number)] = None if svm is None else vars(svm)
        if resume is not None and resume.due:
            resume.save(done)
        after_class(1)
    svms = [values and ClassSVM(**values) for values in (done[str(number)] for number in range(len(columns)))]
    if not any(svms):
        raise DeepClusterError("No class has images that show it and images that do not: there is nothing to learn.")
    return svms


def fit_svm(features: np.ndarray, labels: np.ndarray, *, seed: int, costs: Sequence[float] = COSTS) -> ClassSVM | None:
    """The SVM of one class, of (N, D) features and (N,) labels; see `fit_svms`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import LinearSVC

    x, positive = features[labels >= 0], labels[labels >= 0] > 0
    fewest = int(min(positive.sum(), (~positive).sum()))
    if not fewest:
        return None
    svm = LinearSVC(
        C=costs[0] if len(costs) == 1 else FALLBACK_COST,
        loss="squared_hinge",
        dual="auto",  # the same optimum either way, and the faster of the two
        class_weight={True: POSITIVE_WEIGHT, False: 1.0},
        max_iter=MAX_ITER,
        random_state=seed % 2**31,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
        if len(costs) > 1 and fewest >= 2:
            folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed % 2**32)
            # of costs that score the same the first is taken, which is the smallest
            search = GridSearchCV(svm, {"C": list(costs)}, scoring="average_precision", cv=folds)
            svm = search.fit(x, positive).best_estimator_
        else:
            svm.fit(x, positive)
    return ClassSVM(
        torch.from_numpy(svm.coef_[0]), float(svm.intercept_[0]), float(svm.C), bool(svm.n_iter_ < MAX_ITER)
    )


def svm_scores(svms: Sequence[ClassSVM | None], features: np.ndarray) -> np.ndarray:
    """(N, C) scores of (N, D) features; 0 for a class without an SVM."""
    scores = np.zeros((len(features), len(svms)))
    for column, svm in enumerate(svms):
        if svm is not None:
            scores[:, column] = features @ svm.weight.numpy() + svm.bias
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
        for value, count in ((1, shots), (0, max(1, classes - 1) * shots)):
            rows = np.flatnonzero(labels[:, column] == value)
            drawn[random.permutation(rows)[:count], column] = value
    return drawn

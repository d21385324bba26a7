"""One linear SVM for each class on fixed features, its cost chosen by cross-validation on the training images.

scikit-learn's LinearSVC and GridSearchCV with the settings of OpenSelfSup's VOC07 benchmark, after arXiv 1905.01235
§4: squared hinge, positives weigh twice, at most 2000 iterations, costs .5^4 ... .5^19, 1, 10 and 100, three folds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.data.cache import load_pixels
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import poolings
from deepcluster.evaluate.linear.logistic import principal_axes
from deepcluster.evaluate.tensor_file import save_tensors
from deepcluster.evaluate.voc.classifier import PROTOCOL, ClassificationTask, pooled_features
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
SAVE_SECONDS = 5.0
"""How often SVMs that are done are saved: with thousands of images each takes minutes."""
FOLD, SHOTS = 11, 12
"""Purposes of the keys of random draws."""


@dataclass(frozen=True)
class ClassSVMs:
    """The SVMs of C classes on D features; one for a class without positives or without negatives is zero."""

    weight: Tensor  # (C, D) float64
    bias: Tensor  # (C,) float64; score = features · weight + bias
    cost: Tensor  # (C,) float64, scikit-learn's C, chosen by cross-validation, or `FALLBACK_COST`; NaN without an SVM
    converged: Tensor  # (C,) bool, whether liblinear met its tolerance within `MAX_ITER` iterations

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(N, C) of (N, D) features."""
        columns = [features @ weight for weight in self.weight.numpy()]
        return np.asarray(np.stack(columns, axis=1) + self.bias.numpy())


def fit_svms(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
    costs: Sequence[float] = COSTS,
    after_class: Callable[[int], object] = lambda classes: None,
    resume: ResumeFile | None = None,
) -> ClassSVMs:
    """The SVMs of all classes; DeepClusterError where none has both positives and negatives.

    Args:
        features: (N, D), L2-normalized.
        labels: (N, C) 1, 0 or -1; images with -1 are left out for that class.
        seed: of the folds, and of liblinear's order of images.
        costs: to choose from, ascending.
        after_class: called with the number of further classes that are done.
        resume: keeps the SVMs that are done as the state of its running stage.
    """
    from joblib import Parallel, delayed

    columns = np.asarray(labels).T
    points, axes = torch.from_numpy(np.asarray(features, np.float64)), None
    count, dim = len(columns), points.shape[1]
    none = torch.full((count,), torch.nan, dtype=torch.float64)
    svms = ClassSVMs(torch.zeros(count, dim, dtype=torch.float64), torch.zeros_like(none), none, torch.ones(count) > 0)
    done = 0
    if resume is not None and resume.state is not None:
        done, svms = resume.state["done"], ClassSVMs(**resume.state["svms"])
    after_class(done)
    if len(points) < dim:  # fits of 9,600 dimensions take a fraction of the time
        axes = principal_axes(points)
        points = points @ axes
    workers = 1 if points.numel() * len(costs) < PARALLEL_SIZE else min(count, os.cpu_count() or 1)
    tasks = (
        delayed(fit_svm)(points.numpy(), columns[k], seed=seed_of(seed, FOLD, k), costs=costs)
        for k in range(done, count)
    )
    for number, svm in enumerate(Parallel(n_jobs=workers, return_as="generator")(tasks), start=done):
        if svm is not None:
            weight = torch.from_numpy(svm.coef_[0])
            svms.weight[number] = weight if axes is None else axes @ weight
            svms.bias[number], svms.cost[number] = float(svm.intercept_[0]), svm.C
            svms.converged[number] = bool(svm.n_iter_ < MAX_ITER)
        if resume is not None and resume.due:
            resume.save({"done": number + 1, "svms": vars(svms)})
        after_class(1)
    if svms.cost.isnan().all():
        raise DeepClusterError("No class has images that show it and images that do not: there is nothing to learn.")
    return svms


def fit_svm(features: np.ndarray, labels: np.ndarray, *, seed: int, costs: Sequence[float] = COSTS) -> Any:
    """scikit-learn's LinearSVC of one class, of (N, D) features and (N,) labels; None without positives or
    negatives."""
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
        if len(costs) == 1 or fewest < 2:
            return svm.fit(x, positive)
        folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed % 2**32)
        # of costs that score the same the first is taken, which is the smallest
        search = GridSearchCV(svm, {"C": list(costs)}, scoring="average_precision", cv=folds)
        return search.fit(x, positive).best_estimator_


def few_shots(labels: np.ndarray, shots: int, seed: int, sample: int) -> np.ndarray:
    """Of (N, C) labels, 1, 0 or -1, those of `shots` positives and (C - 1) · `shots` negatives of each class; all
    others are -1. Each class is drawn by itself (arXiv 1905.01235 §4.2); one that has fewer gives all it has."""
    drawn = np.full_like(labels, -1)
    classes = labels.shape[1]
    for column in range(classes):
        random = np.random.default_rng(seed_of(seed, SHOTS, shots, sample, column))
        for value, count in ((1, shots), (0, max(1, classes - 1) * shots)):
            rows = np.flatnonzero(labels[:, column] == value)
            drawn[random.permutation(rows)[:count], column] = value
    return drawn


def classify_by_svms(
    task: ClassificationTask, taps: Sequence[str], shots: Sequence[int], samples: int, costs: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One draw for each seed, and settings; saves the SVMs of the first seed."""
    subject, screen, classes = task.subject, task.screen, task.train.classes
    pools = poolings(subject.backbone, taps)
    file, resume = task.files([list(costs), list(map(str, pools.values())), subject.image_size], SAVE_SECONDS)
    tables = []
    for voc in (task.train, task.test):
        # each image is read once, at its full size: nothing is worth keeping
        pixels = load_pixels(voc.images, short_side=None, cache_gb=0, workers=subject.workers)
        with screen.bar(f"features of {voc.split}", len(pixels)) as advance:
            tables.append(pooled_features(subject.backbone, pixels, pools, subject.device, advance))
    (rows, features), (test_rows, test_features) = tables
    labels = task.labels[rows]

    def fit(tap: str, seed: int) -> dict[str, torch.Tensor]:
        with screen.bar(f"SVMs of {tap}", len(classes), "classes") as advance:
            return vars(fit_svms(features[tap], labels, seed=seed, costs=costs, after_class=advance, resume=resume))

    def low_shot(tap: str, seed: int, count: int) -> list[float]:
        maps = []
        with screen.bar(f"{count} shots", samples * len(classes), "classes") as advance:
            for sample in range(samples):
                drawn = few_shots(labels, count, seed, sample)
                shown = np.flatnonzero((drawn >= 0).any(axis=1))
                svms = fit_svms(features[tap][shown], drawn[shown], seed=seed, costs=costs, after_class=advance)
                maps.append(task.scores(svms.scores(test_features[tap]), test_rows)["map"])
        return maps

    draws: list[dict[str, Any]] = []
    saved: dict[str, torch.Tensor] = {}
    for seed in task.seeds:
        draw: dict[str, Any] = {"seed": seed}
        for tap in pools:
            prefix = f"{tap}_" if len(pools) > 1 else ""
            svms = ClassSVMs(**resume.run(f"seed {seed}, {tap}", partial(fit, tap, seed)))
            if seed == task.seeds[0]:
                saved |= {f"{tap}.weight": svms.weight.float(), f"{tap}.bias": svms.bias.float()}
            found = task.scores(svms.scores(test_features[tap]), test_rows)
            draw |= {prefix + name: value for name, value in found.items()}
            chosen = zip(classes, svms.cost.tolist(), strict=True)
            draw[f"{prefix}costs"] = {name: cost for name, cost in chosen if np.isfinite(cost)}
            draw[f"{prefix}unconverged"] = int((~svms.converged).sum())
            for count in shots:
                stage = f"seed {seed}, {tap}, {samples} x {count} shots"
                maps = resume.run(stage, partial(low_shot, tap, seed, count))
                draw[f"{prefix}map_{count}shot"] = float(np.mean(maps))
                draw[f"{prefix}map_{count}shot_samples"] = maps
        draws.append(draw)
    about: dict[str, Any] = {"mode": "svm", "subject": subject.name, "classes": classes, "short_side": None}
    about["poolings"] = {tap: asdict(pool) for tap, pool in pools.items()}
    save_tensors(file, PROTOCOL, about, saved)
    resume.remove()
    settings: dict[str, Any] = {
        "features": f"{', '.join(f'{tap}: {pool}' for tap, pool in pools.items())}, L2-normalized",
        "images": f"whole images resized to {subject.image_size} x {subject.image_size}",
        "classifier": "linear SVM for each class, squared hinge, positives weigh 2, cost by the average precision of"
        f" {FOLDS} folds of the training split, at most {MAX_ITER} iterations",
        "costs": list(costs),
        "shots": list(shots),
        "images_described": len(rows),
        "file": f"{file} (load_voc_classifier reads it)",
    }
    if shots:
        settings["samples"] = samples
        settings["low_shot"] = (
            "k positives and (classes - 1) k negatives of each class, cost by folds where there are 2 positives or"
            f" more, else {FALLBACK_COST:g}"
        )
    return draws, settings

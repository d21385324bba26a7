"""The protocol `voc-classification`: which of VOC's classes an image shows, by SVMs on fixed features or fine-tuning.

What is trained sees the training split alone; the test split is looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.voc.average_precision import Rule
from deepcluster.evaluate.voc.by_svm import SVMs, by_svm
from deepcluster.evaluate.voc.by_tuning import FineTuning, by_tuning
from deepcluster.evaluate.voc.crops import KINDS
from deepcluster.evaluate.voc.dataset import open_voc
from deepcluster.evaluate.voc.finetune import RECIPES
from deepcluster.evaluate.voc.transfer import MODES
from deepcluster.evaluate.voc.work import PROTOCOL, Work
from deepcluster.models.alexnet import ConvThenLinear

RULE_SAYS = {
    "11-point": "11-point interpolated, VOC 2007's own rule",
    "all-point": "area below the interpolated curve, VOC's rule from 2010 on",
    "sklearn": "scikit-learn's average_precision_score, as the published code of DeepCluster has it",
}


def voc_classification(
    subject: Subject,
    data: str | Path,
    test: str | Path | None = None,
    *,
    how: SVMs | FineTuning | None = None,
    split: str = "trainval",
    test_split: str = "test",
    ap: Rule = "11-point",
    seeds: int = 1,
    seed: int = 0,
    screen: Screen | None = None,
    check: Callable[[int], None] = lambda iteration: None,
) -> Result:
    """Mean average precision of classifying a VOC set.

    Scores are `map` and `ap_CLASS`; with several taps each begins with the tap's name, and with few shots there are
    `map_NUMBERshot`. What was trained with the first seed is saved as `voc-classification.safetensors` beside the
    result; `classifier.load_voc_classifier` reads it.

    Args:
        data: a VOC set, see `layout.open_voc`.
        test: another VOC set for the test; None = the same.
        how: `SVMs` or `FineTuning` with their settings; None = `SVMs()`.
        split, test_split: names of lists in ImageSets/Main.
        ap: "11-point", "all-point" or "sklearn".
        seeds: repetitions, with `seed`, `seed` + 1, ...
        check: called with each iteration of fine-tuning; may raise.

    Raises:
        DeepClusterError: no such set, split, layer, rule or recipe, or nothing to score.
        Interrupted: Ctrl-C while fine-tuning; asked again with the same settings, it goes on.
    """
    how = SVMs() if how is None else how
    _check(subject, how, ap, seeds)
    screen = screen or Screen(quiet=True)
    train = open_voc(data, split)
    held = open_voc(data if test is None else test, test_split, classes=train.classes)
    labels, truth = train.labels_matrix(), held.labels_matrix()
    for voc in (train, held):
        if voc.problems:
            screen.warn(voc.summary())
    if not (truth > 0).any():
        raise DeepClusterError(f"No image of {held.images.name} is known to show a class: give an annotated --test.")
    both = set(train.ids) & set(held.ids) if train.name == held.name else set()
    if both or train.images.fingerprint() == held.images.fingerprint():
        raise DeepClusterError(
            f"--split {split} and --test-split {test_split} share {len(both) or len(train)} images: a test needs images"
            " of its own."
        )
    work = Work(subject, train, held, labels, truth, ap, screen)
    numbers = [seed + number for number in range(seeds)]
    if isinstance(how, SVMs):
        draws, settings = by_svm(work, how, numbers)
    else:
        draws, settings = by_tuning(work, how, numbers, check)
    settings = {
        "data": train.name,
        "split": split,
        "test": held.name,
        "test_split": test_split,
        "images_train": len(train),
        "images_test": len(held),
        "classes": list(train.classes),
        "problems": len(train.problems) + len(held.problems),
        "ap": RULE_SAYS[ap],
        "labels": "an image is left out for a class all whose objects in it are difficult",
        **settings,
        "seeds": numbers,
    }
    return Result(PROTOCOL, settings, _means(draws), draws)


def _check(subject: Subject, how: SVMs | FineTuning, ap: Rule, seeds: int) -> None:
    if ap not in get_args(Rule):
        raise DeepClusterError(f"There is no rule {ap!r} for average precision: use {', '.join(get_args(Rule))}.")
    if seeds < 1:
        raise DeepClusterError(f"--seeds {seeds} is no number of repetitions: give 1 or more.")
    if isinstance(how, SVMs):
        if how.samples < 1 or any(shots < 1 for shots in how.shots):
            raise DeepClusterError("--shots and --samples count images and draws: give numbers from 1 up.")
        return
    if how.mode not in MODES:
        raise DeepClusterError(f"There is no mode {how.mode!r}: use svm, {' or '.join(MODES)}.")
    if how.recipe not in RECIPES or how.crops not in KINDS:
        raise DeepClusterError(f"Recipes are {', '.join(RECIPES)} and crops {', '.join(KINDS)}: choose of these.")
    own = isinstance(subject.backbone.trunk, ConvThenLinear)
    if how.hidden is not None and (own or how.mode == "all"):
        raise DeepClusterError("--hidden is the width of layers that are not added here: leave it out.")
    if how.hidden is not None and how.hidden < 1:
        raise DeepClusterError(f"--hidden {how.hidden} is no width: give 1 or more.")
    if how.train_batchnorm:
        if how.mode == "all":
            raise DeepClusterError("--mode all trains batch-norm anyway: leave out --train-batchnorm.")
        if not any(isinstance(layer, _BatchNorm) for layer in subject.backbone.modules()):
            raise DeepClusterError(f"{subject.name} has no batch-norm: leave out --train-batchnorm.")


def _means(draws: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each score over the draws, with its deviation where there are several; few shots have their own."""
    scores: dict[str, float] = {}
    for name in draws[0]:
        if not isinstance(draws[0][name], float) or not ("map" in name or "ap_" in name):
            continue
        samples = [value for draw in draws for value in draw.get(f"{name}_samples", [draw[name]])]
        scores[name] = float(np.mean(samples))
        if len(samples) > 1:
            scores[f"{name}_std"] = float(np.std(samples, ddof=1))
    return scores

"""The protocol `voc-classification`: which of VOC's classes an image shows, by SVMs on fixed features or fine-tuning.

Only the training split is used in training; the test split is scored once, at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import OUTPUT
from deepcluster.evaluate.linear.recipes import Recipe
from deepcluster.evaluate.options import check_choice, check_counts, check_not_given
from deepcluster.evaluate.result import Result, mean_and_std
from deepcluster.evaluate.tensor_file import save_tensors
from deepcluster.evaluate.voc.average_precision import RULES, Rule
from deepcluster.evaluate.voc.classifier import PROTOCOL, ClassificationTask
from deepcluster.evaluate.voc.dataset import open_voc
from deepcluster.evaluate.voc.finetune import (
    BUILD,
    HIDDEN,
    RANDOM_CROPS,
    Crops,
    FineTuneMode,
    RecipeName,
    TransferNetwork,
    finetune,
    recipe_of,
    summed_logits,
)
from deepcluster.evaluate.voc.maps import batch_norms
from deepcluster.evaluate.voc.svm import COSTS, classify_by_svms
from deepcluster.evaluate.voc.training import load_split
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.random import seed_of

Mode = Literal["svm", "fc6-8", "all"]
SAMPLES = 5


def voc_classification(
    subject: Subject,
    data: str | Path,
    test: str | Path | None = None,
    *,
    split: str = "trainval",
    test_split: str = "test",
    ap: Rule = "11-point",
    mode: Mode = "svm",
    seeds: int = 1,
    taps: tuple[str, ...] | None = None,
    shots: tuple[int, ...] | None = None,
    samples: int | None = None,
    costs: tuple[float, ...] | None = None,
    recipe: RecipeName | None = None,
    iterations: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    step: int | None = None,
    weight_decay: float | None = None,
    crops: Crops | None = None,
    train_batchnorm: bool = False,
    hidden: int | None = None,
    seed: int = 0,
    screen: Screen | None = None,
) -> Result:
    """Mean average precision of classifying a PASCAL VOC set, by SVMs on frozen features or by fine-tuning.

    Scores are `map` and `ap_CLASS`; with several taps each begins with the tap's name, and with few shots there are
    `map_NUMBERshot`. What the first seed trained is saved beside the result.

    Args:
        subject: the network to evaluate.
        data: a VOC set: a folder such as VOCdevkit/VOC2007, or a .tar or .zip of it.
        test: another VOC set for the test; None = the same.
        split: images to train on: a list of ImageSets/Main, or all = every annotated image.
        test_split: images to score.
        ap: 11-point (VOC 2007), all-point (VOC 2010 and later), or sklearn (DeepCluster's published code).
        mode: svm = linear SVMs on frozen features; fc6-8 = new fully connected layers on frozen ones; all = train
            everything.
        seeds: repetitions, for a mean and its standard deviation.
        taps: svm: layers to read, all = every map; None = the output. Maps are pooled to about 9,000 numbers.
        shots: svm: also train with this many positives of each class, such as 1 2 4 8 16 32 64 96.
        samples: svm: draws for each number of shots; None = 5.
        costs: svm: costs to choose from by cross-validation; None = .5^19 ... .5^4, 1, 10 and 100.
        recipe: fine-tuning: settings of a paper's published code; None = deepcluster.
        iterations: fine-tuning: batches; None = the recipe's, as for the options that follow.
        batch_size: fine-tuning: images in a batch.
        lr: fine-tuning: learning rate.
        step: fine-tuning: iterations after which the learning rate is halved, again and again.
        weight_decay: fine-tuning: weight decay.
        crops: fine-tuning: crops of each test image; random = 10 draws, ten = corners, center and their mirror images,
            center = one; None = random.
        train_batchnorm: fc6-8: train the scales and shifts of batch-norm in the frozen layers.
        hidden: fc6-8: width of the new layers behind a network without fc6 and fc7; None = 4096.
        seed: of the first repetition.
        screen: for progress bars and warnings; None = none.

    Raises:
        DeepClusterError: no such set, split or layer, settings that exclude each other, or nothing to score.
        Interrupted: Ctrl-C while fine-tuning; called again with the same settings, it continues to the bit.
    """
    check_choice("ap", ap, get_args(Rule))
    check_choice("mode", mode, get_args(Mode))
    check_counts(seeds=seeds, shots=shots, samples=samples, hidden=hidden)
    of_svm = {"taps": taps, "shots": shots, "samples": samples, "costs": costs}
    changes = {"iterations": iterations, "batch_size": batch_size, "lr": lr, "step": step, "weight_decay": weight_decay}
    of_tuning = {"recipe": recipe, "crops": crops, "train_batchnorm": train_batchnorm or None, "hidden": hidden}
    others = changes | of_tuning if mode == "svm" else of_svm
    check_not_given(f"has no meaning with --mode {mode}: leave it out", **others)
    if samples is not None and not shots:
        raise DeepClusterError("--samples counts draws of few shots: give --shots, too.")
    recipe, crops = recipe or "deepcluster", crops or "random"
    if mode != "svm":
        _check_tuning(subject, mode, recipe, crops, train_batchnorm, hidden)
        tuning = recipe_of(recipe, mode, **changes)
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
            f"--split {split} and --test-split {test_split} share {len(both) or len(train)}"
            f" image{'s' * ((len(both) or len(train)) != 1)}: a test needs images of its own."
        )
    task = ClassificationTask(subject, train, held, labels, truth, ap, range(seed, seed + seeds), screen)
    if mode == "svm":
        draws, said = classify_by_svms(task, taps or (OUTPUT,), shots or (), samples or SAMPLES, costs or COSTS)
    else:
        layers = {"train_batchnorm": train_batchnorm, "draw_top": recipe == "deepercluster", "hidden": hidden or HIDDEN}
        draws, said = _by_tuning(task, mode, tuning, layers, crops)
        said["recipe"] = recipe
    settings = {
        "data": train.name,
        "split": split,
        "test": held.name,
        "test_split": test_split,
        "images_train": len(train),
        "images_test": len(held),
        "classes": list(train.classes),
        "problems": len(train.problems) + len(held.problems),
        "ap": RULES[ap],
        "labels": "an image is left out for a class if all its objects of the class are difficult",
        "mode": mode,
        **said,
        "seeds": list(task.seeds),
    }
    return Result(PROTOCOL, settings, _mean_scores(draws), draws)


def _check_tuning(
    subject: Subject, mode: str, recipe: str, crops: str, train_batchnorm: bool, hidden: int | None
) -> None:
    check_choice("recipe", recipe, get_args(RecipeName))
    check_choice("crops", crops, get_args(Crops))
    if hidden is not None and (isinstance(subject.backbone.trunk, ConvThenLinear) or mode == "all"):
        raise DeepClusterError("--hidden is the width of layers that are not added here: leave it out.")
    if train_batchnorm and mode == "all":
        raise DeepClusterError("--mode all trains batch-norm anyway: leave out --train-batchnorm.")
    if train_batchnorm and not batch_norms(subject.backbone):
        raise DeepClusterError(f"{subject.name} has no batch-norm: leave out --train-batchnorm.")


def _by_tuning(
    task: ClassificationTask, mode: FineTuneMode, recipe: Recipe, layers: dict[str, Any], crops: Crops
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One draw for each seed, and settings; saves the network of the first seed."""
    subject, screen, classes, device = task.subject, task.screen, task.train.classes, task.subject.device
    views = recipe.resized_views(subject.backbone)
    # the smallest crop that is drawn still has as many pixels as the network sees
    short_side = int(np.ceil(subject.image_size / np.sqrt((views.crop_scale or (1.0,))[0])))
    about = {
        "mode": mode,
        "subject": subject.name,
        "classes": list(classes),
        "backbone": subject.backbone.config,
        "layers": layers,
        "views": asdict(views),
        "short_side": short_side,
        "crops": crops,
    }
    file, resume = task.files([about, recipe])
    pixels, held = (load_split(voc, subject, screen, short_side) for voc in (task.train, task.test))

    def one_draw(seed: int) -> dict[str, Any]:
        with preserve_random_state():
            torch.manual_seed(seed_of(seed, BUILD))
            network = TransferNetwork(copy.deepcopy(subject.backbone).cpu(), len(classes), mode, **layers)
        options: dict[str, Any] = {"seed": seed, "device": device}
        loss = finetune(network, pixels, task.labels, recipe, views, resume=resume, screen=screen, **options)
        with screen.bar("test", len(held)) as bar:
            logits = summed_logits(network, held, views, len(classes), crops=crops, after_batch=bar, **options)
        good = np.flatnonzero(np.isfinite(logits).all(axis=1))
        if seed == task.seeds[0]:
            save_tensors(file, PROTOCOL, about, network.state_dict())
        return {"seed": seed, **task.scores(logits[good], good), "loss": loss}

    draws = [resume.run(f"seed {seed}", partial(one_draw, seed)) for seed in task.seeds]
    resume.remove()
    kept = "the kept layers are frozen" if mode == "fc6-8" else "everything is trained"
    batchnorm = ", but for their batch-norm scales and shifts" if layers["train_batchnorm"] else ""
    count = {"random": RANDOM_CROPS, "ten": 10, "center": 1}[crops]
    return draws, {
        "trained": f"new fully connected layers, {kept}{batchnorm}; batch-norm keeps its statistics",
        "training": str(recipe),
        "iterations": recipe.iterations,
        "batch": recipe.batch_size,
        "crops": crops,
        "tested": f"sum of the logits of {count} {crops} crop{'s' * (count != 1)}",
        "image_size": subject.image_size,
        "images_scored": len(held.good),
        "file": f"{file} (load_voc_classifier reads it)",
    }


def _mean_scores(draws: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each score over the draws, with its standard deviation where there are several; the samples of few shots
    count one by one."""
    scores: dict[str, float] = {}
    for name, value in draws[0].items():
        if isinstance(value, float) and ("map" in name or "ap_" in name):
            samples = [sample for draw in draws for sample in draw.get(f"{name}_samples", [draw[name]])]
            scores |= mean_and_std([{name: sample} for sample in samples])
    return scores

"""Protocol `low-shot`: what a network's features are worth with few labels.

k images of each class, or a share of all labels, drawn several times: a linear classifier on features computed once,
or the whole network fine-tuned.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.context import Evaluation, Learner, Precision
from deepcluster.evaluate.linear.features import OUTPUT, PRECISIONS, poolings
from deepcluster.evaluate.linear.heads import layers_of, perceptron
from deepcluster.evaluate.linear.logistic import LOSSES, Solver, cross_validated_fit, top_accuracies
from deepcluster.evaluate.linear.probe import Classifier, network_digest
from deepcluster.evaluate.linear.recipes import SEMI_SUPERVISED, Recipe, Schedule, override
from deepcluster.evaluate.linear.splits import Split, draw_shots, split_data
from deepcluster.evaluate.options import check_choice, check_counts, check_not_given
from deepcluster.evaluate.result import Result
from deepcluster.models.export import export_backbone
from deepcluster.models.sync_batchnorm import revert_sync_batchnorm

SHOTS = (1, 2, 4, 8, 16)
HEAD_MULTIPLIER = 10.0
"""The middle of the three that OpenSelfSup's benchmark tries; so is the learning rate of `SEMI_SUPERVISED`."""
CLASSIFIERS = {"logistic": "logistic regression", "svm": "linear SVM (squared hinge, one against the rest)"}
NETWORK = "network"
"""The tap of a learner that is the whole network."""


def low_shot(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    holdout: float | None = None,
    shots: Sequence[int] | None = None,
    fraction: Sequence[float] | None = None,
    draws: int = 5,
    classifier: Literal["logistic", "svm"] = "logistic",
    c: float | None = None,
    tap: str = OUTPUT,
    fine_tune: bool = False,
    head_multiplier: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
    precision: Precision = "32",
    screen: Screen | None = None,
) -> Result:
    """Accuracy with few labels: k images of each class or a share of the labels, drawn several times.

    The network is left as it is. A stopped fine-tuning continues where it was.

    Args:
        subject, test, holdout, screen: see `evaluate.linear.linear.linear`.
        data: labeled images to draw from; None = the images of the run.
        shots: numbers of images of each class. None = 1 2 4 8 16, or none where `fraction` is given.
        fraction: shares of the labels, such as 0.01 0.1; of each class alike, at least one image.
        draws: how often each number or share is drawn. The first draw of k images is part of the first of 2 k.
        classifier: kind of classifier on features that are computed once.
        c: scikit-learn's C of the classifier of `shots`, on L2-normalized features. None = 1.
        tap: layer to read.
        fine_tune: train the whole network on each `fraction`, starting from the weights it has.
        head_multiplier: fine-tuning: how many times the network's learning rate the new layer has. None = 10.
        epochs: fine-tuning: passes over the drawn images. None = 20.
        lr: fine-tuning: learning rate. None = 0.01.
        weight_decay: fine-tuning: weight decay. None = 0.0005.
        batch_size: fine-tuning: images of a step. None = 256.
        schedule: fine-tuning: how the learning rate falls. None = to a fifth at 3/5 and at 4/5 of the epochs.
        seed: seed of the first draw, and of the holdout.
        precision: floating-point type of the network.

    Raises:
        DeepClusterError: a class has too few images, or options do not go together.
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("classifier", classifier, CLASSIFIERS)
    shares = tuple(sorted(float(share) for share in fraction or ()))
    counts = tuple(sorted(shots)) if shots is not None else (() if shares else SHOTS)
    check_counts(draws=draws, shots=counts)
    if any(not 0 < share <= 1 for share in shares):
        raise DeepClusterError("--fraction must be shares of the labels, above 0 and at most 1.")
    if c is not None and (c <= 0 or not counts):
        raise DeepClusterError("--c is of the classifier of --shots, and above 0; that of --fraction is chosen.")
    changes = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "batch_size": batch_size, "schedule": schedule}
    if not fine_tune:
        check_not_given(
            "is of the fine-tuning: add --fine-tune or leave it out", **changes, head_multiplier=head_multiplier
        )
    elif not shares:
        raise DeepClusterError("--fine-tune needs shares of the labels: give --fraction 0.01 0.1.")
    elif not counts and (classifier != "logistic" or tap != OUTPUT):
        raise DeepClusterError("--fine-tune trains the whole network: leave out --classifier and --tap.")
    elif precision == "16":
        raise DeepClusterError("--fine-tune has no 16-bit floating-point training: use --precision bf16 or 32.")
    divided = split_data(subject, data, test, holdout, protocol="low-shot", seed=seed)
    decodable = divided.train.labels[divided.train.decodable()]
    for count in counts:  # before anything is computed
        draw_shots(decodable, count, seed, divided.classes)
    screen = screen or Screen(quiet=True)
    evaluation = Evaluation("low-shot", subject, divided, draws, seed, precision, screen)
    del evaluation.settings["seeds"]
    settings = {"draws": draws, "drawing": "each image once, the same number or share of each class"}
    on_features = (*counts, *(() if fine_tune else shares))
    if on_features:
        pools = poolings(subject.backbone, [tap])
        if len(pools) != 1:
            raise DeepClusterError("--tap needs the name of one layer.")
        settings["features"] = f"{tap} {pools[tap]} of the central crop, computed once"
        kind = CLASSIFIERS[classifier]
        if counts:
            settings["shots"] = f"{kind} on L2-normalized features, C = {c or 1:g}"
        if shares and not fine_tune:
            settings["fractions"] = f"{kind} on standardized features; decay chosen by folds of the drawn labels"
    recipe = override(SEMI_SUPERVISED, **changes)
    multiplier = HEAD_MULTIPLIER if head_multiplier is None else head_multiplier
    if fine_tune:
        settings["fine_tuning"] = f"{recipe}; the learning rate of the new layer is {multiplier:g} times that"
    evaluation.start(settings, counts, shares)
    found = _on_features(evaluation, on_features, LOSSES[classifier], c or 1.0, tap) if on_features else []
    if fine_tune:
        found += _fine_tuned(evaluation, shares, recipe, multiplier)
    return dataclasses.replace(evaluation.result(found), draws=found)


def _draw(evaluation: Evaluation, name: str, number: int, images: np.ndarray, top: Sequence[float]) -> dict[str, Any]:
    """One draw, as the result lists it."""
    seed, scores = evaluation.seed + number, evaluation.scores(name, *top)
    return {"of": name, "draw": number, "seed": seed, "images": images.tolist(), **scores}


def _on_features(
    evaluation: Evaluation, wanted: Sequence[int | float], loss: str, c: float, tap: str
) -> list[dict[str, Any]]:
    """The draws; the first one's classifier for the largest share, or number, is saved."""
    data, classes = evaluation.data, len(evaluation.data.classes)
    pooling = poolings(evaluation.subject.backbone, [tap])[tap]
    (known, labels), (asked, answers) = evaluation.features(tap, pooling)
    index = data.train.index[data.train.decodable()]
    found = []
    for size, number in itertools.product(wanted, range(evaluation.seeds)):
        seed, few = evaluation.seed + number, isinstance(size, int)
        rows = draw_shots(labels.cpu().numpy(), size, seed, data.classes)
        places = torch.from_numpy(rows).to(known.device)
        x, y = known[places], labels[places]
        if few:
            fit = Solver(F.normalize(x, dim=1), y, classes, loss).fit(1 / (c * len(x)), tolerance=1e-6)
            weight, bias = fit.weight[0].T.contiguous(), fit.bias[0]
            scores = torch.addmm(bias, F.normalize(asked, dim=1), weight.T)
        else:
            best = cross_validated_fit(x, y, classes, seed=seed, loss=loss)
            weight, bias, scores = best.weight, best.bias, best.scores(asked)
        name = f"shots_{size}" if few else f"fraction_{size:g}"
        found.append(_draw(evaluation, name, number, index[rows], top_accuracies(scores, answers)))
        if number == 0 and size == wanted[-1]:
            evaluation.save({tap: Classifier(pooling, [(weight, bias)], unit=few)})
    return found


def _fine_tuned(
    evaluation: Evaluation, shares: Sequence[float], recipe: Recipe, multiplier: float
) -> list[dict[str, Any]]:
    """The draws; the first one's network for the largest share is saved, with its last layer as a probe of it."""
    data = evaluation.data
    train = data.train.subset(np.flatnonzero(data.train.decodable()))

    def read(images: Tensor) -> dict[str, Tensor]:
        return {NETWORK: images}

    def fine_tune(name: str, drawn: Split, seed: int, save: bool) -> list[float]:
        """Top-1 and top-5 accuracy."""
        backbone = copy.deepcopy(evaluation.subject.backbone).requires_grad_(True)
        revert_sync_batchnorm(backbone)
        head = perceptron(backbone.dim, len(data.classes), norm=False, seed=seed, name="head")
        network = nn.Sequential(OrderedDict(backbone=backbone, head=head))
        learners = [Learner(NETWORK, network, recipe.lr[0], recipe.weight_decay[0], ("head", multiplier))]
        autocast = PRECISIONS[evaluation.precision]
        evaluation.train(learners, read, drawn, recipe, seed=seed, name=name, autocast=autocast)
        (top,) = evaluation.accuracy(learners, read)
        if save:
            export_backbone(backbone, "safetensors", evaluation.file.with_stem(f"{evaluation.file.stem}-backbone"))
            pooling = poolings(backbone, [OUTPUT])[OUTPUT]
            evaluation.save({OUTPUT: Classifier(pooling, layers_of(head))}, network_digest(backbone))
        return top

    found = []
    for share, number in itertools.product(shares, range(evaluation.seeds)):
        seed, name = evaluation.seed + number, f"{share:g} of the labels, draw {number + 1}"
        drawn = train.subset(draw_shots(train.labels, share, seed, data.classes))
        save = share == max(shares) and number == 0
        top = evaluation.resume.run(name, partial(fine_tune, name, drawn, seed, save))
        found.append(_draw(evaluation, f"fine_tuned_{share:g}", number, drawn.index, top))
    evaluation.resume.remove()
    return found

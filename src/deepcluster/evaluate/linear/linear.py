"""Protocol `linear`: linear classifiers on frozen layers, one or all of them in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, counted
from deepcluster.evaluate.linear.context import Evaluation, Learner, Precision, Report, check_common
from deepcluster.evaluate.linear.features import OUTPUT, FrozenFeatures, Pooling, poolings
from deepcluster.evaluate.linear.heads import perceptron
from deepcluster.evaluate.linear.logistic import DECAYS, cross_validated_fit, top_accuracies
from deepcluster.evaluate.linear.probe import Classifier
from deepcluster.evaluate.linear.recipes import LINEAR, Recipe, Schedule, default_recipe, override
from deepcluster.evaluate.linear.splits import split_data, stratified_folds
from deepcluster.evaluate.options import check_choice, check_counts, check_not_given
from deepcluster.evaluate.result import Result

LOGISTIC = "logistic"
NO_NORM = ("alexnet", "vgg16")
"""Networks whose papers read the layers as they are; all others get a batch-norm without scale and shift first."""

Options = dict[str, list[tuple[float, float]]]
"""Tap -> learning rates and weight decays to choose from."""


def linear(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    holdout: float | None = None,
    taps: Sequence[str] = (OUTPUT,),
    recipe: Literal["logistic", "deepcluster", "deepercluster", "deepercluster-places", "openselfsup", "quick"]
    | None = None,
    epochs: int | None = None,
    lr: Sequence[float] | None = None,
    weight_decay: Sequence[float] | None = None,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    crops: Literal[1, 10] = 1,
    report: Report = "last",
    cross_validate: bool = False,
    folds: int = 5,
    seeds: int = 1,
    seed: int = 0,
    precision: Precision = "32",
    screen: Screen | None = None,
) -> Result:
    """Accuracy of linear classifiers on frozen layers: the output, or all layers in one pass over the images.

    The output alone gets a logistic regression on features that are computed once; layers get the papers' probes,
    trained by SGD. The network is left as it is. A stopped evaluation continues where it was.

    Args:
        subject: the network; see `engine.subject`.
        data: labeled training images; None = the images of the run.
        test: labeled test images.
        holdout: instead of `test`: share of the data to hold out, the same of each class.
        taps: layers to read: names, output, or all alone for every layer that gives a map or a sequence.
        recipe: how to train. None = logistic for the output alone; for layers what the papers have for this network,
            and quick, our own, for other networks and small images.
        epochs: passes over the training images. None = as the recipe has it.
        lr: learning rate, or several for `cross_validate` to choose from. None = the recipe's.
        weight_decay: weight decay, or several for `cross_validate` to choose from; logistic always chooses. None = the
            recipe's.
        batch_size: images of a step. None = the recipe's.
        schedule: how the learning rate falls. None = the recipe's.
        crops: crops of a test image, over which softmax is averaged.
        report: the epoch to score. best-epoch is the papers' habit, where the test set chooses: optimistic.
        cross_validate: choose among several values of `lr` and `weight_decay` by folds of the training images.
        folds: number of these folds.
        seeds: repetitions.
        seed: seed of the first repetition, and of the holdout.
        precision: floating-point type of the frozen network.
        screen: shows bars and a line per epoch; None = silence.

    Raises:
        DeepClusterError: labels, test images or classes are missing, or options do not go together.
    """
    screen = screen or Screen(quiet=True)
    taps = tuple(dict.fromkeys(taps))
    name = recipe or (LOGISTIC if taps == (OUTPUT,) else default_recipe(subject.backbone))
    check_choice("recipe", name, (LOGISTIC, *LINEAR))
    check_common(crops, report, seeds, precision)
    check_counts(least=2, folds=folds)
    changes = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "schedule": schedule}
    if name == LOGISTIC:
        given = {**changes, "crops": None if crops == 1 else crops, "report": None if report == "last" else report}
        check_not_given(
            "has no meaning for a logistic regression on features computed once: give --recipe"
            f" {'|'.join(LINEAR)} for probes that are trained step by step",
            **given,
        )
    pools = poolings(subject.backbone, taps)
    divided = split_data(subject, data, test, holdout, seed=seed)
    scored = "" if name == LOGISTIC else report
    evaluation = Evaluation("linear", subject, divided, seeds, seed, precision, screen, crops, scored)
    if name == LOGISTIC:
        return _logistic(evaluation, pools, weight_decay, folds, cross_validate)
    return _sgd(evaluation, pools, override(LINEAR[name], **changes, weight_decay=weight_decay), folds, cross_validate)


def _describe(pools: Mapping[str, Pooling]) -> str:
    return "; ".join(f"{tap} {pooling}" for tap, pooling in pools.items())


def _logistic(
    evaluation: Evaluation,
    pools: Mapping[str, Pooling],
    weight_decay: Sequence[float] | None,
    folds: int,
    cross_validate: bool,
) -> Result:
    """A logistic regression on features that are computed once."""
    decays = tuple(sorted(set(DECAYS if weight_decay is None else weight_decay), reverse=True))
    if not decays or min(decays) <= 0:
        raise DeepClusterError("--weight-decay must be above 0 for a logistic regression, whose weights it bounds.")
    if cross_validate and len(decays) == 1:
        raise DeepClusterError("--cross-validate has nothing to choose: give several values of --weight-decay.")
    several = f"chosen from {', '.join(f'{decay:g}' for decay in decays)} by {folds} folds of the training images"
    said = several if len(decays) > 1 else f"{decays[0]:g}"
    evaluation.start(
        {
            "recipe": "multinomial logistic regression by L-BFGS on standardized features of the central crop, computed"
            " once",
            "weight_decay": f"{said}; scikit-learn's C = 1 / (decay x images)",
            "features": _describe(pools),
        }
    )
    classes = len(evaluation.data.classes)
    draws: list[dict[str, Any]] = [{"seed": evaluation.seed + number} for number in range(evaluation.seeds)]
    classifiers: dict[str, Classifier] = {}
    chosen: dict[str, Any] = {}
    for tap, pooling in pools.items():
        (known, labels), (asked, answers) = evaluation.features(tap, pooling)
        for draw in draws:
            fit = cross_validated_fit(known, labels, classes, decays=decays, folds=folds, seed=draw["seed"])
            draw |= evaluation.scores(f"linear_{tap}", *top_accuracies(fit.scores(asked), answers))
            classifiers.setdefault(tap, Classifier(pooling, [(fit.weight, fit.bias)]))
            chosen.setdefault(tap, []).append({"weight_decay": fit.decay, "held_out_accuracy": fit.tried})
    evaluation.settings["chosen"] = chosen
    evaluation.save(classifiers)
    return evaluation.result(draws)


def _sgd(
    evaluation: Evaluation, pools: Mapping[str, Pooling], recipe: Recipe, folds: int, cross_validate: bool
) -> Result:
    """The papers' probes, trained by SGD."""
    subject, data = evaluation.subject, evaluation.data
    options: Options = {
        tap: [(lr, decay) for lr in recipe.rates(tap) for decay in recipe.weight_decay] for tap in pools
    }
    several = any(len(own) > 1 for own in options.values())
    if several and not cross_validate:
        raise DeepClusterError(
            "Several learning rates or weight decays were given and nothing to choose by, which the test set must not"
            " do: add --cross-validate, or give one of each."
        )
    if cross_validate and not several:
        raise DeepClusterError("--cross-validate has nothing to choose: give several values, such as --lr 0.1 0.01.")
    missing = [tap for tap in pools if recipe.lr_of and tap not in dict(recipe.lr_of)]
    if missing:
        raise DeepClusterError(
            f"This recipe has learning rates for VGG-16's convolutions alone and none for {missing[0]!r}: give --lr."
        )
    smallest = int(np.bincount(data.train.labels)[np.unique(data.train.labels)].min())
    if cross_validate and smallest < folds:
        raise DeepClusterError(
            f"A class has {counted(smallest, 'image')}, too few for {folds} folds: give fewer --folds."
        )
    norm = recipe.norm or subject.backbone.name not in NO_NORM
    features = _describe(pools) + ("; batch-norm without scale and shift" if norm else "")
    evaluation.start({"recipe": str(recipe), "features": features}, folds, cross_validate)
    frozen = FrozenFeatures(subject.backbone, pools, subject.device, evaluation.precision)

    def learner(tap: str, lr: float, decay: float, seed: int) -> Learner:
        head = perceptron(pools[tap].dim, len(data.classes), norm=norm, seed=seed, name=tap)
        return Learner(tap, head, lr, decay)

    if cross_validate:
        options, held_out = _choose(evaluation, frozen, options, learner, recipe, folds)
        evaluation.settings["held_out"] = held_out
        evaluation.settings["chosen"] = f"lr and weight decay by {folds} folds of the training images: " + ", ".join(
            f"{tap} {lr:g} and {decay:g}" for tap, ((lr, decay),) in options.items()
        )
    return evaluation.train_draws(
        lambda seed: [learner(tap, *options[tap][0], seed) for tap in pools],
        frozen,
        recipe,
        lambda tap, layers: Classifier(pools[tap], layers),
        "linear_{}".format,
    )


def _choose(
    evaluation: Evaluation,
    frozen: FrozenFeatures,
    options: Options,
    learner: Callable[[str, float, float, int], Learner],
    recipe: Recipe,
    folds: int,
) -> tuple[Options, dict[str, dict[str, float]]]:
    """The best rate and decay of each tap, and the held-out accuracy of all; each fold trains all of them at once."""
    train, seed = evaluation.data.train, evaluation.seed
    fold = stratified_folds(train.labels, folds, seed)
    flat = [(tap, lr, decay) for tap, own in options.items() for lr, decay in own]

    def train_fold(number: int) -> list[float]:
        learners = [learner(*option, seed) for option in flat]
        kept, held_out = (train.subset(np.flatnonzero(rows)) for rows in (fold != number, fold == number))
        evaluation.train(learners, frozen, kept, recipe, seed=seed, name=f"fold {number + 1} of {folds}")
        return [top1 for top1, _ in evaluation.accuracy(learners, frozen, held_out)]

    found = [evaluation.resume.run(f"fold {number}", partial(train_fold, number)) for number in range(folds)]
    accuracies = dict(zip(flat, np.mean(found, 0).tolist(), strict=True))
    best: Options = {}
    held: dict[str, dict[str, float]] = {}
    for tap, own in options.items():
        means = {(lr, decay): accuracies[tap, lr, decay] for lr, decay in own}
        best[tap] = [max(means, key=means.__getitem__)]
        held[tap] = {f"lr {lr:g}, weight decay {decay:g}": mean for (lr, decay), mean in means.items()}
    return best, held

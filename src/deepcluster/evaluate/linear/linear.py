"""Protocol `linear`: linear classifiers on frozen layers, one or all of them in one pass over the images.

`--taps output` alone is a logistic regression on features computed once; other taps, or a recipe, are the papers'
probes by SGD. This file says which, and in which order; it trains nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear import cached, recipes
from deepcluster.evaluate.linear.frozen import Frozen
from deepcluster.evaluate.linear.frozen import cached as cached_features
from deepcluster.evaluate.linear.heads import Layers, linear_head
from deepcluster.evaluate.linear.parts import Part, divide, folds_of
from deepcluster.evaluate.linear.pooling import OUTPUT, Pooling, poolings
from deepcluster.evaluate.linear.probe import Trained
from deepcluster.evaluate.linear.recipes import LINEAR, Recipe
from deepcluster.evaluate.linear.stages import Stages
from deepcluster.evaluate.linear.training import Learner, Training, judge
from deepcluster.evaluate.linear.work import Work, check_common, train_seeds
from deepcluster.evaluate.result import Result

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

LOGISTIC = "logistic"
FOLDS = 5
NO_NORM = ("alexnet", "vgg16")
"""Networks whose papers read the layers as they are; all others get a batch-norm without scale and shift first."""


def linear(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    holdout: float | None = None,
    taps: Sequence[str] = (OUTPUT,),
    recipe: str | None = None,
    epochs: int | None = None,
    lr: Sequence[float] | None = None,
    weight_decay: Sequence[float] | None = None,
    batch_size: int | None = None,
    schedule: str | None = None,
    crops: int = 1,
    report: str = "last",
    cross_validate: bool = False,
    folds: int = FOLDS,
    seeds: int = 1,
    seed: int = 0,
    precision: str = "32",
    screen: Screen | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Result:
    """Protocol `linear`: top-1 and top-5 accuracy of a linear classifier on each tap.

    Args:
        subject: a network; see `engine.subject`. It is left as it is.
        data: labelled training images; None = the images of the run.
        test: labelled test images, or `holdout`, the share of `data` that is held out for it.
        taps: layers, "output", or "all" alone.
        recipe: "logistic" (the default of the output alone), or a name of `recipes.LINEAR`; None = what the papers
            have for this network.
        epochs, lr, weight_decay, batch_size, schedule: in place of the recipe's own.
        crops: 1 = the central crop of a test image; 10 = softmax averaged over ten.
        report: "last" epoch, or "best-epoch", the one the test set likes best.
        cross_validate: choose among several values of `lr` and `weight_decay` by `folds` folds of the training images.
        seeds: repetitions, with seeds from `seed` on.
        precision: "32", "bf16" or "16", of the frozen network.
        screen: shows bars and a line an epoch; None = silence.
        pause: called after each epoch, when its state is on disk; may raise to stop.

    Raises:
        DeepClusterError: labels, test images or classes are missing, or options do not go together.
    """
    screen = screen or Screen(quiet=True)
    taps = tuple(dict.fromkeys(taps))
    name = recipe or (LOGISTIC if taps == (OUTPUT,) else recipes.usual(subject.backbone))
    if name != LOGISTIC and name not in LINEAR:
        raise DeepClusterError(f"There is no recipe {name!r}: choose one of {', '.join([LOGISTIC, *LINEAR])}.")
    check_common(crops, report, seeds, folds, precision)
    steps = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "schedule": schedule}
    if name == LOGISTIC:
        _refuse_steps(steps, crops, report)
    pools = poolings(subject.backbone, taps)
    exam = divide(subject, data, test, holdout, seed=seed)
    work = Work(subject, exam, "linear", seeds, seed, precision, screen, pause, crops=crops, report=report)
    if name == LOGISTIC:
        work.report = ""
        return _logistic(work, pools, weight_decay, folds, cross_validate)
    chosen = recipes.change(LINEAR[name], **steps, weight_decay=weight_decay)
    _check_choice(chosen, list(pools), cross_validate)
    return _by_steps(work, pools, chosen, folds, cross_validate)


def _refuse_steps(steps: Mapping[str, Any], crops: int, report: str) -> None:
    given = [name for name, value in steps.items() if value is not None]
    given += ["crops"] * (crops != 1) + ["report"] * (report != "last")
    if given:
        raise DeepClusterError(
            f"--{given[0].replace('_', '-')} has no meaning for a logistic regression on features computed once: give"
            f" --recipe {'|'.join(LINEAR)} for probes that are trained step by step."
        )


def _check_choice(recipe: Recipe, taps: list[str], cross_validate: bool) -> None:
    several = any(len(recipe.rates(tap)) * len(recipe.weight_decay) > 1 for tap in taps)
    if several and not cross_validate:
        raise DeepClusterError(
            "Several learning rates or weight decays were given and nothing to choose by, which the test set must not"
            " do: add --cross-validate, or give one of each."
        )
    if cross_validate and not several:
        raise DeepClusterError("--cross-validate has nothing to choose: give several values, such as --lr 0.1 0.01.")
    missing = [tap for tap in taps if recipe.lr_of and tap not in dict(recipe.lr_of)]
    if missing:
        raise DeepClusterError(
            f"This recipe has learning rates for VGG-16's convolutions alone and none for {missing[0]!r}: give --lr."
        )


# --- logistic regression on features computed once


def _logistic(
    work: Work, pools: Mapping[str, Pooling], decays: Sequence[float] | None, folds: int, cross_validate: bool
) -> Result:
    subject, exam = work.subject, work.exam
    grid = tuple(sorted(set(cached.DECAYS if decays is None else decays), reverse=True))
    if not grid or min(grid) <= 0:
        raise DeepClusterError("--weight-decay must be above 0 for a logistic regression, whose weights it bounds.")
    if cross_validate and len(grid) == 1:
        raise DeepClusterError("--cross-validate has nothing to choose: give several values of --weight-decay.")
    draws: list[dict[str, Any]] = [{"seed": work.seed + number} for number in range(work.seeds)]
    trained: dict[str, Trained] = {}
    chosen: dict[str, Any] = {}
    for tap, pooling in pools.items():
        with work.screen.bar(f"features {tap}", len(exam.train) + len(exam.test)) as advance:
            (known, labels), (asked, answers) = cached_features(
                subject.backbone,
                tap,
                pooling,
                [exam.train, exam.test],
                work.views.center,
                subject.device,
                work.precision,
                advance,
            )
        for draw in draws:
            found = cached.fit(known, labels, exam.classes, decays=grid, folds=folds, seed=draw["seed"])
            top1, top5 = cached.accuracies(found.scores(asked), answers)
            draw |= work.scores(f"linear_{tap}", top1, top5)
            if draw is draws[0]:
                trained[tap] = Trained(pooling, [(found.weight, found.bias)])
            chosen.setdefault(tap, []).append({"weight_decay": found.decay, "held_out_accuracy": found.tried})
    choice = (
        f"chosen from {', '.join(f'{decay:g}' for decay in grid)} by {folds} folds of the training images"
        if len(grid) > 1
        else f"{grid[0]:g}"
    )
    settings = {
        "recipe": "multinomial logistic regression by L-BFGS on standardized features of the plain view, computed once",
        "weight_decay": f"{choice}; scikit-learn's C = 1 / (decay x images)",
        "features": _list(pools),
        "chosen": chosen,
    }
    work.save(trained, settings)
    return work.result(draws, settings)


# --- the papers' probes


def _by_steps(work: Work, pools: Mapping[str, Pooling], recipe: Recipe, folds: int, cross_validate: bool) -> Result:
    exam = work.exam
    norm = recipe.norm or work.subject.backbone.name not in NO_NORM
    frozen = Frozen(work.subject.backbone, pools, work.subject.device, work.precision)
    settings: dict[str, Any] = {
        "recipe": recipe.said(),
        "features": _list(pools) + ("; batch-norm without scale and shift" if norm else ""),
    }
    stages = work.stages(settings, folds, cross_validate)

    def learner(tap: str, lr: float, decay: float, seed: int) -> Learner:
        return Learner(tap, linear_head(pools[tap].dim, exam.classes, norm=norm, seed=seed, name=tap), lr, decay)

    def training(learners: list[Learner], part: Part, seed: int) -> Training:
        make = recipe.make(work.views)
        return Training(learners, frozen, part, make, recipe, seed=seed, device=work.subject.device)

    options = {tap: [(lr, decay) for lr in recipe.rates(tap) for decay in recipe.weight_decay] for tap in pools}
    if cross_validate:
        smallest = int(np.bincount(exam.train.labels)[np.unique(exam.train.labels)].min())
        if smallest < folds:
            raise DeepClusterError(f"A class has {smallest} images, too few for {folds} folds: give fewer --folds.")
        options, settings["held_out"] = _choose(work, stages, frozen, options, learner, training, folds)
        settings["chosen"] = f"lr and weight decay by {folds} folds of the training images: " + ", ".join(
            f"{tap} {lr:g} and {decay:g}" for tap, ((lr, decay),) in options.items()
        )

    def begin(seed: int) -> Training:
        return training([learner(tap, *options[tap][0], seed) for tap in pools], exam.train, seed)

    def layers(heads: Sequence[Layers]) -> dict[str, Trained]:
        return {tap: Trained(pools[tap], own) for tap, own in zip(pools, heads, strict=True)}

    draws = train_seeds(
        work, stages, begin, frozen, lambda heads: work.save(layers(heads), settings), "linear_{}".format
    )
    stages.finished()
    return work.result(draws, settings)


def _choose(
    work: Work,
    stages: Stages,
    frozen: Frozen,
    options: Mapping[str, list[tuple[float, float]]],
    learner: Callable[[str, float, float, int], Learner],
    training: Callable[[list[Learner], Part, int], Training],
    folds: int,
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, dict[str, float]]]:
    """The best rate and decay of each tap, and the held-out accuracy of all; each fold trains all of them at once."""
    fold = folds_of(work.exam.train.labels, folds, work.seed)
    flat = [(tap, lr, decay) for tap, own in options.items() for lr, decay in own]
    found = np.zeros((folds, len(flat)))
    for number in range(folds):
        held = work.exam.train.of(np.flatnonzero(fold == number))
        rest = work.exam.train.of(np.flatnonzero(fold != number))

        def begin(rest: Part = rest) -> Training:
            return training([learner(*option, work.seed) for option in flat], rest, work.seed)

        def finish(trained: Training, held: Part = held) -> list[float]:
            judged = judge(trained.learners, frozen, held, work.views.center, device=work.subject.device)
            return [top1 for top1, _ in judged]

        found[number] = stages.run(f"fold {number + 1} of {folds}", begin, finish)
    means = found.mean(0)
    best: dict[str, list[tuple[float, float]]] = {}
    said: dict[str, dict[str, float]] = {}
    for tap in options:
        own = [place for place, option in enumerate(flat) if option[0] == tap]
        place = own[int(np.argmax(means[own]))]
        best[tap] = [flat[place][1:]]
        said[tap] = {f"lr {flat[k][1]:g}, weight decay {flat[k][2]:g}": float(means[k]) for k in own}
    return best, said


def _list(pools: Mapping[str, Pooling]) -> str:
    return "; ".join(f"{tap} {pooling}" for tap, pooling in pools.items())

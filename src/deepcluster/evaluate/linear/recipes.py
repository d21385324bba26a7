"""How probes are trained: the papers' recipes as values, and the learning rate as a function of the step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from deepcluster.engine.schedules import factor
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.feed import Crops, Make
from deepcluster.models.backbone import Backbone
from deepcluster.models.resnet import RESNETS

SCHEDULES = ("bottou", "step", "cosine", "constant", "halving")
VIEWS = {
    "random": "random crop of the central square, flip",
    "resized": "random resized crop, flip",
    "color": "random resized crop, flip, color jitter 0.4, color noise along principal axes",
    "close": "random crop of 10-50 % of the area, square, flip",
    "center": "the central crop alone",
}


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum.

    Attributes:
        about: where it is from, or that it is our own.
        epochs: passes over the training images; 0 = as many as `iterations` need.
        lr: rate at the beginning; several are chosen from.
        lr_of: tap -> rate, where the layers have their own.
        weight_decay: several are chosen from.
        schedule: "bottou" lr / sqrt(1 + lr decay t), "step" times `drop` at each of `milestones`, "cosine" to 0,
            "constant", "halving" every 5000 steps.
        milestones: epochs, for a recipe of `epochs` epochs; they stretch where that number is changed.
        views: one of `VIEWS`.
        norm: batch-norm without scale and shift stands before the classifier even where the paper's network has none.
        clip: largest norm of each classifier's gradient; 0 = any.
        iterations: in place of epochs.
    """

    about: str
    epochs: int
    lr: tuple[float, ...] = (0.01,)
    lr_of: tuple[tuple[str, float], ...] = ()
    weight_decay: tuple[float, ...] = (0.0,)
    batch_size: int = 256
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "bottou"
    milestones: tuple[float, ...] = ()
    drop: float = 0.1
    views: str = "resized"
    norm: bool = False
    clip: float = 0.0
    iterations: int = 0

    def rates(self, tap: str) -> tuple[float, ...]:
        """Learning rates to be tried for a tap."""
        own = dict(self.lr_of)
        return (own[tap],) if tap in own else self.lr

    def length(self, steps_per_epoch: int) -> tuple[int, int]:
        """Epochs and optimizer steps."""
        steps = self.iterations or self.epochs * steps_per_epoch
        return math.ceil(steps / steps_per_epoch), steps

    def make(self, crops: Crops) -> Make:
        """The function that makes training views."""
        if self.views == "random":
            return crops.random
        if self.views == "center":
            return crops.center
        if self.views == "close":
            return crops.resized(scale=(0.1, 0.5), ratio=(1.0, 1.0))
        return crops.resized(color=0.4 if self.views == "color" else 0.0)

    def factor(self, step: int, steps: int, steps_per_epoch: int, lr: float, decay: float) -> float:
        """What the rate is multiplied with at a step."""
        if self.schedule == "halving":
            return 0.5 ** (step // HALVING)
        if self.schedule == "step":
            return self.drop ** sum(step >= edge * steps_per_epoch for edge in self.milestones)
        return factor(self.schedule, step, steps=steps, steps_per_epoch=steps_per_epoch, lr=lr, weight_decay=decay)

    def said(self) -> str:
        """In words, for the result."""
        length = f"{self.iterations} iterations" if self.iterations else f"{self.epochs} epochs"
        rate = {"bottou": "lr / sqrt(1 + lr decay t)", "halving": f"halved every {HALVING} iterations"}
        fall = rate.get(self.schedule, self.schedule)
        if self.schedule == "step":
            fall = f"x {self.drop:g} at epochs {', '.join(f'{edge:g}' for edge in self.milestones)}"
        rates = "per layer " + ", ".join(f"{tap} {lr:g}" for tap, lr in self.lr_of) if self.lr_of else _list(self.lr)
        momentum = f"momentum {self.momentum:g}{' (Nesterov)' if self.nesterov else ''}"
        return (
            f"{self.about}: SGD, {momentum}, {length} of batches of {self.batch_size}, lr {rates} {fall}, weight decay"
            f" {_list(self.weight_decay)}; views: {VIEWS[self.views]}"
            + (f"; gradients clipped at {self.clip:g}" if self.clip else "")
        )


def _list(values: tuple[float, ...]) -> str:
    return " or ".join(f"{value:g}" for value in values)


HALVING = 5000


def _by_depth(*rates: float) -> tuple[tuple[str, float], ...]:
    return tuple((f"conv{number}", rate) for number, rate in enumerate(rates, start=1))


LINEAR = {
    "deepcluster": Recipe(
        "DeepCluster (arXiv 1807.05520 §4.2)", 90, weight_decay=(1e-7,), views="random"
    ),
    "deepercluster": Recipe(
        "DeeperCluster on ImageNet (arXiv 1905.01278 §4)", 100, weight_decay=(1e-5,),
        lr_of=_by_depth(0.005, 0.01, 0.03, 0.03, 0.03, 0.03, 0.02, 0.03, 0.03, 0.03, 0.02, 0.02, 0.02),
    ),
    "deepercluster-places": Recipe(
        "DeeperCluster on Places205 (arXiv 1905.01278 §4)", 100, weight_decay=(1e-5,),
        lr_of=_by_depth(0.003, 0.005, *[0.01] * 7, 0.03, 0.01, 0.01, 0.02),
    ),
    "openselfsup": Recipe(
        "OpenSelfSup's benchmark on ImageNet", 90, nesterov=True, weight_decay=(1e-4,), schedule="step",
        milestones=(30, 60), views="color",
    ),
    "quick": Recipe(
        "our own, for small data", 20, schedule="cosine", weight_decay=(1e-5,), batch_size=128,
        views="random", norm=True,
    ),
}  # fmt: skip
"""Recipes of the linear probe. OpenSelfSup's rate also falls at the 90th epoch, which is the end."""

MLP = {
    "deepcluster": Recipe(
        "DeepCluster's classification on VOC (arXiv 1807.05520 §4.3)", 0, lr=(0.003,), weight_decay=(1e-6,),
        batch_size=16, schedule="halving", views="close", clip=10.0, iterations=80_000,
    ),
    "quick": Recipe(
        "our own, for small data", 20, lr=(0.01,), schedule="cosine", weight_decay=(1e-4,), batch_size=128,
        views="random", clip=10.0,
    ),
}  # fmt: skip
"""Recipes of fully connected layers on frozen convolutions."""

SEMI = Recipe(
    "OpenSelfSup's semi-supervised benchmark", 20, lr=(0.01,), weight_decay=(5e-4,), schedule="step",
    milestones=(12, 16), drop=0.2, views="resized",
)  # fmt: skip
"""Fine-tuning of a whole network with few labels."""


def usual(backbone: Backbone) -> str:
    """The recipe that the papers have for a network."""
    own = {"alexnet": "deepcluster", "vgg16": "deepercluster"}
    if backbone.image_size < 128:
        return "quick"
    if backbone.name.rpartition(":")[2] in RESNETS:
        return "openselfsup"
    return own.get(backbone.name, "quick")


def change(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with the values that are not None in place of its own.

    Raises:
        DeepClusterError: a value that makes no sense.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return recipe
    for name, least in (("epochs", 1), ("batch_size", 1)):
        if given.get(name, least) < least:
            raise DeepClusterError(f"--{name.replace('_', '-')} {given[name]} is too few: give {least} or more.")
    for name in ("lr", "weight_decay"):
        if name in given and (not given[name] or min(given[name]) < 0 or (name == "lr" and min(given[name]) == 0)):
            raise DeepClusterError(f"--{name.replace('_', '-')} {given[name]} must be numbers above 0.")
    if given.get("schedule", "step") not in SCHEDULES:
        raise DeepClusterError(f"There is no schedule {given['schedule']!r}: choose one of {', '.join(SCHEDULES)}.")
    if "lr" in given:
        given["lr_of"] = ()
    if "epochs" in given:
        given["iterations"] = 0
        if recipe.epochs:  # drops of the rate keep their place in the whole
            given["milestones"] = tuple(edge * given["epochs"] / recipe.epochs for edge in recipe.milestones)
    changed = dataclasses.replace(recipe, **given)
    if changed.schedule == "step" and not changed.milestones:
        changed = dataclasses.replace(changed, milestones=(changed.epochs / 3, 2 * changed.epochs / 3))
    return dataclasses.replace(changed, about=f"{changed.about}, with changed {', '.join(sorted(values_said(given)))}")


def values_said(given: dict[str, Any]) -> set[str]:
    """Names of changed values as a user knows them."""
    return {name.replace("_", " ") for name in given if name not in ("lr_of", "iterations", "milestones")}

"""How probes are trained: the papers' recipes as values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from deepcluster.config import OptimizerParams
from deepcluster.data.transforms import RandomCrop, RandomViews, Transform
from deepcluster.data.views import ViewGroup
from deepcluster.engine.optim import factor
from deepcluster.errors import DeepClusterError, counted
from deepcluster.models.backbone import Backbone
from deepcluster.models.resnet import RESNETS

Schedule = Literal["bottou", "step", "cosine", "constant", "halving"]
VIEWS = {
    "random": "random crop of the central square, flip",
    "resized": "random resized crop, flip",
    "color": "random resized crop, flip, color jitter 0.4, color noise along principal axes",
    "close": "random square crop of 10-50 % of the area, flip",
}


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum.

    Attributes:
        about: the source of the recipe.
        epochs: passes over the training images; 0 = as many as `iterations` need.
        lr, weight_decay: several are chosen from by cross-validation.
        lr_of: (tap, learning rate) pairs, where the layers have their own.
        schedule: "bottou" lr / sqrt(1 + lr decay t), "step" times `drop` at each of `milestones`, "cosine" to 0,
            "constant", or "halving" every `step` steps.
        milestones: epochs.
        views: one of `VIEWS`.
        norm: batch-norm without scale and shift stands before the classifier even where the paper's network has none.
        clip: largest norm of each classifier's gradient; 0 = any.
        iterations: instead of epochs.
    """

    about: str
    epochs: int
    lr: tuple[float, ...] = (0.01,)
    lr_of: tuple[tuple[str, float], ...] = ()
    weight_decay: tuple[float, ...] = (0.0,)
    batch_size: int = 256
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Schedule = "bottou"
    milestones: tuple[float, ...] = ()
    drop: float = 0.1
    step: int = 5000
    views: str = "resized"
    norm: bool = False
    clip: float = 0.0
    iterations: int = 0

    def rates(self, tap: str) -> tuple[float, ...]:
        """Learning rates to try for a tap."""
        own = dict(self.lr_of)
        return (own[tap],) if tap in own else self.lr

    def transform(self, backbone: Backbone) -> Transform:
        """Makes training views for a network."""
        if self.views == "random":
            return RandomCrop(backbone.image_size, backbone.mean, backbone.std)
        return RandomViews(self.resized_views(backbone), lighting=0.1 if self.views == "color" else 0.0)

    def resized_views(self, backbone: Backbone) -> ViewGroup:
        """Random resized crops for a network."""
        scale, ratio = ((0.1, 0.5), (1.0, 1.0)) if self.views == "close" else ((0.08, 1.0), (3 / 4, 4 / 3))
        color = 0.4 if self.views == "color" else 0.0
        return ViewGroup(
            backbone.image_size, crop_scale=scale, crop_ratio=ratio, brightness=color, contrast=color, saturation=color,
            mean=backbone.mean, std=backbone.std,
        )  # fmt: skip

    def factor(self, step: int, steps: int, steps_per_epoch: int, lr: float, decay: float) -> float:
        """What the learning rate `lr` is multiplied with at a step."""
        if self.schedule == "halving":
            return float(0.5 ** (step // self.step))
        if self.schedule == "step":
            return float(self.drop ** sum(step >= edge * steps_per_epoch for edge in self.milestones))
        settings = OptimizerParams(schedule=self.schedule, lr=lr, weight_decay=decay)
        return factor(settings, step, steps=steps, steps_per_epoch=steps_per_epoch)

    def __str__(self) -> str:
        length = counted(self.iterations, "iteration") if self.iterations else counted(self.epochs, "epoch")
        schedule = {
            "bottou": "lr / sqrt(1 + lr decay t)",
            "halving": f"halved every {self.step} iterations",
            "step": f"x {self.drop:g} at epochs {', '.join(f'{edge:g}' for edge in self.milestones)}",
        }.get(self.schedule, self.schedule)
        rates = "per layer " + ", ".join(f"{tap} {lr:g}" for tap, lr in self.lr_of) if self.lr_of else _or(self.lr)
        return (
            f"{self.about}: SGD, momentum {self.momentum:g}{' (Nesterov)' if self.nesterov else ''}, {length} of"
            f" batches of {self.batch_size}, lr {rates} {schedule}, weight decay {_or(self.weight_decay)}; views:"
            f" {VIEWS[self.views]}" + (f"; gradients clipped at {self.clip:g}" if self.clip else "")
        )


def _or(values: tuple[float, ...]) -> str:
    return " or ".join(f"{value:g}" for value in values)


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

SEMI_SUPERVISED = Recipe(
    "OpenSelfSup's semi-supervised benchmark", 20, lr=(0.01,), weight_decay=(5e-4,), schedule="step",
    milestones=(12, 16), drop=0.2, views="resized",
)  # fmt: skip
"""Fine-tuning of a whole network with few labels."""


def default_recipe(backbone: Backbone) -> str:
    """The recipe that the papers have for a network."""
    if backbone.image_size < 128:
        return "quick"
    if backbone.name.rpartition(":")[2] in RESNETS:
        return "openselfsup"
    return {"alexnet": "deepcluster", "vgg16": "deepercluster"}.get(backbone.name, "quick")


def override(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with those values that are not None instead of its own: epochs, iterations, batch_size, schedule,
    step, and lr and weight_decay, of which there may be several. DeepClusterError for a value that makes no sense."""
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return recipe
    changed = ", ".join(sorted(name.replace("_", " ") for name in given))
    for name in ("epochs", "iterations", "batch_size", "step"):
        if given.get(name, 1) < 1:
            raise DeepClusterError(f"--{name.replace('_', '-')} {given[name]} is too few: give 1 or more.")
    for name in given.keys() & {"lr", "weight_decay"}:
        own = given[name]
        given[name] = own = (own,) if isinstance(own, (int, float)) else tuple(own)
        if not own or min(own) < 0 or (name == "lr" and min(own) == 0):
            raise DeepClusterError(f"--{name.replace('_', '-')} {_or(own)} must be numbers above 0.")
    if given.get("schedule", recipe.schedule) not in get_args(Schedule):
        raise DeepClusterError(f"There is no schedule {given['schedule']!r}: choose one of {get_args(Schedule)}.")
    if "lr" in given:
        given["lr_of"] = ()
    if "epochs" in given:
        given["iterations"] = 0
        if recipe.epochs:  # the drops of the rate keep their place in the training
            given["milestones"] = tuple(edge * given["epochs"] / recipe.epochs for edge in recipe.milestones)
    new = dataclasses.replace(recipe, about=f"{recipe.about}, with changed {changed}", **given)
    if new.schedule == "step" and not new.milestones:
        new = dataclasses.replace(new, milestones=(new.epochs / 3, 2 * new.epochs / 3))
    return new


def length(recipe: Recipe, images: int) -> tuple[int, int]:
    """Optimizer steps in all, and in an epoch."""
    steps_per_epoch = math.ceil(images / recipe.batch_size)
    return recipe.iterations or recipe.epochs * steps_per_epoch, steps_per_epoch

"""Protocol `mlp`: fully connected layers trained anew on frozen convolutions.

The papers do this with AlexNet's and VGG-16's own fc6 and fc7 (arXiv 1807.05520 §4.3, on VOC); other networks get
hidden layers on their output. This file trains nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear import recipes
from deepcluster.evaluate.linear.frozen import Frozen
from deepcluster.evaluate.linear.heads import BEGIN, draw_
from deepcluster.evaluate.linear.parts import divide
from deepcluster.evaluate.linear.pooling import OUTPUT, Pooling, has_fully_connected
from deepcluster.evaluate.linear.probe import Trained
from deepcluster.evaluate.linear.recipes import MLP
from deepcluster.evaluate.linear.training import Learner, Training
from deepcluster.evaluate.linear.work import Work, check_common, train_seeds
from deepcluster.evaluate.result import Result
from deepcluster.models.backbone import Backbone
from deepcluster.random import seeded

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

DEPTH, HIDDEN, DROPOUT = 2, 1024, 0.5
BIAS = 0.1
"""Of all fully connected layers, as DeepCluster's evaluation on VOC begins."""
FEATURES = "features"


def mlp(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    holdout: float | None = None,
    recipe: str = "quick",
    depth: int | None = None,
    hidden: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    schedule: str | None = None,
    crops: int = 1,
    report: str = "last",
    seeds: int = 1,
    seed: int = 0,
    precision: str = "32",
    screen: Screen | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Result:
    """Protocol `mlp`: accuracy of fully connected layers on frozen convolutions.

    Args:
        subject: a network; AlexNet and VGG-16 keep their convolutions and get fc6 and fc7 anew; of others the output
            is read.
        recipe: a name of `recipes.MLP`.
        depth, hidden: number and width of the hidden layers, for other networks; 2 and 1024 by default.
        epochs, lr, weight_decay, batch_size, schedule: in place of the recipe's own.

    All others are as for `linear`.

    Raises:
        DeepClusterError: labels, test images or classes are missing, or options do not go together.
    """
    if recipe not in MLP:
        raise DeepClusterError(f"There is no recipe {recipe!r} for mlp: choose one of {', '.join(MLP)}.")
    check_common(crops, report, seeds, 2, precision)
    own = has_fully_connected(subject.backbone)
    if own and (depth is not None or hidden is not None):
        raise DeepClusterError(
            f"{subject.backbone.name} has fully connected layers of its own, which are drawn anew: leave out --depth"
            " and --hidden."
        )
    depth, hidden = DEPTH if depth is None else depth, HIDDEN if hidden is None else hidden
    if depth < 1 or hidden < 1:
        raise DeepClusterError("--depth and --hidden must be 1 or more: protocol linear has no hidden layer.")
    chosen = recipes.change(
        MLP[recipe],
        epochs=epochs,
        lr=None if lr is None else (lr,),
        weight_decay=None if weight_decay is None else (weight_decay,),
        batch_size=batch_size,
        schedule=schedule,
    )
    exam = divide(subject, data, test, holdout, protocol="mlp", seed=seed)
    screen = screen or Screen(quiet=True)
    work = Work(subject, exam, "mlp", seeds, seed, precision, screen, pause, crops=crops, report=report)
    backbone, tap = subject.backbone, FEATURES if own else OUTPUT
    pooling = last_map(backbone) if own else Pooling("none", backbone.dim)
    modules = {FEATURES: FEATURES} if own else {}
    frozen = Frozen(backbone, {tap: pooling}, subject.device, precision, modules)
    settings = {
        "recipe": chosen.said(),
        "layers": "fc6 and fc7 drawn anew, N(0, .01), biases .1, and a new top layer; dropout as in the network"
        if own
        else f"{depth} hidden layers of {hidden} with dropout {DROPOUT:g} on the normalized output",
        "features": f"{'convolutions' if own else 'output'} in evaluation mode, {pooling}",
    }
    stages = work.stages(settings)

    def begin(seed: int) -> Training:
        head = (
            fully_connected(backbone, exam.classes, seed)
            if own
            else perceptron(backbone.dim, [hidden] * depth, exam.classes, seed)
        )
        learner = Learner(tap, head, chosen.lr[0], chosen.weight_decay[0])
        make = chosen.make(work.views)
        return Training([learner], frozen, exam.train, make, chosen, seed=seed, device=subject.device)

    draws = train_seeds(
        work,
        stages,
        begin,
        frozen,
        lambda heads: work.save({tap: Trained(pooling, heads[0], module=modules.get(tap, ""))}, settings),
        lambda tap: "mlp",
    )
    stages.finished()
    return work.result(draws, settings)


def last_map(backbone: Backbone) -> Pooling:
    """What fc6 of AlexNet and VGG-16 reads: the last map at the size it was made for."""
    trunk: Any = backbone.trunk
    width = next(layer for layer in trunk.classifier if isinstance(layer, nn.Linear)).in_features
    return Pooling("adaptive", width, side=trunk.side)


@torch.no_grad()
def fully_connected(backbone: Backbone, classes: int, seed: int) -> nn.Sequential:
    """fc6, fc7 and a top layer. The top layer begins as torch begins linear layers, but for its bias."""
    layers: list[nn.Module] = []
    width = 0
    trunk: Any = backbone.trunk
    for number, layer in enumerate(trunk.classifier):
        if isinstance(layer, nn.Linear):
            fresh = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features)
            layers.append(draw_(fresh, seed, f"fc {number}", bias=BIAS))
            width = layer.out_features
        else:
            layers.append(nn.Dropout(layer.p) if isinstance(layer, nn.Dropout) else nn.ReLU())
    top = nn.utils.skip_init(nn.Linear, width, classes)
    bound = 1 / math.sqrt(width)
    top.weight.uniform_(-bound, bound, generator=seeded(seed, BEGIN, 0))
    top.bias.fill_(BIAS)
    return nn.Sequential(*layers, nn.ReLU(), top)


def perceptron(dim: int, widths: Sequence[int], classes: int, seed: int) -> nn.Sequential:
    """Batch-norm without scale and shift, then hidden layers with ReLU and dropout, then a top layer."""
    layers: list[nn.Module] = [nn.BatchNorm1d(dim, affine=False)]
    for number, width in enumerate(widths):
        layer = nn.utils.skip_init(nn.Linear, dim, width)
        draw_(layer, seed, f"hidden {number}", bias=0.0, std=math.sqrt(2 / dim))
        layers += [layer, nn.ReLU(), nn.Dropout(DROPOUT)]
        dim = width
    top = nn.utils.skip_init(nn.Linear, dim, classes)
    return nn.Sequential(*layers, draw_(top, seed, "top", bias=0.0))

"""Protocol `mlp`: fully connected layers trained on frozen convolutions.

The papers do this with AlexNet's and VGG-16's own fc6 and fc7 (arXiv 1807.05520 §4.3, on VOC); other networks get
hidden layers on their output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn

from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.evaluate.linear.context import Evaluation, Learner, Precision, Report, check_common
from deepcluster.evaluate.linear.features import OUTPUT, FrozenFeatures, Pooling
from deepcluster.evaluate.linear.heads import DROPOUT, fully_connected, perceptron
from deepcluster.evaluate.linear.probe import Classifier
from deepcluster.evaluate.linear.recipes import MLP, Schedule, override
from deepcluster.evaluate.linear.splits import split_data
from deepcluster.evaluate.options import check_choice, check_counts, check_not_given
from deepcluster.evaluate.result import Result
from deepcluster.models.alexnet import ConvThenLinear

FEATURES = "features"
"""The submodule of AlexNet's and VGG-16's trunk that holds the convolutions."""


def mlp(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    holdout: float | None = None,
    recipe: Literal["quick", "deepcluster"] = "quick",
    depth: int | None = None,
    hidden: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    crops: Literal[1, 10] = 1,
    report: Report = "last",
    seeds: int = 1,
    seed: int = 0,
    precision: Precision = "32",
    screen: Screen | None = None,
) -> Result:
    """Accuracy of new fully connected layers on frozen convolutions.

    AlexNet and VGG-16 keep their convolutions and get new fc6 and fc7; other networks get hidden layers on their
    output. The network is left as it is. A stopped evaluation continues where it was.

    Args:
        subject, data, test, holdout: see `evaluate.linear.linear.linear`.
        recipe: how to train. deepcluster is the paper's on VOC, 80,000 steps of 16 images; quick is our own.
        depth: number of hidden layers, for networks without fully connected layers of their own. None = 2.
        hidden: width of these layers. None = 1024.
        lr: learning rate. None = the recipe's.
        weight_decay: weight decay. None = the recipe's.
        epochs, batch_size, schedule: see `evaluate.linear.linear.linear`.
        crops, report, seeds, seed, precision, screen: see `evaluate.linear.linear.linear`.

    Raises:
        DeepClusterError: labels, test images or classes are missing, or options do not go together.
    """
    check_choice("recipe", recipe, MLP)
    check_common(crops, report, seeds, precision)
    check_counts(depth=depth, hidden=hidden)
    backbone, trunk = subject.backbone, subject.backbone.trunk
    if isinstance(trunk, ConvThenLinear):
        why = f"has no effect on {backbone.name}, whose own fully connected layers are replaced: leave it out"
        check_not_given(why, depth=depth, hidden=hidden)
    chosen = override(
        MLP[recipe], epochs=epochs, lr=lr, weight_decay=weight_decay, batch_size=batch_size, schedule=schedule
    )
    divided = split_data(subject, data, test, holdout, protocol="mlp", seed=seed)
    screen = screen or Screen(quiet=True)
    evaluation = Evaluation("mlp", subject, divided, seeds, seed, precision, screen, crops, report)
    classes = len(divided.classes)
    new_layers: Callable[..., nn.Module]
    if isinstance(trunk, ConvThenLinear):  # fc6 reads the last map at the size it was made for
        tap, modules, source = FEATURES, {FEATURES: FEATURES}, "convolutions"
        width = next(layer for layer in trunk.classifier if isinstance(layer, nn.Linear)).in_features
        pooling = Pooling("adaptive", width, side=trunk.side)
        layers = "new fc6 and fc7, N(0, .01), biases .1, and a new top layer; dropout as in the network"
        new_layers = partial(fully_connected, backbone, classes)
    else:
        tap, modules, source = OUTPUT, {}, "output"
        pooling = Pooling("none", backbone.dim)
        depth, hidden = depth or 2, hidden or 1024
        layers = f"{depth} hidden layers of {hidden} with dropout {DROPOUT:g} on the normalized output"
        new_layers = partial(perceptron, backbone.dim, classes, [hidden] * depth)
    features = f"{source} in evaluation mode, {pooling}"
    evaluation.start({"recipe": str(chosen), "layers": layers, "features": features})
    return evaluation.train_draws(
        lambda seed: [Learner(tap, new_layers(seed=seed), chosen.lr[0], chosen.weight_decay[0])],
        FrozenFeatures(backbone, {tap: pooling}, subject.device, precision, modules),
        chosen,
        lambda tap, layers: Classifier(pooling, layers, module=modules.get(tap, "")),
        lambda tap: "mlp",
    )

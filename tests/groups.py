"""DeepCluster on four groups of made-up features, for tests of the method alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from deepcluster.engine.optim import make_optimizer
from deepcluster.methods.base import Features
from deepcluster.methods.deepcluster import DeepCluster
from deepcluster.methods.params import DeepClusterParams
from deepcluster.models.zoo import build_backbone
from deepcluster.types import Batch, TrainStep


def method(n: int = 64, k: int = 4, **values: object) -> DeepCluster:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=12)
    clusterer = values.pop("clusterer", None)
    algorithm = "kmeans" if clusterer is None else "custom"
    values = {"algorithm": algorithm, "whiten": 3, "init": "k-means++"} | values
    params = DeepClusterParams(k=k, **values)  # type: ignore[arg-type]
    return DeepCluster(backbone, params, n=n, make_optimizer=sgd, clusterer=clusterer)


def sgd(
    parameters: Iterable[nn.Parameter], lr: float | None = None, momentum: float | None = None
) -> torch.optim.Optimizer:
    return make_optimizer(
        parameters, "sgd", lr=lr or 0.05, momentum=0.9 if momentum is None else momentum, weight_decay=1e-5
    )


def described(n: int = 64, skewed: bool = False, missing: tuple[int, ...] = ()) -> Features:
    """Four well-separated groups in 128 dimensions."""
    rng = np.random.default_rng(0)
    group = np.sort(rng.choice(4, n, p=[0.7, 0.15, 0.1, 0.05])) if skewed else np.arange(n) % 4
    features = (4 * np.eye(4, 128)[group] + 0.1 * rng.normal(size=(n, 128))).astype(np.float32)
    index = np.setdiff1d(np.arange(n), missing)
    return Features(index, features[index])


STEP = TrainStep(step=0, steps_per_epoch=8, total=80)


def batch(n: int = 8, views: int = 1) -> Batch:
    images = torch.randn(views, n, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    return Batch(torch.arange(n), tuple(images), torch.arange(n), n)

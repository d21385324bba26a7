"""DeepCluster on four groups of made-up features, for tests of the method alone."""

from __future__ import annotations

import functools

import numpy as np
import torch

from deepcluster.engine.optim import make_optimizer
from deepcluster.methods.deepcluster import DeepCluster
from deepcluster.methods.method import Features
from deepcluster.models.zoo import build_backbone
from deepcluster.types import Batch


def method(n: int = 64, k: int = 4, **values: object) -> DeepCluster:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=12)
    make = functools.partial(make_optimizer, name="sgd", lr=0.05, momentum=0.0, weight_decay=1e-5)
    return DeepCluster(backbone, n=n, k=k, head_optimizer=make, **({"whiten": 3, "init": "k-means++"} | values))  # type: ignore[arg-type]


def described(n: int = 64, skewed: bool = False, missing: tuple[int, ...] = ()) -> Features:
    """Four well-separated groups in 128 dimensions."""
    rng = np.random.default_rng(0)
    group = np.sort(rng.choice(4, n, p=[0.7, 0.15, 0.1, 0.05])) if skewed else np.arange(n) % 4
    features = (4 * np.eye(4, 128)[group] + 0.1 * rng.normal(size=(n, 128))).astype(np.float32)
    index = np.setdiff1d(np.arange(n), missing)
    return Features(index, features[index])


def batch(n: int = 8, views: int = 1) -> Batch:
    images = torch.randn(views, n, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    return Batch(torch.arange(n), tuple(images), torch.arange(n), n)

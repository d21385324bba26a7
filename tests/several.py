"""Small runs of every method, for tests with several processes."""

from __future__ import annotations

from typing import Any

from deepcluster.config import TrainRun, override
from deepcluster.presets import find_preset

N = 1100  # more than world.ALIGN, so that the second process has a share of the features
# Plain SGD, few steps and as many clusters as there are kinds of images: AdamW divides gradients by their own size,
# which turns the last digit of a small one into a step, and images between two clusters go either way.
SMALL = {"epochs": 2, "batch_size": 130, "image_size": 12, "keep_every": 0, "optimizer.name": "sgd", "lr": 0.02}
SMALL |= {"precision": "32"}  # where bf16 is fast it is the default, and rounds too coarsely to compare assignments
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepcluster": ("tiny-deepcluster", {"k": 4, "whiten": 8, "clusterings": 1, "ema_decay": 0.0, "init": "k-means++"}),
    "extras": (
        "tiny-deepcluster",
        {"k": 4, "whiten": 8, "clusterings": 2, "ema_decay": 0.9, "head": "centroids", "init": "previous", "clip": 0.5},
    ),
    "remembered": ("tiny-deepcluster", {"k": 4, "whiten": 8, "features": "remembered", "init": "k-means++"}),
    "weighted": (
        "tiny-deepcluster",
        {
            "k": 4,
            "whiten": 8,
            "balance": "weight",
            "views": 2,
            "data.describe": "augmented",
            "jitter": 0.8,
            "init": "k-means++",
        },
    ),
    "sela": ("tiny-deepcluster", {"k": 4, "whiten": 8, "clusterings": 1, "init": "k-means++", "algorithm": "sela"}),
    "pic": ("tiny-deepcluster-pic", {"whiten": 8}),
    "odc": ("tiny-odc", {"k": 4, "feature_dim": 8, "hidden": 16, "dropout": 0.3, "start": "neck", "replace": True}),
    "odc eval": ("tiny-odc", {"k": 4, "feature_dim": 8, "hidden": 16, "memory": "eval", "centroid_every": 2}),
    "odc averaged": ("tiny-odc", {"k": 4, "feature_dim": 8, "hidden": 16, "ema_decay": 0.9, "centroid_every": 2}),
    "deepcluster-v2": (
        "tiny-deepcluster-v2",
        {"k": 2, "feature_dim": 8, "hidden": 16, "clusterings": 2, "ema_decay": 0.5, "lr": 0.005},
    ),
    "swav": (
        "tiny-swav",
        {"k": 4, "feature_dim": 8, "hidden": 16, "queue_size": 150, "queue_epoch": 0.5, "freeze_epochs": 0.3},
    ),
    "deepercluster": ("tiny-deepercluster", {"k": 4, "super_clusters": 2, "whiten": 8, "clip": 0.5}),
    "deepercluster 4": (
        "tiny-deepercluster",
        {"k": 4, "super_clusters": 4, "whiten": 8, "method.iterations": 3, "ema_decay": 0.9},
    ),
    "one class": (
        "tiny-deepercluster",
        {"k": 4, "super_clusters": 1, "rotations": False, "whiten": 8, "clip": 0.5, "head": "centroids"},
    ),
    "rotnet": ("tiny-rotnet", {"whiten": 8}),
}


def settings(name: str, **values: Any) -> TrainRun:
    preset, own = RUNS[name]
    return override(find_preset(preset).run, SMALL | own | values)

"""deepcluster: visual features and image groups from unlabelled images, by clustering.

    import deepcluster as dc
    run = dc.cluster("photos/", out="runs/photos")
    run = dc.train("deepcluster-resnet18", data="photos/", out="runs/learned", k=200)
    run.assign("new_photos/")

Names are loaded when they are first used, so that the command line can answer `--help` at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deepcluster.api import cluster, train
    from deepcluster.config import TrainRun
    from deepcluster.data.open import open_images
    from deepcluster.engine.hub import from_pretrained
    from deepcluster.engine.run import Run, load_run
    from deepcluster.errors import DeepClusterError
    from deepcluster.estimator import ImageClusterer
    from deepcluster.presets import PRESETS

_HOME = {
    "DeepClusterError": "errors",
    "ImageClusterer": "estimator",
    "PRESETS": "presets",
    "Run": "engine.run",
    "TrainRun": "config",
    "cluster": "api",
    "from_pretrained": "engine.hub",
    "load_run": "engine.run",
    "open_images": "data.open",
    "train": "api",
}

__all__ = [
    "PRESETS",
    "DeepClusterError",
    "ImageClusterer",
    "Run",
    "TrainRun",
    "cluster",
    "from_pretrained",
    "load_run",
    "open_images",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deepcluster' has no attribute {name!r}")
    value = getattr(import_module(f"deepcluster.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

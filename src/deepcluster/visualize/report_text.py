"""What the report says about a run in words and numbers: remarks, settings; more in report_text.html.

This file knows run.json and metrics.jsonl; it knows nothing of pictures or HTML.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.clustering.algorithms import ALGORITHMS
from deepcluster.config import AUTO, params_of
from deepcluster.engine.health import check_clusters, check_loss, swallows
from deepcluster.engine.log import seconds_taken
from deepcluster.engine.model import PRETRAINED
from deepcluster.engine.scores import is_number
from deepcluster.errors import counted
from deepcluster.methods.params import MethodParams

BAD_SHOWN = 200


@dataclass(frozen=True)
class Numbers:
    """The numbers of a run that the report puts into words, in report_text.html.

    Args:
        config: run.json.
        metrics: one mapping an epoch, as in metrics.jsonl.
        sizes: (K,) images in each cluster; None = nothing has been clustered.
        clear: (K,) how clear each is, see `visualize.clusters.clearness`.
    """

    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    sizes: np.ndarray | None
    clear: Sequence[str] = ()

    def course(self, key: str) -> list[float]:
        """The numbers of one key over the epochs; some are known only in epochs that recluster."""
        return [float(row[key]) for row in self.metrics if is_number(row.get(key))]

    @property
    def last(self) -> dict[str, float]:
        """The last number of every key."""
        return {key: value for row in self.metrics for key, value in row.items() if is_number(value)}

    @property
    def seconds(self) -> float:
        """Everything that the epochs took."""
        return seconds_taken(self.metrics)

    @property
    def params(self) -> MethodParams:
        """The parameters of the run's method."""
        return params_of(self.config)

    @property
    def k(self) -> int:
        """Clusters, empty ones included."""
        return 0 if self.sizes is None else len(self.sizes)

    @property
    def members(self) -> np.ndarray:
        """Images in each cluster that has any."""
        return np.zeros(0, np.int64) if self.sizes is None else self.sizes[self.sizes > 0]

    @property
    def choices(self) -> int:
        """What the classifier chooses among: clusters, times rotations where those are predicted too."""
        return self.k * self.params.rotations_predicted


def remarks(run: Numbers, bad: int, folder: Path) -> list[str]:
    """Sentences about what a reader should know before believing the pictures."""
    said: list[str] = []
    warn = said.append
    epochs = run.config.get("settings", {}).get("epochs")
    if epochs and len(run.metrics) < epochs:
        warn(
            f"this run has finished {len(run.metrics):,} of {epochs:,} epochs: resume it by "
            f"`deepcluster train --resume {shlex.quote(str(folder))}`."
        )
    if run.sizes is not None:
        if run.params.trains:
            check_clusters(run.sizes, warn)
        elif swallows(run.sizes) or run.k == 1:
            warn(
                f"one cluster holds {int(run.sizes.max()):,} of {int(run.sizes.sum()):,} images: they are all alike, or"
                " more clusters are needed (--k)."
            )
        check_loss(run.course("loss"), run.choices, warn)
        if empty := run.k - len(run.members):
            warn(f"{empty:,} of {run.k:,} clusters {'is' if empty == 1 else 'are'} empty.")
    if bad:
        warn(f"{counted(bad, 'file')} could not be decoded and {'were' if bad != 1 else 'was'} skipped.")
    return [sentence[:1].upper() + sentence[1:] for sentence in said]


def command(config: Mapping[str, Any], folder: Path) -> str:
    """The command that makes this run with its main settings; run.json has them all."""
    settings = config.get("settings", {})
    if not params_of(config).trains:
        method = settings["method"]
        words = ["deepcluster", "cluster", str(config["data"]), "--out", str(folder)]
        words += ["--backbone", config["backbone"], "--algorithm", method["algorithm"]]
        if not Path(config["backbone"]).exists():  # a run or a file knows its own
            words += ["--image-size", str(settings["image_size"])]
        values = {"seed": settings["seed"], **method["options"], "k": method["k"], "whiten": method["whiten"]}
        for name, value in values.items():
            if name == "whiten" or name in ALGORITHMS[method["algorithm"]][1]:
                words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
        return shlex.join(words)
    preset, backbone = str(config.get("preset", "PRESET")), settings.get("backbone", {})
    words = ["deepcluster", "train", *([] if preset == AUTO else [preset])]
    words += ["--data", str(config.get("data", "DATA")), "--out", str(folder)]
    if preset == AUTO:
        words += ["--method", settings["method"]["name"]]
    if weights := backbone.get("weights"):
        words += ["--from", backbone["name"] if weights == PRETRAINED else weights]
    for name in ("epochs", "batch_size", "seed", "image_size"):
        if name in settings:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    if "k" in settings.get("method", {}):
        words += ["--method.k", str(settings["method"]["k"])]
    return shlex.join(words)


def settings_used(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter: without training's where nothing was trained."""
    settings = config.get("settings", {})
    kept = settings if params_of(config).trains else ("image_size", "seed", "method", "backbone")
    return {name: settings[name] for name in kept if name in settings}


def number(value: float, places: int = 0) -> str:
    """A number with commas and so many decimals."""
    return f"{value:,.{places}f}"

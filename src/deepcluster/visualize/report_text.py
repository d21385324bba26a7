"""What the report says about a run in words and numbers: remarks, settings, evaluations; more in report_text.html.

This file knows run.json, metrics.jsonl and the JSON of evaluations; it knows nothing of pictures or HTML.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepcluster.clustering.algorithms import ALGORITHMS
from deepcluster.config import AUTO, params_of
from deepcluster.engine.health import check_clusters, check_loss
from deepcluster.engine.model import MODEL, PRETRAINED
from deepcluster.errors import DeepClusterError
from deepcluster.methods.params import MethodParams
from deepcluster.reading import read_json
from deepcluster.seal import seal_of

BAD_SHOWN = 200


class Evaluation(NamedTuple):
    """One table of RUN/evaluation: rows of (score, per cent, deviation) and its settings."""

    protocol: str
    rows: list[tuple[str, str, str]]
    settings: list[tuple[str, str]]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a run that the report puts into words, in report_text.html.

    Args:
        config: run.json.
        metrics: one mapping an epoch, as in metrics.jsonl.
        sizes: (K,) images in each cluster; None = nothing has been clustered.
    """

    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    sizes: np.ndarray | None

    def course(self, key: str) -> list[float]:
        """The numbers of one key over the epochs; some are known only in epochs that recluster."""
        return [float(row[key]) for row in self.metrics if _is_number(row.get(key))]

    @property
    def last(self) -> dict[str, float]:
        """The last number of every key."""
        return {key: value for row in self.metrics for key, value in row.items() if _is_number(value)}

    @property
    def seconds(self) -> float:
        """Everything that the epochs took."""
        return sum(sum(self.course(f"seconds_{part}")) for part in ("train", "features", "cluster"))

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
        check_clusters(run.sizes, warn)
        check_loss(run.course("loss"), run.choices, warn)
        if empty := run.k - len(run.members):
            warn(f"{empty:,} of {run.k:,} clusters {'is' if empty == 1 else 'are'} empty.")
    if bad:
        warn(f"{count(bad, 'file')} could not be decoded and {'were' if bad != 1 else 'was'} skipped.")
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


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, json.dumps(value, ensure_ascii=False, default=str).strip('"')))
    return rows


def evaluations(folder: Path) -> list[Evaluation]:
    """Every readable RUN/evaluation/*.json, by name, and those of the untrained network behind them."""
    found = []
    kept, now = folder / "evaluation", seal_of(folder / MODEL)
    for file in (*sorted(kept.glob("*.json")), *sorted(kept.glob("untrained/*.json"))):
        try:
            content = read_json(file, advice="evaluate the run again.")
        except DeepClusterError:
            continue  # a file of someone else's; the page is about the run
        values, settings = content.get("scores"), content.get("settings") or {}
        if not isinstance(values, dict) or not isinstance(settings, dict):
            continue
        rows = [
            (name, _percent(value), _percent(values.get(f"{name}_std"), empty=""))
            for name, value in values.items()
            if not (name.endswith("_std") and name.removesuffix("_std") in values)
        ]
        said = ", untrained" if file.parent != kept else ""
        if now and settings.get("model", now) != now:
            said += ", of the run before it was trained further: evaluate it again"
        found.append(Evaluation(str(content.get("protocol", file.stem)) + said, rows, flat(settings)))
    return found


def number(value: float, places: int = 0) -> str:
    """A number with commas and so many decimals."""
    return f"{value:,.{places}f}"


def count(items: int, noun: str) -> str:
    """So many things: 1 image, 2,000 images."""
    return f"{items:,} {noun}{'s' * (items != 1)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any, empty: str = "n/a") -> str:
    return f"{100 * value:.1f}" if _is_number(value) else empty

"""What the report says about a run in words and numbers: key figures, remarks, settings, evaluations.

This file knows run.json, metrics.jsonl and the JSON of evaluations; it knows nothing of pictures or HTML.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepcluster.config import params_of
from deepcluster.engine.health import check_clusters, check_loss
from deepcluster.visualize.sizes import effective

BAD_SHOWN = 200


class KeyFigure(NamedTuple):
    """A name, the value as it is printed, and what it means."""

    name: str
    value: str
    hint: str = ""


class Evaluation(NamedTuple):
    """One table of RUN/evaluation: rows of (score, per cent, deviation) and its settings."""

    protocol: str
    rows: list[tuple[str, str, str]]
    settings: list[tuple[str, str]]


def key_figures(
    config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], sizes: np.ndarray | None
) -> list[KeyFigure]:
    """The numbers a reader wants first; those that the run does not have are left out."""
    last = _last(metrics)
    figures = []
    if (images := config.get("images")) is not None:
        figures.append(KeyFigure("images", f"{images:,}", "in the source, bad ones included"))
    if sizes is not None:
        used, k = int((sizes > 0).sum()), len(sizes)
        figures.append(KeyFigure("clusters", f"{k:,}", "all in use" if used == k else f"{used:,} in use"))
        figures.append(KeyFigure("effective clusters", f"{effective(sizes):,.1f}", "equal ones that would be as even"))
    if "loss" in last and sizes is not None:
        choices = len(sizes) * params_of(config).rotations_predicted
        figures.append(KeyFigure("loss", f"{last['loss']:.3f}", f"guessing: ln {choices:,} = {math.log(choices):.2f}"))
    named = {
        "nmi_labels": ("NMI with labels", "1 = the same groups"),
        "purity": ("purity", "images of their cluster's main class"),
        "nmi_previous": ("NMI with previous", "1 = clusters have settled"),
    }
    figures += [KeyFigure(name, f"{last[key]:.3f}", hint) for key, (name, hint) in named.items() if key in last]
    if "images_per_second" in last:
        figures.append(KeyFigure("speed", f"{last['images_per_second']:,.0f}", "training images a second"))
    if seconds := sum(seconds_of(line) for line in metrics):
        figures.append(KeyFigure("time", duration(seconds), f"{len(metrics):,} epoch{'s' * (len(metrics) != 1)}"))
    return figures


def summary(config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], sizes: np.ndarray | None) -> list[str]:
    """What the figures and curves say, in a few sentences; what is not known is left out."""
    said: list[str] = []

    def course(name: str) -> list[float]:
        return [float(line[name]) for line in metrics if _number(line.get(name))]

    loss, rotations = course("loss"), params_of(config).rotations_predicted
    if len(loss) > 1:
        way = "fell" if loss[-1] < loss[0] else "rose"
        said.append(f"The loss {way} from {loss[0]:.2f} to {loss[-1]:.2f} in {len(loss):,} epochs.")
        if sizes is not None and len(sizes) > 1:
            among = f"{len(sizes):,} clusters" + (f" and {rotations} rotations" if rotations > 1 else "")
            said.append(f"Guessing among {among} would cost {math.log(len(sizes) * rotations):.2f}.")
    if sizes is not None and sizes.sum():
        used = np.sort(sizes[sizes > 0])
        said.append(
            f"Half of the clusters hold {int(np.median(used)):,} images or more; the smallest holds {used[0]:,} and the"
            f" largest {used[-1]:,}."
        )
    settled = course("nmi_previous")
    if len(settled) > 1:
        change = settled[-1] - settled[-2]
        how = "still rising" if change > 0.01 else "falling" if change < -0.01 else "level by now"
        said.append(
            f"The agreement of each clustering with the one before (NMI) went from {settled[0]:.2f}"
            f" to {settled[-1]:.2f}, {how}."
        )
    moved = course("changed") or course("reassigned")
    if moved:
        said.append(f"In the last one {100 * moved[-1]:.0f} % of the images changed their cluster.")
    purity, labelled = course("purity"), course("nmi_labels")
    if purity and sizes is not None and (sizes > 0).sum() > 1:
        said.append(
            f"By labels it was never shown, {100 * purity[-1]:.0f} % of the images are of their cluster's main class"
            + (f", and clusters and classes agree by an NMI of {labelled[-1]:.2f}." if labelled else ".")
        )
    watched = course("watched")
    if len(watched) > 1:
        name = {"knn": "kNN accuracy", "nmi": "NMI"}.get(str(config.get("settings", {}).get("watch")), "watched score")
        best = int(np.argmax(watched))
        said.append(
            f"The {name} that was watched went from {100 * watched[0]:.1f} to {100 * watched[-1]:.1f} %, the best being"
            f" {100 * watched[best]:.1f} % after epoch {best + 1}."
        )
    return said


def remarks(
    config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], sizes: np.ndarray | None, bad: int, folder: Path
) -> list[str]:
    """Sentences about what a reader should know before believing the pictures."""
    said: list[str] = []
    warn = said.append
    epochs = config.get("settings", {}).get("epochs")
    if epochs and len(metrics) < epochs:
        warn(
            f"this run has finished {len(metrics):,} of {epochs:,} epochs: resume it by "
            f"`deepcluster train --resume {shlex.quote(str(folder))}`."
        )
    if sizes is not None:
        check_clusters(sizes, warn)
        choices = len(sizes) * params_of(config).rotations_predicted
        check_loss([line["loss"] for line in metrics if _number(line.get("loss"))], choices, warn)
        empty = int((sizes == 0).sum())
        if empty:
            warn(f"{empty:,} of {len(sizes):,} clusters {'is' if empty == 1 else 'are'} empty.")
    if bad:
        warn(f"{bad:,} file{'s' * (bad != 1)} could not be decoded and {'were' if bad != 1 else 'was'} skipped.")
    return [sentence[:1].upper() + sentence[1:] for sentence in said]


def command(config: Mapping[str, Any], folder: Path) -> str:
    """The command that trains with this run's main settings; run.json has them all."""
    settings = config.get("settings", {})
    words = ["deepcluster", "train", str(config.get("preset", "PRESET"))]
    words += ["--data", str(config.get("data", "DATA")), "--out", str(folder)]
    for name in ("epochs", "batch_size", "seed", "image_size"):
        if name in settings:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    if "k" in settings.get("method", {}):
        words += ["--method.k", str(settings["method"]["k"])]
    return shlex.join(words)


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
    """Every readable RUN/evaluation/*.json, by name."""
    found = []
    for file in sorted((folder / "evaluation").glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            scores = content["scores"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a file of someone else's; the page is about the run
        values = {str(name): value for name, value in scores}
        rows = [
            (name, _percent(value), _percent(values.get(f"{name}_std"), empty=""))
            for name, value in values.items()
            if not (name.endswith("_std") and name.removesuffix("_std") in values)
        ]
        found.append(Evaluation(str(content.get("protocol", file.stem)), rows, flat(content.get("settings") or {})))
    return found


def bad_images(folder: Path) -> tuple[int, list[tuple[str, str, str]]]:
    """How many rows RUN/bad_images.csv has, and the first of them: index, path, reason."""
    file = folder / "bad_images.csv"
    if not file.exists():
        return 0, []
    with open(file, newline="", encoding="utf-8", errors="replace") as handle:
        rows = [row for row in csv.reader(handle) if len(row) >= 3][1:]
    return len(rows), [(row[0], row[1], row[2]) for row in rows[:BAD_SHOWN]]


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def seconds_of(line: Mapping[str, Any]) -> float:
    """Everything one epoch took."""
    return sum(_last([line]).get(f"seconds_{part}", 0.0) for part in ("train", "features", "cluster"))


def _last(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last number of every key: some are known only in epochs that recluster."""
    found: dict[str, float] = {}
    for line in metrics:
        found |= {name: value for name, value in line.items() if _number(value)}
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any, empty: str = "n/a") -> str:
    return f"{100 * value:.1f}" if _number(value) else empty

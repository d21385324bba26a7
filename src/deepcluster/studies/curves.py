"""What the curves of runs say: stability NMI(t-1,t), agreement NMI(t,labels), and when a score stopped rising.

Figures 2a and 2b of arXiv 1807.05520 §4.1. This file reads metrics.jsonl and, where nothing was watched, the kept
checkpoints; it trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.engine import build
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.engine.watch import NAMES, best_of, knn_score, labelled_draw
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.labels import labels_of
from deepcluster.features.extract import extract
from deepcluster.studies.study import Row, Study, run_names

LEVEL = 0.01
"""Rise from one part of a curve to the next below which it has levelled off."""


@dataclass(frozen=True)
class Course:
    """How a curve ends.

    Attributes:
        word: "levelled off", "rising", "falling", or "short" for fewer than four values.
        value: mean of its last part.
        change: that minus the mean of the part before, of as many values.
        since: position of the first value that is as high as the last part, to within `LEVEL`.
        part: values in a part: a quarter of all, at least two.
    """

    word: str
    value: float
    change: float
    since: int
    part: int


def course(values: np.ndarray) -> Course:
    """How (T,) values end: their last quarter against the quarter before."""
    if len(values) < 4:
        return Course("short", float(values[-1]), float("nan"), len(values) - 1, len(values))
    part = max(2, len(values) // 4)
    last, before = float(values[-part:].mean()), float(values[-2 * part : -part].mean())
    change = last - before
    word = "levelled off" if abs(change) < LEVEL else "rising" if change > 0 else "falling"
    return Course(word, last, change, int(np.argmax(values >= last - LEVEL)), part)


def stability(runs: Sequence[Run]) -> Study:
    """NMI(t-1,t) of each run by epoch (figure 2b), and whether it has saturated.

    Raises:
        DeepClusterError: a run has clustered less than twice.
    """
    rows, said = [], []
    for name, run in _named(runs):
        epochs, values = epochs_and_values(run.metrics, "nmi_previous")
        if not len(values):
            raise DeepClusterError(
                f"{run.folder} has no NMI(t-1,t) yet: train for two epochs or more, with --method.reassign 1 or less"
                " often than it has epochs."
            )
        rows += _rows(name, epochs, "nmi_previous", values)
        said.append(_ending(name, "NMI(t-1,t)", epochs, values, saturated=True))
    about = {"runs": [str(run.folder) for run in runs], "levelled_off": _criterion()}
    return Study("stability", " ".join(said), about, rows)


def agreement(runs: Sequence[Run]) -> Study:
    """NMI(t,labels) of each run by epoch (figure 2a). Methods never see the labels.

    Raises:
        DeepClusterError: a run's images have no labels, or no epoch has ended.
    """
    rows, said = [], []
    for name, run in _named(runs):
        epochs, values = epochs_and_values(run.metrics, "nmi_labels")
        if not len(values):
            raise DeepClusterError(
                f"{run.folder} has no NMI(t,labels): its images have no labels (class folders), or no epoch has ended;"
                " its stability can be studied without any: `deepcluster study stability`."
            )
        rows += _rows(name, epochs, "nmi_labels", values)
        rise = values[-1] - values[0]
        said.append(
            _ending(name, "NMI(t,labels)", epochs, values)
            + f" From the first epoch to the last it went from {values[0]:.3f} to {values[-1]:.3f} ({rise:+.3f})."
        )
    return Study(
        "agreement", " ".join(said), {"runs": [str(run.folder) for run in runs], "levelled_off": _criterion()}, rows
    )


def stopping(run: Run, screen: Screen) -> Study:
    """The downstream measure by epoch, and when it stopped rising: the run's watched values, or where nothing was
    watched the leave-one-out kNN score of its kept checkpoints.

    Raises:
        DeepClusterError: nothing was watched, and no checkpoint of an earlier epoch or no label is there.
    """
    score = run.config["settings"].get("watch", "none")
    values = [row for row in run.metrics if row.get("watched") is not None]
    if values:
        rows = [{"epoch": row["epoch"] + 1, "watched": row["watched"]} for row in values]
        about = {"values": "watched during training", "measure": NAMES.get(score, score)}
    else:
        rows = score_checkpoints(run, screen)
        about = {"values": "kept checkpoints, scored now", "measure": NAMES["knn"]}
    best = best_of([{"epoch": row["epoch"] - 1, "watched": row["watched"]} for row in rows])
    assert best is not None
    for row in rows:
        row["best"] = row["epoch"] == best.epoch + 1
    about |= {"run": str(run.folder), "best_epoch": best.epoch + 1, "best_value": best.value}
    said = f"The {about['measure']} was highest after epoch {best.epoch + 1}, at {100 * best.value:.1f} %"
    if len(rows) == 1:
        said += "; one value alone says nothing of when it stopped rising."
    elif best.since == 0:
        said += ", the last one scored: it was still rising, and longer training may help."
    else:
        last = rows[-1]
        said += f", and has not risen in the {best.since} value{'s' * (best.since > 1)} after it"
        said += f" ({100 * last['watched']:.1f} % after epoch {last['epoch']})."
    kept = run.folder / "checkpoints"
    for file in (kept / "best.ckpt", kept / f"epoch-{best.epoch:04d}.ckpt"):
        if file.exists():
            said += f" {file} holds that epoch."
            break
    return Study("stopping", said, about, rows)


def score_checkpoints(run: Run, screen: Screen) -> list[Row]:
    """Epoch, counted from 1, and leave-one-out kNN score of each kept epoch-NNNN.ckpt."""
    files = sorted((run.folder / "checkpoints").glob("epoch-*.ckpt"))
    if not files:
        raise DeepClusterError(
            f"{run.folder} has neither watched values nor kept checkpoints: train with --watch knn, or with"
            " --keep-every 1."
        )
    source = run.source()
    labels = labels_of(source, "study stopping")
    drawn = labelled_draw(labels, run.config["seed"])
    pixels, rows = run.pixels(source), []
    for file in files:
        network = build.at_checkpoint(run.config, file).to(run.device)
        with screen.bar(file.name, len(drawn)) as advance:
            index, features = extract(
                network,
                pixels,
                size=network.image_size,
                mean=network.mean,
                std=network.std,
                device=run.device,
                only=drawn,
                check=advance,
            )
        rows.append({"epoch": int(file.stem.partition("-")[2]) + 1, "watched": knn_score(features, labels[index])})
    return rows


def epochs_and_values(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(T,) epochs, counted from 1, and (T,) values of one key, without the epochs that have none."""
    pairs = [(row["epoch"] + 1, row[key]) for row in metrics if isinstance(row.get(key), (int, float))]
    known = [(epoch, value) for epoch, value in pairs if math.isfinite(value)]
    return np.array([epoch for epoch, _ in known], np.int64), np.array([value for _, value in known], float)


def _named(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    return list(zip(run_names([Path(run.folder) for run in runs]), runs, strict=True))


def _rows(name: str, epochs: np.ndarray, key: str, values: np.ndarray) -> list[Row]:
    return [{"run": name, "epoch": int(x), key: float(y)} for x, y in zip(epochs, values, strict=True)]


def _criterion() -> str:
    return f"the mean of the last quarter of the values differs by less than {LEVEL:g} from that of the quarter before"


def _ending(name: str, what: str, epochs: np.ndarray, values: np.ndarray, saturated: bool = False) -> str:
    end = course(values)
    if end.word == "short":
        return f"{name}: {len(values)} value(s) of {what} are too few to say how it goes on (last {end.value:.3f})."
    if end.word == "levelled off":
        verb = "has saturated" if saturated else "has levelled off"
        more = "; the clusters keep changing in part" if saturated and end.value < 0.9 else ""
        return f"{name}: {what} {verb} at {end.value:.3f}, reached in epoch {epochs[end.since]}{more}."
    verb = "is still rising" if end.word == "rising" else "is falling"
    said = f"{name}: {what} {'has not saturated: it ' if saturated else ''}{verb}"
    return (
        f"{said}, by {abs(end.change):.3f} from the {end.part} values before to the last {end.part} ({end.value:.3f})."
    )

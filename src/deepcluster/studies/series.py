"""The same run with several values of one setting, each scored alike (arXiv 1807.05520 §4.1, figure 2c).

Each value has an ordinary run folder, so a series that was killed goes on where it stood. This file does not know
which setting is varied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deepcluster import config as settings
from deepcluster.config import TrainRun
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine import run_folder
from deepcluster.engine import train as engine
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run, load_run, read_config
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.clusters import clusters
from deepcluster.evaluate.knn import knn
from deepcluster.evaluate.labels import labels_of
from deepcluster.features.neighbors import score_features
from deepcluster.random import seeded
from deepcluster.studies.study import Row, Study

Score = Literal["knn", "nmi", "purity", "accuracy"]
NAMES = {"knn": "kNN", "nmi": "NMI", "purity": "purity", "accuracy": "matched accuracy"}
NEIGHBORS = 20
ASKED, ASKED_MOST = 0.2, 5_000
"""Share of the labelled images that the fixed split asks about, and at most how many."""
SPLIT = 2018
"""Seed of the fixed split: the same for every run and study."""
BESIDE = ("device", "save_minutes", "keep_every", "data.cache_gb", "data.workers")
"""Settings in which a run that is reused may differ: they change no number of it."""


@dataclass(frozen=True)
class Series:
    """What is varied, and how each run is scored.

    Attributes:
        setting: a name of `TrainRun`, such as "method.k".
        values: in rising order, each once.
        run: all other settings; the seed is the same for every value.
        preset: name of the preset that `run` started from.
        data: what `open_images` takes.
        test: labelled images to score on; None = see `scored`.
        score: the downstream measure.
        folder: where the run folders and the table go.
    """

    setting: str
    values: tuple[Any, ...]
    run: TrainRun
    preset: str
    data: Any
    test: Any
    score: Score
    folder: Path

    @property
    def short(self) -> str:
        """The setting's own name, such as "k"."""
        return self.setting.rpartition(".")[2]

    def place(self, value: Any) -> Path:
        """The run folder of one value: k-00050, reassign-0.5."""
        return self.folder / f"{self.short}-{f'{value:05d}' if isinstance(value, int) else f'{value:g}'}"


def study_series(series: Series, screen: Screen) -> Iterator[Study]:
    """Trains and scores one run per value; yields the study as it stands after each, the last one whole.

    Raises:
        DeepClusterError: no labels to score with, values or settings that do not fit, before anything is trained.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    _can_vary(series)
    source = open_images(series.data)
    labels = labels_of(source if series.test is None else open_images(series.test), "study")
    _check(series, source)
    classes = len(np.unique(labels[labels >= 0]))
    rows: list[Row] = []
    for value in series.values:
        folder = series.place(value)
        screen.say(f"{series.short} = {_number(value)}: {folder}")
        run = trained(series, value, source, screen)
        rows.append(_row(series, value, run, scored(run, series, source, screen)))
        yield _study(series, rows, classes, source, labels)


def trained(series: Series, value: Any, source: ImageSource, screen: Screen) -> Run:
    """The finished run of one value: as it is there, resumed, or trained from its beginning."""
    folder = series.place(value)
    wanted = settings.override(series.run, {series.setting: value})
    if not (folder / "run.json").exists():
        return engine.train(wanted, source, folder, preset=series.preset, screen=screen)
    config = _same_run(folder, wanted, source)
    if config.get("finished"):
        screen.say(f"{folder} is finished already")
        return load_run(folder, wanted.device)
    run = settings.from_dict(config["settings"])
    return engine.train(run, source, folder, preset=config["preset"], resume=True, screen=screen)


def scored(run: Run, series: Series, source: ImageSource, screen: Screen) -> dict[str, Any]:
    """`score`, a fraction of 1, and for kNN its `error`, one standard error of the share of so many images.

    knn: softmax vote of the 20 nearest images of the data by cosine of the backbone's output, on `test`; without one,
    on a fixed fifth of the labelled data (at most 5,000), by the rest of it. Training saw these images, never labels.
    nmi, purity, accuracy: of the whitened features clustered anew into as many clusters as there are classes, on
    `test` or else on the data, so that runs with different k can be compared.
    """
    if series.score == "knn":
        if series.test is None:
            value, asked = split_score(run, source, screen)
        else:
            result = knn(run, source, series.test, k=(NEIGHBORS,), screen=screen)
            value, asked = result.scores[f"knn{NEIGHBORS}_top1"], result.settings["images_test"]
        return {"score": value, "error": math.sqrt(value * (1 - value) / asked)}
    where = source if series.test is None else series.test
    result = clusters(run, where, k="classes", screen=screen)
    return {"score": result.scores[f"k{result.settings['k']}_{series.score}"]}


def split_score(run: Run, source: ImageSource, screen: Screen) -> tuple[float, int]:
    """The kNN score on a fixed split of the labelled images, and how many were asked about."""
    with screen.bar("features", len(source)) as advance:
        features = run.features(source, check=advance)
    labels = labels_of(source, "study")
    usable = np.flatnonzero(np.isfinite(features).all(axis=1) & (labels >= 0))
    order = usable[torch.randperm(len(usable), generator=seeded(SPLIT)).numpy()]
    asked = min(round(ASKED * len(order)), ASKED_MOST)
    queries, bank = order[:asked], order[asked:]
    if not len(queries):
        raise DeepClusterError(
            f"{source.name} has {len(usable)} labelled images that can be decoded, too few to score: give more, or"
            " --test."
        )
    k = min(NEIGHBORS, len(bank))
    pairs = score_features(
        features[bank], labels[bank], features[queries], labels[queries], k=(k,), classes=int(labels.max()) + 1
    )
    return dict(pairs)[f"knn{k}_top1"], asked


def best_row(rows: Sequence[Row]) -> Row:
    """The row with the highest score; of equal ones the first."""
    return max(rows, key=lambda row: row["score"])


def sentence(name: str, score: Score, rows: Sequence[Row], classes: int) -> str:
    """What the scores say: the best value, whether it is above the number of classes (for k), whether it lies at an
    end of the values tried, and which others cannot be told from it."""
    if len(rows) < 2:
        return f"One value alone, {name} = {_number(rows[0][name])}, has nothing to be compared with."
    best = best_row(rows)
    tied = [row for row in rows if row["score"] == best["score"]]
    said = f"The best of {len(rows)} values is {name} = {_number(best[name])}"
    if len(tied) > 1:
        numbers = " and ".join(_number(row[name]) for row in tied)
        said = f"Of {len(rows)} values {name} = {numbers} are equally good and the best,"
    said += f" with {NAMES[score]} {_percent(best['score'])}"
    if name == "k" and len(tied) == 1:
        times = best["k"] / classes
        side = "above" if times > 1 else "not above" if times < 1 else "equal to"
        said += f": {side} the number of classes, {classes:,}"
        said += f" ({times:,.3g} times as many)" if times > 1 else ""
    alone = len(tied) == 1  # of equal ones none lies at an end
    if alone and best is rows[0]:
        said += "; it is the smallest value tried, so the best may be smaller still"
    elif alone and best is rows[-1]:
        said += "; it is the largest value tried, so the best may be larger still"
    if "error" in best:
        near = [row for row in rows if row not in tied and row["score"] >= best["score"] - 2 * best["error"]]
        if near:
            values = " and ".join(_number(row[name]) for row in near)
            verb = "is" if len(near) == 1 else "are"
            said += f"; {values} {verb} within two standard errors of it ({200 * best['error']:.1f} points)"
    return said + ". One run each, with the same seed."


def _row(series: Series, value: Any, run: Run, score: dict[str, Any]) -> Row:
    metrics = run.metrics
    last = metrics[-1] if metrics else {}
    kept = ("loss", "nmi_previous", "nmi_labels", "purity", "clusters_used", "size_min", "size_max")
    seconds = sum(row[name] for row in metrics for name in ("seconds_train", "seconds_features", "seconds_cluster"))
    return {
        series.short: value,
        **score,
        "epochs": len(metrics),
        **{name: last.get(name) for name in kept},
        "seconds": round(seconds, 1),
        "run": run.folder.name,
    }


def _study(series: Series, rows: list[Row], classes: int, source: ImageSource, labels: np.ndarray) -> Study:
    own = series.short
    how = {
        "knn": f"softmax vote of the {NEIGHBORS} nearest by cosine of the features; error = one standard error",
        "nmi": "NMI of the features clustered anew into as many clusters as classes",
        "purity": "purity of the features clustered anew into as many clusters as classes",
        "accuracy": "accuracy of the features clustered anew into as many clusters as classes, matched one to one",
    }[series.score]
    where = "the data" if series.score != "knn" else "a fixed fifth of the labelled data, by the rest"
    about = {
        "setting": series.setting,
        "values": list(series.values),
        "preset": series.preset,
        "data": source.name,
        "score": series.score,
        "score_means": how,
        "scored_on": where if series.test is None else str(getattr(series.test, "name", series.test)),
        "classes": classes,
        "images_with_label": int((labels >= 0).sum()),
        "seed": series.run.seed,
        "run": settings.as_dict(series.run),
    }
    shown = (own, "score", *(("error",) if series.score == "knn" else ()), "clusters_used", "nmi_previous",
             "nmi_labels", "purity", "seconds")  # fmt: skip
    return Study(own, sentence(own, series.score, rows, classes), about, list(rows), shown)


def _can_vary(series: Series) -> None:
    """Whether the setting is one of the method, and one that it follows."""
    method = series.run.method
    if series.setting not in settings.names(series.run):
        raise DeepClusterError(
            f"{series.preset} has no --{series.setting} to vary, since ODC clusters anew in every step: give a preset"
            " of DeepCluster."
        )
    algorithm = getattr(method, "algorithm", "kmeans")
    if series.setting == "method.k" and algorithm != "kmeans":
        who = "PIC finds" if algorithm == "pic" else "a clusterer of your own finds"
        raise DeepClusterError(
            f"{who} the number of clusters itself, so there is no k to vary: give a preset that clusters by k-means."
        )


def _check(series: Series, source: ImageSource) -> None:
    """Every value and every folder that is there already, before hours go into the first run."""
    if not series.values:
        raise DeepClusterError(f"A study of {series.short} needs values: add --values with two or more.")
    for value in series.values:
        if not value > 0:
            raise DeepClusterError(f"{series.short} = {value} cannot be tried: give --values above 0.")
        if series.setting == "method.k" and value > len(source):
            raise DeepClusterError(
                f"{len(source):,} images cannot be put into {value:,} clusters: give --values up to {len(source):,}."
            )
        folder = series.place(value)
        if (folder / "run.json").exists():
            _same_run(folder, settings.override(series.run, {series.setting: value}), source)


def _same_run(folder: Path, wanted: TrainRun, source: ImageSource) -> dict[str, Any]:
    """run.json of the run that is there.

    Raises:
        DeepClusterError: it is a run of other settings or other images.
    """
    config = read_config(folder)
    # both by way of JSON, which makes lists of tuples and floats of a float setting's whole numbers
    there, asked = (
        _flat(settings.from_dict(each)) for each in (config["settings"], settings.as_dict(run_folder.resolved(wanted)))
    )
    other = [name for name in asked if name not in BESIDE and there[name] != asked[name]]
    if other:
        name = other[0]
        raise DeepClusterError(
            f"{folder} holds a run with other settings (--{name.replace('_', '-')} {there[name]}, not {asked[name]}):"
            " give the same options to go on with this study, or another --out."
        )
    run_folder.same_images(config, source, folder)
    return config


def _flat(run: TrainRun) -> dict[str, str]:
    """Every setting by its dotted name, as JSON."""
    plain = settings.as_dict(run)
    found = {}
    for name in settings.names():
        group, _, part = name.rpartition(".")
        found[name] = json.dumps(plain[group][part] if group else plain[part]).strip('"')
    return found


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"

"""The same run with several values of one setting, each scored alike (arXiv 1807.05520 section 4.1, figure 2c).

    python examples/reproduce/sweep.py deepcluster-convnet --data photos/ --out runs/ks \\
        --setting method.k --values 50 100 300 1000 3000 --score knn
    python examples/reproduce/sweep.py deepcluster-convnet --data photos/ --out runs/reassign \\
        --setting method.reassign --values 0.5 1 2 4

All other settings are given as for `deepcluster train`. Each value has a run folder of its own, with the same seed, so
a sweep that was stopped continues by the same command, and one with more values reuses the finished runs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from common import Row, Study, run_script
from tyro import MISSING
from tyro.conf import arg

from deepcluster import config, open_images
from deepcluster.cli.parse import parse
from deepcluster.config import TrainRun
from deepcluster.engine import run_folder
from deepcluster.engine.build import build_method, check
from deepcluster.engine.length import is_finished
from deepcluster.engine.log import Screen
from deepcluster.engine.monitor import NEIGHBORS, draw_labelled, knn_score
from deepcluster.engine.run import Run, load_run
from deepcluster.engine.run_folder import read_config
from deepcluster.engine.train import train
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.clusters import clusters
from deepcluster.evaluate.knn import knn
from deepcluster.evaluate.labels import labels_of
from deepcluster.features.extract import extract
from deepcluster.presets import find_preset
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from deepcluster.data.source import ImageSource

MEASURES = {"knn": "kNN", "nmi": "NMI", "purity": "purity", "accuracy": "matched accuracy"}
NO_EFFECT = ("device", "save_minutes", "keep_every", "data.cache_gb", "data.workers")
"""Settings in which a run that is reused may differ: they change no number of it."""
METRICS = ("loss", "nmi_previous", "nmi_labels", "purity", "clusters_used", "size_min", "size_max")


@dataclass(frozen=True)
class Sweep:
    """What is varied, and how each run is scored."""

    source: Annotated[str, arg(name="data")]
    """Images with labels: a folder with class folders, tar shards, a list, torchvision:NAME, or digits."""
    out: Path
    """The folder to write; holds one run folder per value."""
    values: tuple[float, ...]
    """Values to try."""
    setting: str = "method.k"
    """The setting that is varied, by its name."""
    test: str | None = None
    """Labelled images to score on; none = the training images, whose labels training never sees."""
    score: Literal["knn", "nmi", "purity", "accuracy"] = "knn"
    """knn: 20 nearest neighbors by the backbone's features (without --test leave-one-out on up to 5,000 images);
    nmi, purity, accuracy: of the features clustered again into as many clusters as there are classes."""
    json: bool = False
    """Print one JSON object when done."""
    settings: Annotated[TrainRun, arg(name="")] = field(default_factory=TrainRun)


def sweep(preset: str, chosen: Sweep, screen: Screen) -> Study:
    """Trains and scores one run per value; table and picture are saved after each.

    Raises:
        DeepClusterError: no labels, or values or settings that do not fit, before anything is trained.
        Interrupted: Ctrl-C or SIGTERM; the same call continues.
    """
    source, short = open_images(chosen.source), chosen.setting.rpartition(".")[2]
    labels = labels_of(source if chosen.test is None else open_images(chosen.test), "sweep")
    classes = len(np.unique(labels[labels >= 0]))
    runs = planned_runs(chosen, source)
    rows: list[Row] = []
    for value, (folder, wanted) in runs.items():
        screen.print(f"{short} = {value:,}: {folder}")
        if not (folder / "run.json").exists() or not is_finished(folder):
            run = train(wanted, source, folder, preset=preset, resume=(folder / "run.json").exists(), screen=screen)
        else:
            run = load_run(folder, wanted.device)
        rows.append({short: value, **score(run, chosen, source), **summary(run)})
        about = {"setting": chosen.setting, "preset": preset, "data": source.name, "test": chosen.test,
                 "score": chosen.score, "classes": classes, "run": config.as_dict(chosen.settings)}  # fmt: skip
        page = style.figure(6.4, 3.6)
        draw_sweep(page.add_subplot(), rows, short, MEASURES[chosen.score], classes)
        study = Study(short, sentence(short, MEASURES[chosen.score], rows, classes), about, list(rows), page)
        study.save(chosen.out)
    return study


def planned_runs(chosen: Sweep, source: ImageSource) -> dict[float, tuple[Path, TrainRun]]:
    """Value -> run folder and settings, in rising order; each checked before hours go into the first run."""
    short = chosen.setting.rpartition(".")[2]
    if chosen.setting not in config.names(chosen.settings):
        raise DeepClusterError(f"This preset has no --{chosen.setting} to vary: give another --setting or preset.")
    if len(set(chosen.values)) < 2:
        raise DeepClusterError("A sweep compares: give --values two or more that differ.")
    found: dict[float, tuple[Path, TrainRun]] = {}
    for each in sorted(set(chosen.values)):
        value = int(each) if each == int(each) else each
        folder = chosen.out / f"{short}-{f'{value:05d}' if isinstance(value, int) else f'{value:g}'}"
        wanted = config.override(chosen.settings, {chosen.setting: value})
        check(wanted)
        build_method(wanted, len(source))  # refuses what the method cannot be made of
        if chosen.setting == "method.k" and value > len(source):
            raise DeepClusterError(f"{len(source):,} images cannot form {value:,} clusters: give smaller --values.")
        if (folder / "run.json").exists():
            check_same_run(folder, wanted, source)
        found[value] = (folder, wanted)
    return found


def check_same_run(folder: Path, wanted: TrainRun, source: ImageSource) -> None:
    """Refuses a run folder with other settings or other images."""
    there = read_config(folder)
    # both by way of from_dict, which makes floats of a float setting's whole numbers
    before, asked = (
        _flat(config.from_dict(each)) for each in (there["settings"], config.as_dict(run_folder.resolved(wanted)))
    )
    for name, value in asked.items():
        if name not in NO_EFFECT and before[name] != value:
            raise DeepClusterError(
                f"{folder} holds a run with other settings (--{name.replace('_', '-')} {before[name]}, not {value}):"
                " give the same options to continue this sweep, or another --out."
            )
    run_folder.same_images(there, source, folder)


def score(run: Run, chosen: Sweep, source: ImageSource) -> dict[str, float]:
    """`score`, a fraction of 1, and for kNN its `error`, one standard error of a share of so many images."""
    if chosen.score != "knn":
        # clustered again, so that runs with different numbers of clusters can be compared
        result = clusters(run, source if chosen.test is None else chosen.test, k="classes")
        return {"score": result.scores[f"k{result.settings['k']}_{chosen.score}"]}
    if chosen.test is None:
        value, count = leave_one_out(run, run.model.backbone, source)
    else:
        result = knn(run, source, chosen.test, k=(NEIGHBORS,))
        value, count = result.scores[f"knn{NEIGHBORS}_top1"], result.settings["images_test"]
    return {"score": value, "error": math.sqrt(value * (1 - value) / count)}


def leave_one_out(run: Run, network: Any, source: ImageSource) -> tuple[float, int]:
    """The kNN score of a network on up to 5,000 labelled images of the source, as `--watch knn` draws them, and their
    number."""
    labels = labels_of(source, "sweep")
    index, features = extract(
        network,
        run.pixels(source),
        device=run.device,
        only=draw_labelled(labels, run.config["seed"]),
    )
    return knn_score(features, labels[index]), len(index)


def summary(run: Run) -> Row:
    """The last epoch of a run, and what it took."""
    metrics = run.metrics
    seconds = sum(row[f"seconds_{part}"] for row in metrics for part in ("train", "features", "cluster"))
    last = {name: metrics[-1].get(name) for name in METRICS}
    return {"epochs": len(metrics), **last, "seconds": round(seconds, 1), "run": run.folder.name}


def sentence(name: str, measure: str, rows: list[Row], classes: int) -> str:
    """What the scores say: the best value, where it lies, and which others cannot be told from it."""
    best = max(rows, key=lambda row: row["score"])
    text = f"The best of {len(rows)} values is {name} = {best[name]:,} with {measure} {100 * best['score']:.1f} %"
    tied = [row for row in rows if row["score"] == best["score"]]
    if len(tied) > 1:
        numbers = " and ".join(f"{row[name]:,}" for row in tied)
        text = f"Of {len(rows)} values {name} = {numbers} are equally good, with {measure} {100 * best['score']:.1f} %"
    elif name == "k":
        side = "above" if best["k"] > classes else "not above"
        text += f": {side} the number of classes, {classes:,} ({best['k'] / classes:,.3g} times as many)"
    if len(rows) > 1 == len(tied) and best in (rows[0], rows[-1]):
        end, further = ("smallest", "smaller") if best is rows[0] else ("largest", "larger")
        text += f"; it is the {end} value tried, so the best may be {further} still"
    near = [row for row in rows if row not in tied and row["score"] >= best["score"] - 2 * best.get("error", 0)]
    if near:
        values = " and ".join(f"{row[name]:,}" for row in near)
        text += f"; within two standard errors ({200 * best['error']:.1f} points): {values}"
    return text + ". One run each, with the same seed."


def draw_sweep(axes: Axes, rows: list[Row], setting: str, measure: str, classes: int) -> None:
    """Score against setting, with a band of two standard errors; for k the number of classes as a dashed line."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    x, y = np.array([row[setting] for row in rows], float), np.array([100 * row["score"] for row in rows])
    error = np.array([200 * row.get("error", 0.0) for row in rows])
    best = int(y.argmax())
    style.quiet(axes, f"{setting}: best {rows[best][setting]:,}, {measure} {y[best]:.1f} %", setting, f"{measure} (%)")
    axes.errorbar(x, y, error if error.any() else None, fmt="o-", color=style.SERIES[0], capsize=3, linewidth=1.8,
                  markersize=4.5, label="bars: two standard errors" if error.any() else None)  # fmt: skip
    axes.plot(x[best], y[best], "o", color=style.SERIES[1], markersize=9, zorder=3)
    if setting == "k":
        label = f"{classes:,} classes"
        axes.axvline(classes, color=style.QUIET, linewidth=1, linestyle="--", zorder=0.5, label=label)
    if (x > 0).all():
        axes.set_xscale("log")
        axes.set_xticks(x)
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    if error.any() or setting == "k":
        axes.legend(frameon=False, fontsize=9)


def _flat(run: TrainRun) -> dict[str, str]:
    """Every setting by its dotted name, as text."""
    plain = config.as_dict(run)
    return {
        name: str(plain[name.partition(".")[0]][name.partition(".")[2]] if "." in name else plain[name])
        for name in config.names(run)
    }


def main(arguments: list[str]) -> None:
    """Sweeps, and prints table and sentence."""
    named = bool(arguments) and not arguments[0].startswith("-")
    if not named and not {"-h", "--help"} & set(arguments):
        raise DeepClusterError("The preset comes first: sweep.py PRESET --data S --out DIR --values ...")
    preset, rest = (arguments[0], arguments[1:]) if named else ("PRESET", arguments)
    run = find_preset(preset).run if named else TrainRun()
    default = Sweep(MISSING, MISSING, MISSING, settings=run)
    chosen = parse(Sweep, rest, prog=f"sweep.py {preset}", default=default)
    chosen = dataclasses.replace(chosen, setting=chosen.setting.replace("-", "_"))
    if any(word.partition("=")[0] == f"--{chosen.setting.replace('_', '-')}" for word in rest):
        raise DeepClusterError(f"This sweep varies --{chosen.setting} itself: give its --values instead.")
    sweep(preset, chosen, Screen(stderr=chosen.json)).report(chosen.out, chosen.json)


if __name__ == "__main__":
    run_script(main)

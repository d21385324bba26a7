"""`deepcluster study WHAT ...`: each leaves a table and a picture."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro import MISSING
from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.config import TrainRun, nearest
from deepcluster.data.open import must_exist
from deepcluster.errors import DeepClusterError, Interrupted

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import Run


@dataclass(frozen=True)
class _Trains:
    """What the studies that train have in common."""

    source: Annotated[str, arg(name="data")]
    """Images with labels: a folder with class folders, tar shards, a list, torchvision:NAME, or digits."""
    out: Path
    """The folder to write; holds one run folder per value."""
    test: str | None = None
    """Labelled images to score on; none = a fixed fifth of the labelled data for knn, the data for the others."""
    score: Literal["knn", "nmi", "purity", "accuracy"] = "knn"
    """knn: 20 nearest neighbors on the backbone's features; nmi, purity, accuracy: of the features clustered anew into
    as many clusters as there are classes."""
    json: bool = False
    """Print one JSON object when done."""
    settings: Annotated[TrainRun, arg(name="")] = field(default_factory=TrainRun)


@dataclass(frozen=True)
class K(_Trains):
    """The choice of k (figure 2c): trains one run per value from the same seed, and scores each."""

    values: tuple[int, ...] = (50, 100, 300, 1000, 3000)
    """Numbers of clusters."""


@dataclass(frozen=True)
class Reassign(_Trains):
    """Epochs between two clusterings: trains one run per value from the same seed, and scores each."""

    values: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Epochs between two clusterings."""


@dataclass(frozen=True)
class Stability:
    """NMI(t-1,t) by epoch (figure 2b), and whether it has saturated."""

    runs: Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """The folder to write; none = studies/ in the first run folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Agreement:
    """NMI(t,labels) by epoch (figure 2a), where the images have labels."""

    runs: Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """The folder to write; none = studies/ in the first run folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Stopping:
    """When the downstream measure stopped rising: by its watched values, or by scoring its kept checkpoints."""

    run: Positional[Path]
    """The run folder."""
    out: Path | None = None
    """The folder to write; none = studies/ in the run folder."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Figure2:
    """The paper's figure 2 (a, b, c) as one picture, from runs of your own."""

    run: Path | None = None
    """Run folder of panels a and b."""
    k_study: Path | None = None
    """Folder that `deepcluster study k` wrote, of panel c."""
    out: Path = MISSING
    """The folder to write."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Sizes:
    """Cluster sizes of runs side by side, such as k-means beside PIC (appendix figure 3)."""

    runs: Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """The folder to write; none = studies/ in the first run folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class TreePurity:
    """Purity of a run's clusters over a tree of labels, such as WordNet (appendix figure 6)."""

    run: Positional[Path]
    """The run folder."""
    tree: Path
    """Text file of lines `child parent [name of the child]`; of several parents the first one named is followed."""
    names: Path | None = None
    """Text file of lines `node name`."""
    parent_first: bool = False
    """Lines of the tree are `parent child`, as in ImageNet's wordnet.is_a.txt."""
    threshold: float = 0.7
    """A cluster is pure where one node holds more than this share of it."""
    source: Annotated[str | None, arg(name="data")] = None
    """Labelled images to assign and look at; none = the training images."""
    out: Path | None = None
    """The folder to write; none = studies/ in the run folder."""
    json: bool = False
    """Print one JSON object."""


STUDIES: dict[str, type] = {
    "k": K,
    "reassign": Reassign,
    "stability": Stability,
    "agreement": Agreement,
    "stopping": Stopping,
    "figure2": Figure2,
    "sizes": Sizes,
    "tree": TreePurity,
}


def command(arguments: list[str]) -> None:
    """Studies, prints table and sentence, and leaves NAME.csv, NAME.json and NAME.png."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: deepcluster study WHAT ...\n\nstudies, each of which leaves a table and a picture:")
        for name, kind in STUDIES.items():
            print(f"  {name:<12}{(kind.__doc__ or '').strip()}")
        print("\n`deepcluster study WHAT --help` lists the options of one.")
        if arguments:
            return
        raise DeepClusterError(f"The study is missing: deepcluster study {'|'.join(STUDIES)} ...")
    what, rest = arguments[0], arguments[1:]
    if what not in STUDIES:
        raise DeepClusterError(
            f"There is no study {what!r}.{nearest(what, list(STUDIES))} `deepcluster study --help` lists them."
        )
    if what in SETTINGS:
        _train(what, rest)
        return
    chosen = parse(STUDIES[what], rest, prog=f"deepcluster study {what}")
    if getattr(chosen, "runs", None) == ():
        raise DeepClusterError(f"A study of {what} needs a run: deepcluster study {what} RUN [RUN ...].")
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=chosen.json)
    study, picture = STEPS[what](chosen, screen)
    first = chosen.runs[0] if hasattr(chosen, "runs") else chosen.run
    folder = chosen.out or first / "studies"
    study.save(folder, picture)
    _tell(study, folder, screen, chosen.json)


SETTINGS = {"k": "method.k", "reassign": "method.reassign"}
"""Study -> the setting that it varies."""


def _train(what: str, arguments: list[str]) -> None:
    setting = SETTINGS[what]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise DeepClusterError(f"The preset comes first: deepcluster study {what} PRESET --data S --out DIR.")
    if any(word == f"--{setting}" or word.startswith(f"--{setting}=") for word in arguments):
        raise DeepClusterError(f"This study varies --{setting} itself: give its --values instead.")
    from deepcluster.presets import find_preset

    named = not arguments[0].startswith("-")
    name = arguments[0] if named else "PRESET"
    run = find_preset(name).run if named else TrainRun()
    chosen = parse(
        STUDIES[what],
        arguments[1:] if named else arguments,
        prog=f"deepcluster study {what} {name}",
        default=STUDIES[what](MISSING, MISSING, settings=run),
    )
    for place in (chosen.source, chosen.test):
        must_exist(place)
    from deepcluster.engine.log import Screen
    from deepcluster.studies.series import NAMES, Series, study_series
    from deepcluster.visualize.studies import series_figure

    screen = Screen(stderr=chosen.json)
    values = tuple(sorted(set(chosen.values)))
    if len(values) == 1 < len(chosen.values):
        raise DeepClusterError(f"--values names {values[0]:g} alone, several times: give values that differ.")
    series = Series(
        setting, values, chosen.settings, name, chosen.source, chosen.test, chosen.score, chosen.out
    )  # fmt: skip
    study = None
    try:
        for study in study_series(series, screen):
            about = study.settings
            title = {"k": "Choice of k", "reassign": "Epochs between two clusterings"}[what]
            classes = about["classes"] if what == "k" else None
            study.save(
                chosen.out, series_figure(study.rows, what, title, f"{NAMES[chosen.score]} (%)", classes)
            )  # fmt: skip
    except Interrupted:
        screen.say("stopped and saved; the same command goes on")
        raise
    assert study is not None
    _tell(study, chosen.out, screen, chosen.json)


def _tell(study: Any, folder: Path, screen: Screen, as_json: bool) -> None:
    if as_json:
        print(json_module.dumps(study.as_dict() | {"out": str(folder)}))
        return
    screen.console.print(study.table(), soft_wrap=False)  # lines are wrapped within the cells, and none is cut
    screen.say(study.sentence)
    screen.say(f"{folder / study.name}.png, .csv, .json")


def _runs(folders: tuple[Path, ...]) -> list[Run]:
    from deepcluster.engine.run import load_run

    return [load_run(folder) for folder in folders]


def _curves(name: str, key: str, title: str, unit: str) -> Callable[[Any, Screen], tuple[Any, Any]]:
    def column(rows: Any, run: str, part: str) -> Any:
        import numpy as np

        return np.array([row[part] for row in rows if row["run"] == run])

    def step(chosen: Any, screen: Screen) -> tuple[Any, Any]:
        from deepcluster.studies import curves
        from deepcluster.visualize.studies import curves_figure

        study = getattr(curves, name)(_runs(chosen.runs))
        names = dict.fromkeys(row["run"] for row in study.rows)
        lines = {run: (column(study.rows, run, "epoch"), column(study.rows, run, key)) for run in names}
        return study, curves_figure(lines, title, unit)

    return step


def _stopping(chosen: Any, screen: Screen) -> tuple[Any, Any]:
    from deepcluster.engine.run import load_run
    from deepcluster.studies.curves import stopping
    from deepcluster.visualize.studies import stopping_figure

    study = stopping(load_run(chosen.run, chosen.device), screen)
    return study, stopping_figure(study.rows, study.settings["measure"])


def _figure2(chosen: Any, screen: Screen) -> tuple[Any, Any]:
    from deepcluster.engine.run import load_run
    from deepcluster.studies.figure2 import figure2

    if chosen.run is None and chosen.k_study is None:
        raise DeepClusterError("Figure 2 needs something to draw: give --run RUN, --k-study DIR, or both.")
    return figure2(load_run(chosen.run) if chosen.run else None, chosen.k_study)


def _sizes(chosen: Any, screen: Screen) -> tuple[Any, Any]:
    from deepcluster.studies.sizes import sizes_of_runs, study_sizes
    from deepcluster.visualize.studies import sizes_figure

    sizes = sizes_of_runs(_runs(chosen.runs))
    return study_sizes(sizes, [str(folder) for folder in chosen.runs]), sizes_figure(sizes)


def _tree(chosen: Any, screen: Screen) -> tuple[Any, Any]:
    import numpy as np

    from deepcluster.data.open import open_images
    from deepcluster.engine.run import load_run
    from deepcluster.evaluate.labels import labels_of
    from deepcluster.studies.tree import read_tree, study_tree
    from deepcluster.visualize.studies import tree_figure

    tree = read_tree(chosen.tree, chosen.names, parent_first=chosen.parent_first)
    run = load_run(chosen.run)
    source = run.source() if chosen.source is None else open_images(chosen.source)
    labels = labels_of(source, "study tree")
    if chosen.source is None:
        assignment = np.asarray(run.assignment)
    else:
        with screen.bar("assigning", len(source)) as advance:
            assignment = run.assign(source, check=advance).cluster
    study = study_tree(str(chosen.run), assignment, labels, source.classes, tree, chosen.tree, chosen.threshold)
    return study, tree_figure(study.rows, chosen.threshold, len(study.more["clusters"]))


STEPS: dict[str, Callable[[Any, Screen], tuple[Any, Any]]] = {
    "stability": _curves("stability", "nmi_previous", "Stability of the clusters", "NMI(t-1, t)"),
    "agreement": _curves("agreement", "nmi_labels", "Agreement with the labels", "NMI(t, labels)"),
    "stopping": _stopping,
    "figure2": _figure2,
    "sizes": _sizes,
    "tree": _tree,
}

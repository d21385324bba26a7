"""How processor seconds, memory and files of each stage grow with N, K, d, images and processes, beside the theory.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --picture growth.png
    python benchmarks/growth.py --only k-means --vary N --values 1000000 --set d=256 whiten=256    # larger

A curve varies one quantity of one stage; the others stay at their base value, `--set`. Each point is a command in a
process of its own, with an empty cache. Of the command and its workers together are measured: processor seconds
(user and system); the peak of their own memory, without programs and pages of mapped files, sampled every 20 ms; and
the bytes that they wrote to the file system, deleted ones too (none where `--folder` is in memory). Slopes are of the
three largest values on log axes, less what the same command takes for 64 rows or images, the line "start", the least
of three runs. A theory of two numbers is a sum of two costs, and the slope lies between.

Tables are mixtures of 500 Gaussians of correlated columns; images are JPEG files of 64 pixels in a tar file, seen at 32
by a small ConvNet. From 100,000 images on, a manifest names one such file again and again. All files are deleted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np

from manifest import make_shard, simulate

matplotlib.use("Agg")
MEBI = 1 << 20
START = {"N": 64, "K": 8}
"""What the smallest job is made of."""
SHARD = 100_000
"""Images of the real shard, at most."""
FLOOR = {"processor s": 0.5, "own MiB": 8.0, "disk MiB": 0.05}
"""What is measured, and below which difference from the start it means nothing."""
WHITEN = """
import sys, numpy as np
from deepcluster.clustering import Whitening
x = np.load(sys.argv[1], mmap_mode="r")
out = np.lib.format.open_memmap(sys.argv[2], "w+", np.float32, x.shape)
Whitening(x.shape[1]).fit(x).transform(x, out=out)
"""


@dataclass(frozen=True)
class Curve:
    """One quantity of one stage.

    Attributes:
        command: what follows `python`.
        base: the value of each quantity that the command has.
        values: of the quantity that varies.
        theory: exponents of processor seconds, memory and files.
    """

    stage: str
    varies: str
    command: str
    base: dict[str, int]
    values: list[int]
    theory: tuple[tuple[float, ...], ...]
    points: dict[int, dict[str, float]] = field(default_factory=dict)


def doubled(first: int) -> list[int]:
    return [first, 2 * first, 4 * first, 8 * first]


ROWS = "-m deepcluster cluster {table} --whiten {whiten} --out {out}.parquet"
KMEANS = ROWS + " --k {K} --iterations {rounds}"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node {processes} "
HIERARCHICAL = ROWS + " --algorithm hierarchical --k {tenth} --iterations 10"
PIC = ROWS + " --algorithm pic"
WHITENING = "-c {code} {table} {out}"
FEATURES = "-m deepcluster features {run} --data {images} --out {out}"
ASSIGN = "-m deepcluster assign {run} --data {images} --out {out}.csv"
TRAIN = "-m deepcluster train deepcluster-convnet --data {images} --out {out} --epochs 1 --batch-size 64 --method.k {K}"
PROCESSES = TRAIN + " --processes {processes}"
KNN = "-m deepcluster evaluate {run} knn --data {images} --out {out}"
TEN = {"N": 100_000, "K": 1000, "d": 128, "whiten": 0, "rounds": 10}
SEARCH, WIDE, PHOTOS = {"N": 25_000, "d": 128, "whiten": 0}, {"N": 20_000, "d": 512}, {"N": 4000}
FLAT, ONE, TWO, UP_TO_ONE = (0.0,), (1.0,), (2.0,), (0.0, 1.0)
CURVES = [
    Curve("k-means", "N", KMEANS, TEN, doubled(100_000), (ONE, UP_TO_ONE, ONE)),
    Curve("k-means", "K", KMEANS, TEN, doubled(2000), (ONE, UP_TO_ONE, FLAT)),
    Curve("k-means", "d", KMEANS, TEN, doubled(128), (ONE, UP_TO_ONE, FLAT)),
    Curve("k-means, first round", "K", KMEANS, TEN | {"rounds": 1}, doubled(2000), (ONE, UP_TO_ONE, FLAT)),
    Curve("k-means", "processes", TORCHRUN + KMEANS, TEN | {"N": 400_000}, [1, 2], (FLAT, UP_TO_ONE, FLAT)),
    Curve("hierarchical, K = N / 10", "N", HIERARCHICAL, SEARCH, doubled(100_000), ((1.0, 1.5), UP_TO_ONE, ONE)),
    Curve("PIC", "N", PIC, SEARCH, doubled(12_500), (TWO, UP_TO_ONE, ONE)),
    Curve("PIC", "d", PIC, SEARCH, doubled(64), (ONE, UP_TO_ONE, FLAT)),
    Curve("whitening", "N", WHITENING, WIDE, doubled(25_000), (ONE, FLAT, ONE)),
    Curve("whitening", "d", WHITENING, WIDE, doubled(256), ((2.0, 3.0), (0.0, 2.0), ONE)),
    Curve("features", "N", FEATURES, PHOTOS, doubled(2000), (ONE, UP_TO_ONE, ONE)),
    Curve("assign", "N", ASSIGN, PHOTOS, doubled(2000), (ONE, UP_TO_ONE, ONE)),
    Curve("training", "N", TRAIN, PHOTOS | {"K": 100}, doubled(1000), (ONE, UP_TO_ONE, UP_TO_ONE)),
    Curve("training", "K", TRAIN, PHOTOS | {"K": 100}, doubled(250), (UP_TO_ONE, UP_TO_ONE, ONE)),
    Curve("training", "processes", PROCESSES, PHOTOS | {"K": 100}, [1, 2], (FLAT, UP_TO_ONE, FLAT)),
    Curve("evaluate knn", "N", KNN, PHOTOS, doubled(5000), ((1.0, 2.0), UP_TO_ONE, UP_TO_ONE)),
]  # fmt: skip


def make_features(path: Path, n: int, d: int) -> None:
    """(n, d) float32 rows of correlated columns in groups, written block by block."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((500, d), dtype=np.float32)
    mixing = (rng.standard_normal((d, d)) / d**0.5 * np.geomspace(1, 0.1, d)).astype(np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    start_of_rows = out.offset
    del out
    with open(path, "r+b") as file:
        file.seek(start_of_rows)
        for start in range(0, n, 20_000):
            count = min(20_000, n - start)
            rows = centers[rng.integers(500, size=count)] + rng.standard_normal((count, d), dtype=np.float32)
            file.write((rows @ mixing).tobytes())


def family(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def memory(pid: int) -> int:
    """Bytes of anonymous memory of all of the family, pages that a fork shares once; 0 after its end."""
    found = 0
    try:
        pids = list(family(pid))
        where, key = ("status", "RssAnon") if len(pids) == 1 else ("smaps_rollup", "Pss_Anon")
        for each in pids:
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{each}/{where}").read_text().splitlines()[1:])
            found += 1024 * int(lines.get(key, "0").split()[0])
    except OSError:  # one of them has just ended
        return 0
    return found


def measured(words: list[str], cache: Path) -> dict[str, float]:
    """What a command takes, by the names of the columns."""
    settings = os.environ | {"DEEPCLUSTER_CACHE": str(cache)}
    running = subprocess.Popen([sys.executable, *words], env=settings, stdout=subprocess.DEVNULL)
    peak = 0
    while True:
        pid, status, usage = os.wait4(running.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, memory(running.pid))
        time.sleep(0.02)
    if status:
        raise SystemExit(f"python {' '.join(words)} failed.")
    seconds = usage.ru_utime + usage.ru_stime
    return dict(zip(FLOOR, (seconds, peak / MEBI, usage.ru_oublock * 512 / MEBI), strict=True))


@dataclass(frozen=True)
class Workshop:
    """A folder with the tables, images and networks that commands need, each made once, and what was measured."""

    folder: Path
    points: Path | None
    known: dict[str, dict[str, float]]

    def table(self, n: int, d: int) -> Path:
        file = self.folder / f"{n}x{d}.npy"
        if not file.exists():
            make_features(file, n, d)
        return file

    def images(self, n: int) -> Path:
        place = self.folder / str(n)
        if not place.exists():
            place.mkdir()
            make_shard(place / "real.tar", min(n, SHARD))
            if n > SHARD:
                simulate(place, n // SHARD, SHARD)
        return place / ("many.json" if n > SHARD else "real.tar")

    def run(self) -> Path:
        if not (self.folder / "run").exists():
            places = {"images": self.images(1000), "K": 10, "out": self.folder / "run"}
            measured([word.format(**places) for word in TRAIN.split()], self.folder / "cache")
        return self.folder / "run"

    def point(self, command: str, sizes: dict[str, int], run: int = 0) -> dict[str, float]:
        """What `command` takes with quantities of these sizes, in one of several runs."""
        key = f"{command} {sorted(sizes.items())} {run}"
        if key not in self.known:
            with tempfile.TemporaryDirectory(dir=self.folder) as name:
                places = {"out": Path(name) / "out", "code": WHITEN, "tenth": sizes["N"] // 10, **sizes}
                if "{table}" in command:
                    places["table"] = self.table(sizes["N"], sizes["d"])
                if "{images}" in command:
                    places["images"] = self.images(sizes["N"])
                if "{run}" in command:
                    places["run"] = self.run()
                self.known[key] = measured([word.format(**places) for word in command.split()], Path(name) / "cache")
            if self.points:
                self.points.write_text(json.dumps(self.known, indent=1))
        return self.known[key]

    def start(self, command: str, sizes: dict[str, int]) -> dict[str, float]:
        """The least that the smallest job of `command` takes."""
        sizes = sizes | {name: size for name, size in START.items() if name in sizes}
        runs = [self.point(command, sizes, run) for run in range(3)]
        return {name: min(found[name] for found in runs) for name in FLOOR}


def measure(curve: Curve, values: list[int], changed: dict[str, int], workshop: Workshop) -> None:
    """Fill in the points of the curve, less the start, and print what was measured and how it grows."""
    base = curve.base | {name: size for name, size in changed.items() if name in curve.base}
    others = ", ".join(f"{name} = {size:,}" for name, size in base.items() if name != curve.varies)
    print(f"\n{curve.stage}: {curve.varies}" + (f" ({others})" if others else ""), flush=True)
    told: dict[str, float] = {}
    for value in sorted(values):
        start = workshop.start(curve.command, base | ({"processes": value} if curve.varies == "processes" else {}))
        if start != told:
            show("start", told := start)
        found = workshop.point(curve.command, base | {curve.varies: value})
        show(f"{value:,}", found)
        curve.points[value] = {name: found[name] - start[name] for name in FLOOR}
    for (name, _), theory in zip(FLOOR.items(), curve.theory, strict=True):
        expected = " to ".join(f"{each:g}" for each in theory)
        print(f"  slope of {name}: {slope(curve, name)}, in theory {expected}", flush=True)


def show(title: str, found: dict[str, float]) -> None:
    print(f"  {title:>10}" + "".join(f"{value:>12,.1f} {name}" for name, value in found.items()), flush=True)


def series(curve: Curve, name: str) -> list[tuple[int, float]]:
    """Values and measured differences of one column, where they mean something."""
    return [(value, found[name]) for value, found in curve.points.items() if found[name] >= FLOOR[name]]


def slope(curve: Curve, name: str) -> str:
    """The slope of the three largest values on log axes."""
    points = np.log(series(curve, name)[-3:])
    return f"{np.polyfit(*points.T, 1)[0]:.2f}" if len(points) > 1 else "none, less than can be told from the start"


def draw(curves: list[Curve], file: Path) -> None:
    """A panel for each curve, log axes; thin lines have the slope of the theory, the larger one of a sum."""
    from matplotlib import pyplot as plt

    colors = dict(zip(FLOOR, ("#1f5fa8", "#c8501e", "#3a8a4a"), strict=True))
    width = min(4, len(curves))
    height = math.ceil(len(curves) / width)
    figure, axes = plt.subplots(
        height, width, figsize=(2.7 * width, 2.3 * height + 0.4), constrained_layout=True, squeeze=False
    )
    for axis, curve in zip(axes.flat, curves, strict=False):
        for (name, color), theory in zip(colors.items(), curve.theory, strict=True):
            points = series(curve, name)
            if not points:
                continue
            axis.loglog(*zip(*points, strict=True), "o-", color=color, markersize=4, linewidth=1.6)
            values = np.array(sorted(curve.points), float)
            axis.loglog(values, points[-1][1] * (values / points[-1][0]) ** max(theory), color=color, linewidth=0.6)
        axis.set_title(f"{curve.stage}: {curve.varies}", fontsize=9)
        axis.set_xticks(values := sorted(curve.points), [f"{value:,}" for value in values], fontsize=7)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    handles = [plt.Line2D([], [], color=color, marker="o", markersize=4, label=name) for name, color in colors.items()]
    handles.append(plt.Line2D([], [], color="gray", linewidth=0.6, label="slope of the theory"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages, quantities = (list(dict.fromkeys(getattr(each, name) for each in CURVES)) for name in ("stage", "varies"))
    parser.add_argument("--only", nargs="+", choices=stages, default=stages, metavar="STAGE", help=", ".join(stages))
    parser.add_argument("--vary", nargs="+", choices=quantities, default=quantities, help="N: rows or images")
    parser.add_argument("--values", type=int, nargs="+", help="of the quantity that varies, in place of the default")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=SIZE", help="of those that do not, such as d=256")
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's temporary folder")
    parser.add_argument("--points", type=Path, help="keep what is measured in this file; measure what it lacks")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    chosen = parser.parse_args()
    changed = {name: int(size) for name, _, size in (each.partition("=") for each in chosen.set)}
    curves = [each for each in CURVES if each.stage in chosen.only and each.varies in chosen.vary]
    for unknown in sorted(set(changed).difference(*(each.base for each in curves))):
        parser.error(f"argument --set: no stage chosen here has {unknown}")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        known = json.loads(chosen.points.read_text()) if chosen.points and chosen.points.exists() else {}
        workshop = Workshop(Path(name), chosen.points, known)
        for curve in curves:
            measure(curve, chosen.values or curve.values, changed, workshop)
            for table in Path(name).glob("*.npy"):
                table.unlink()
    if chosen.picture:
        draw(curves, chosen.picture)


if __name__ == "__main__":
    main()

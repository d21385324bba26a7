"""Peak memory and processor time of commands while rows and images become more: by default up to a million rows.

    python benchmarks/memory.py --picture memory.png
    python benchmarks/memory.py --rows 1000000 --only hierarchical     # one point
    OMP_NUM_THREADS=1 python benchmarks/memory.py --rows 10000 --images 1000

Feature tables are mixtures of 500 Gaussians of correlated columns; images are a manifest that names one shard again and
again, described by a ConvNet that was trained for an epoch. Each command has a process of its own. Memory is sampled
every 10 ms, of the command and its workers together: anonymous (their own), and resident, which also counts programs
and pages of mapped files. All files are deleted afterwards.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np

from manifest import make_shard, simulate

matplotlib.use("Agg")
MEBI = 1 << 20
COMMANDS = {
    "k-means": "cluster {table} --k {k} --out {out}.parquet",
    "hierarchical": "cluster {table} --algorithm hierarchical --k {tenth} --out {out}.parquet",
    "features": "features {run} --data {manifest} --out {out}",
    "assign": "assign {run} --data {manifest} --out {out}.parquet",
}
"""Title -> what follows `deepcluster`."""
SHARD = 1000
"""Images of the real shard, at most."""


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


def memory(pid: int) -> np.ndarray:
    """Bytes of anonymous and of resident memory, of all of the family; 0 after its end."""
    found = np.zeros(2, np.int64)
    try:
        for each in family(pid):
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines())
            found += [1024 * int(lines.get(key, "0").split()[0]) for key in ("RssAnon", "VmRSS")]
    except OSError:  # one of them has just ended
        pass
    return found


def measured(words: list[str], folder: Path) -> tuple[int, int, float]:
    """Peak anonymous and resident bytes, and processor seconds, of a command."""
    settings = os.environ | {"DEEPCLUSTER_CACHE": str(folder / "cache")}
    running = subprocess.Popen([sys.executable, "-m", "deepcluster", *words], env=settings, stdout=subprocess.DEVNULL)
    peak = np.zeros(2, np.int64)
    while True:
        pid, status, usage = os.wait4(running.pid, os.WNOHANG)
        if pid:
            break
        peak = np.maximum(peak, memory(running.pid))
        time.sleep(0.01)
    if status:
        raise SystemExit(f"deepcluster {' '.join(words)} failed.")
    return int(peak[0]), int(peak[1]), usage.ru_utime + usage.ru_stime


def draw(points: dict[str, list[tuple[int, int]]], file: Path) -> None:
    """Anonymous memory against rows or images; those on a logarithmic axis."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4), constrained_layout=True)
    for number, (title, row) in enumerate(points.items()):  # lines may lie upon each other
        style = {"marker": "os"[number % 2], "markersize": 7 - 3 * (number % 2), "linestyle": ("-", "--")[number % 2]}
        axis.semilogx(*zip(*row, strict=True), **style, label=title)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("rows or images")
    axis.set_ylabel("peak memory of its own (MiB)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of tables")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=1000, help="of k-means; hierarchical has one cluster for ten rows")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's temporary folder")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    chosen = parser.parse_args()
    points: dict[str, list[tuple[int, int]]] = {}
    print(f"{'':<14}{'number':>12}{'own MiB':>10}{'resident':>10}{'processor s':>13}")
    for tables, numbers in ((True, chosen.rows), (False, chosen.images)):
        titles = [title for title in chosen.only if ("{table}" in COMMANDS[title]) == tables]
        for number in sorted(numbers) if titles else ():
            with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
                folder = Path(name)
                places = {"k": min(chosen.k, number // 10), "tenth": number // 10, "table": folder / "table.npy"}
                if tables:
                    make_features(folder / "table.npy", number, chosen.dim)
                else:
                    each = min(SHARD, number)
                    make_shard(folder / "real.tar", each)
                    places |= {"manifest": simulate(folder, number // each, each), "run": folder / "run"}
                    train = f"train deepcluster-convnet --data {folder}/real.tar --out {folder}/run --epochs 1"
                    measured(f"{train} --method.k 10 --batch-size 32".split(), folder)
                for title in titles:
                    words = COMMANDS[title].format(out=folder / title, **places).split()
                    own, resident, seconds = measured(words, folder)
                    points.setdefault(title, []).append((number, own // MEBI))
                    print(
                        f"{title:<14}{number:>12,}{own / MEBI:>10,.0f}{resident / MEBI:>10,.0f}{seconds:>13,.0f}",
                        flush=True,
                    )
    if chosen.picture:
        draw(points, chosen.picture)


if __name__ == "__main__":
    main()

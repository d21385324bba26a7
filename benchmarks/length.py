"""What thousands of epochs cost a process: memory, open files, threads and work an epoch must not grow.

    python benchmarks/length.py [--epochs 5000] [--method deepcluster]

One `deepcluster train` on 64 images of 16 px with a tiny ConvNet is watched from outside. A row is of a twentieth of
the run: processor time, since other work on the machine must not count, and medians. Growth is told from the second
row to the last: the first holds what is loaded and set up once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

PARTS = 20
TINY = (
    "--method.k 4 --batch-size 64 --image-size 16 --device cpu --optimizer.schedule constant --save-minutes 1000"
    " --backbone.options.widths 4 8"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5000)
    parser.add_argument("--method", default="deepcluster")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), np.uint8))
        epochs = args.epochs
        samples = watch(folder, args.method, epochs)
        sizes = {file: (folder / "run" / file).stat().st_size for file in ("metrics.jsonl", "checkpoints/last.ckpt")}
    each = max(1, epochs // PARTS)
    rows = []
    for start in range(0, epochs - each + 1, each):
        part = samples[start : start + each + 1]
        medians = [statistics.median(values) for values in list(zip(*part, strict=True))[1:]]
        rows.append([(part[-1][0] - part[0][0]) / each, *medians])
    print("  epoch   ms/epoch   memory MB  open files  threads")
    for number, (seconds, memory, files, threads) in enumerate(rows, 1):
        print(f"{number * each:7,} {1000 * seconds:10.1f} {memory / 1e6:11.1f} {files:11.0f} {threads:8.0f}")
    first, last = rows[min(1, len(rows) - 1)], rows[-1]
    names = ("processor time an epoch", "memory", "open files", "threads")
    growth = (f"{name} {100 * (new / old - 1):+.1f} %" for name, old, new in zip(names, first, last, strict=True))
    print("growth: " + ", ".join(growth))
    print("sizes: " + ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()))


def watch(folder: Path, method: str, epochs: int) -> list[tuple[float, float, float, float]]:
    """Seconds of processor, bytes of memory, open files and threads at the start and the end of each epoch."""
    words = [f"tiny-{method}", "--data", f"{folder / 'images.npy'}", "--out", f"{folder / 'run'}", *TINY.split()]
    command = [sys.executable, "-m", "deepcluster", "train", *words, "--epochs", str(epochs)]
    samples = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        process = psutil.Process(child.pid)
        for line in child.stdout:
            if line.startswith("epoch "):
                times = process.cpu_times()
                seconds = times.user + times.system
                samples.append((seconds, process.memory_info().rss, process.num_fds(), process.num_threads()))
    assert child.returncode == 0 and len(samples) == epochs
    return [samples[0], *samples]


if __name__ == "__main__":
    main()

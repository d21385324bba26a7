"""What `deepcluster plan --measure` estimates, compared with real runs on this machine.

    python benchmarks/plan.py                     # on made-up images, about ten minutes
    python benchmarks/plan.py --data photos/ --processes 1 2

Short training runs by one process and by two, started anew each, so that the peak of resident memory is their own.
Printed are estimate / real, for the seconds of the last epoch and for the peak of memory of the first process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.config import TrainRun, override
from deepcluster.data.open import open_images
from deepcluster.distributed import is_secondary_process
from deepcluster.estimate.estimate import estimate
from deepcluster.estimate.job import Job
from deepcluster.presets import find_preset

PRESETS = {"deepcluster-convnet": 200, "deepercluster-convnet": 200, "odc-convnet": 200, "tiny-swav": 200}
"""Name -> clusters."""


def settings(name: str, epochs: int, processes: int) -> TrainRun:
    """A preset's short run."""
    own = {"method.k": PRESETS[name], "epochs": epochs, "keep_every": 0, "device": "cpu", "watch": "none"}
    return override(find_preset(name).run, own | {"processes": processes})


def real(name: str, data: str, epochs: int, processes: int, folder: str) -> dict[str, float]:
    """Seconds of the last epoch of a run, and the peak of memory of its first process."""
    from deepcluster.engine import train
    from deepcluster.engine.log import Screen

    run = train.train(settings(name, epochs, processes), data, Path(folder), screen=Screen(quiet=True))
    rows = run.metrics
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    parts = ("train", "features", "cluster")
    # not every epoch clusters, and the first one is slower
    last = {part: [row[f"seconds_{part}"] for row in rows if row[f"seconds_{part}"] > 0] for part in parts}
    return {part: took[-1] if took else 0.0 for part, took in last.items()} | {"bytes": 1024 * float(peak.split()[1])}


def compare(name: str, data: str, epochs: int, processes: int) -> str:
    """One line: estimate / real."""
    with tempfile.TemporaryDirectory() as folder:
        work = [name, data, epochs, processes, f"{folder}/run"]
        command = [sys.executable, __file__, "--process", json.dumps(work)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    took: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    source, run = open_images(data), settings(name, epochs, processes)
    began = time.perf_counter()
    found = estimate(Job(run, len(source), processes, processes, "cpu"), measure=True, data=source)
    seconds = time.perf_counter() - began
    stages: dict[str, Any] = {stage.name: stage for stage in found.stages}
    step = stages["training steps"]
    told = {"train": step.seconds * step.times / epochs, "bytes": found.peak["memory"][0]}
    told |= {"features": stages["features of all images"].seconds, "cluster": stages["clustering"].seconds}
    ratios = (f"{told[each] / took[each]:10.2f}" if took[each] > 0.05 else f"{'-':>10}" for each in took)
    return f"{name:<24}{processes:>10}" + "".join(ratios) + f"{seconds:10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="images; without them 32 px of noise")
    parser.add_argument("--images", type=int, default=8000, help="how much noise")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--process", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.process:
        told = json.dumps(real(*json.loads(chosen.process)))
        if not is_secondary_process():
            print(told)
        return
    names = ("processes", "train", "features", "cluster", "memory", "seconds")
    print(f"{'estimate / real':<24}" + "".join(f"{name:>10}" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        data = chosen.data or f"{folder}/noise.npy"
        if not chosen.data:
            np.save(data, np.random.default_rng(0).integers(0, 255, (chosen.images, 32, 32, 3), np.uint8))
        for name in chosen.presets:
            for processes in chosen.processes:
                print(compare(name, data, chosen.epochs, processes), flush=True)


if __name__ == "__main__":
    main()

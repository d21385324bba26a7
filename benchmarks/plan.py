"""What `deepcluster plan --measure` estimates, compared with real runs on this machine.

    python benchmarks/plan.py                     # a few minutes
    python benchmarks/plan.py --images 1000

Short training runs on made-up images, each in a process of its own, so that its peak of resident memory is its own.
Printed are estimate / real, for the seconds of an epoch and for the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.config import TrainRun, override
from deepcluster.estimate.estimate import Job, estimate
from deepcluster.presets import find_preset

PRESETS = {"deepcluster-convnet": 200, "deepercluster-convnet": 200, "odc-convnet": 200}
"""Name -> clusters."""


def settings(name: str, epochs: int) -> TrainRun:
    """A preset's short run."""
    own = {"method.k": PRESETS[name], "epochs": epochs, "keep_every": 0, "device": "cpu", "watch": "none"}
    return override(find_preset(name).run, own)


def real(name: str, images: int, epochs: int) -> dict[str, float]:
    """Seconds of the last epoch of a run, and the peak of memory of its process."""
    from deepcluster.engine import train
    from deepcluster.engine.log import Screen

    made_up = np.random.default_rng(0).integers(0, 255, (images, 32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = train.train(settings(name, epochs), made_up, Path(folder) / "run", screen=Screen(quiet=True))
        last = run.metrics[-1]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    parts = ("train", "features", "cluster")
    return {part: last[f"seconds_{part}"] for part in parts} | {"bytes": 1024 * float(peak.split()[1])}


def compare(name: str, images: int, epochs: int) -> str:
    """One line: estimate / real."""
    command = [sys.executable, __file__, "--process", json.dumps([name, images, epochs])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    run = settings(name, epochs)
    found = estimate(Job(run, images, 1, 1, "cpu"), measure=True)
    stages: dict[str, Any] = {stage.name: stage for stage in found.stages}
    step = stages["training steps"]
    told = {"train": step.seconds * step.times / epochs, "bytes": found.peak["memory"][0]}
    told |= {"features": stages["features of all images"].seconds, "cluster": stages["clustering"].seconds}
    ratios = (f"{told[each] / took[each]:10.2f}" if took[each] > 0.01 else f"{'-':>10}" for each in took)
    return f"{name:<24}" + "".join(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.process:
        print(json.dumps(real(*json.loads(chosen.process))))
        return
    print(f"{'estimate / real':<24}" + "".join(f"{name:>10}" for name in ("train", "features", "cluster", "memory")))
    for name in PRESETS:
        print(compare(name, chosen.images, chosen.epochs), flush=True)


if __name__ == "__main__":
    main()

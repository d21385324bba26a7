"""What `deepcluster plan` foretells beside what a run really takes, on this machine.

    python benchmarks/plan.py --measure           # take the machine's constants first (a minute or two)
    python benchmarks/plan.py --quick             # 10^4 and 10^5 rows only

Whitening, k-means and two-level k-means of 10^4 to 10^6 made-up features, each on 1 and on 2 processes with one thread
each, then short training runs on made-up images. Each case runs in fresh processes, so that its peak of resident
memory is its own; the least of `--repeats` runs counts. Printed are foretold / real, for seconds and for bytes.
`--cpu-time` counts each process's own time on a core in place of the clock's, for a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from deepcluster.config import override
from deepcluster.distributed import ProcessGroup
from deepcluster.plan.constants import Constants, load, save
from deepcluster.plan.job import Job, job_of
from deepcluster.plan.measure import made_up, measure, resident
from deepcluster.plan.memory import ALWAYS, GROUPING, memory
from deepcluster.plan.plan import make_plan
from deepcluster.plan.stages import Wire, grouping, whitening
from deepcluster.presets import find_preset

PRESET = "deepcluster-convnet"
CASES = (  # rows, width of the features, width when whitened, clusters, super-clusters, rounds
    (10_000, 256, 128, 500, 1, 10),
    (100_000, 256, 128, 1_000, 1, 10),
    (100_000, 256, 256, 2_000, 4, 10),
    (100_000, 256, 256, 200, 1, 10),
    (1_000_000, 256, 128, 1_000, 1, 5),
)
TRAINED = ((4_000, 50), (8_000, 100))  # images and clusters


def job(rows: int, dim: int, width: int, k: int, supers: int, rounds: int, processes: int) -> Job:
    """The clustering of a run with such features."""
    preset, own = PRESET, {"method.clusterings": 1}
    if supers > 1:
        preset, own = "deepercluster-convnet", {"method.super_clusters": supers}
    own |= {"method.k": k, "method.whiten": width, "method.iterations": rounds, "processes": processes}
    made = job_of(override(find_preset(preset).run, own), images=rows, device="cpu")
    return replace(made, network=replace(made.network, dim=dim), width=width)


def foretold(made: Job, constants: Constants, base: float) -> dict[str, float]:
    """Seconds of the stages and peak bytes of a process that begins with `base`."""
    plan = make_plan(made, constants)
    wire = Wire(made.processes, made.per_machine, plan.constants)
    held = [item for item in memory(made, base) if item.when == GROUPING or item.name == "the process itself"]
    assert all(item.when in (ALWAYS, GROUPING) for item in held)
    told = sum(item.bytes for item in held if item.name != "last labels, to compare")
    first = whitening(made, plan.constants, wire, 1)
    return {"whitening": first.seconds, "k-means": grouping(made, plan.constants, wire, 1).seconds, "bytes": told}


def real(rank: int, case: dict[str, Any]) -> None:
    """One process of a clustering, as the methods do it."""
    from deepcluster.clustering.hierarchical import HierarchicalKMeans
    from deepcluster.clustering.kmeans import KMeans
    from deepcluster.clustering.whitening import Whitening
    from deepcluster.methods.base import scatter_to_dataset

    group, clock = ProcessGroup(rank, case["processes"]), time.process_time if case["cpu_time"] else time.perf_counter
    first, last = group.row_range(case["rows"])
    features = made_up(case["rows"], case["dim"])[first:last].copy()
    Whitening(2).fit(features[:300, :8])  # loads what is loaded once
    own = features.nbytes
    base = resident() - own
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on: making rows up takes more than clustering
    wait(group)
    began = clock()
    z = Whitening(case["width"], group=group).fit(features).transform(features)
    wait(group)
    middle = clock()
    if case["supers"] > 1:
        tree = HierarchicalKMeans(
            case["k"], branches=(case["supers"],), max_iter=case["rounds"], random_state=0, group=group
        ).fit(z)
        labels, centroids = tree.labels_, tree.levels_[-1]
    else:
        kmeans = KMeans(case["k"], max_iter=case["rounds"], random_state=0, group=group).fit(z)
        labels, centroids = kmeans.labels_, kmeans.cluster_centers_
    index = np.arange(first, last)
    scatter_to_dataset(case["rows"], index, z, np.asarray(labels), torch.as_tensor(centroids), group)
    wait(group)
    done = clock()
    if rank == 0:
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        found = {"whitening": middle - began, "k-means": done - middle, "bytes": float(peak.split()[1]) * 1024}
        print(json.dumps(found | {"base": base}), flush=True)


def wait(group: ProcessGroup) -> None:
    """Until all processes are here."""
    if not group.is_single:
        dist.barrier()


def trained(rank: int, case: dict[str, Any]) -> None:
    """One process of a training run; its metrics say what its stages took."""
    from deepcluster.engine import train
    from deepcluster.engine.log import Screen

    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (case["images"], 32, 32, 3), dtype=np.uint8)
    out = case["out"]
    run = train.train(training(case), images, out, screen=Screen(quiet=True), overwrite=True)
    if rank == 0:
        # the first epoch warms up
        last = run.metrics[-1]
        print(json.dumps({name: last[f"seconds_{name}"] for name in ("train", "features", "cluster")}), flush=True)


def training(case: dict[str, Any]) -> Any:
    """Settings of a training run."""
    own = {"k": case["k"], "epochs": 2, "keep_every": 0, "device": "cpu", "processes": case["processes"]}
    return override(find_preset(PRESET).run, own | {"reassign": 1.0, "watch": "none"})


def one_process(rank: int, port: int, kind: str, case: dict[str, Any]) -> None:
    """Joins the others and works."""
    torch.set_num_threads(1)
    size = case["processes"]
    if size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
        os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size), GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", rank=rank, world_size=size)
    {"real": real, "trained": trained}[kind](rank, case)
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def start(kind: str, case: dict[str, Any]) -> dict[str, float]:
    """What the first of fresh processes says."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    command = [sys.executable, __file__, "--process"]
    asked_for = [json.dumps([rank, port, kind, case]) for rank in range(case["processes"])]
    running = [subprocess.Popen([*command, each], stdout=subprocess.PIPE, text=True) for each in asked_for]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{kind} of {case} failed")
    return dict(json.loads(said[0].strip().splitlines()[-1]))


def least(work: Callable[[], dict[str, float]], repeats: int) -> dict[str, float]:
    """The least of each figure."""
    found = [work() for _ in range(repeats)]
    return {name: min(each[name] for each in found) for name in found[0]}


def clustering(chosen: argparse.Namespace, constants: Constants) -> None:
    """Prints the clustering cases."""
    print("     rows    D    P     K  m   R  W   whitening s (ratio)    k-means s (ratio)         MB (ratio)")
    for rows, dim, width, k, supers, rounds in CASES:
        if (chosen.quick and rows > 100_000) or (chosen.rows and rows != chosen.rows):
            continue
        for processes in chosen.processes:
            shape = {"rows": rows, "dim": dim, "width": width, "k": k, "supers": supers, "rounds": rounds}
            case = shape | {"processes": processes, "cpu_time": chosen.cpu_time}
            took = least(lambda case=case: start("real", case), chosen.repeats)
            told = foretold(job(rows, dim, width, k, supers, rounds, processes), constants, took["base"])
            cells = [f"{took[n]:8.2f} ({told[n] / took[n]:.2f})" for n in ("whitening", "k-means")]
            cells.append(f"{took['bytes'] / 1e6:8.0f} ({told['bytes'] / took['bytes']:.2f})")
            print(
                f"{rows:>9} {dim:>4} {width:>4} {k:>5} {supers:>2} {rounds:>3} {processes:>2}   "
                + "   ".join(f"{cell:>18}" for cell in cells),
                flush=True,
            )


def trainings(chosen: argparse.Namespace, constants: Constants) -> None:
    """Prints the training cases."""
    print("images     K  W     train s (ratio)   features s (ratio)    cluster s (ratio)")
    for images, k in TRAINED:
        for processes in chosen.processes:
            with tempfile.TemporaryDirectory() as folder:
                case = {"images": images, "k": k, "processes": processes, "out": f"{folder}/run"}
                took = least(lambda case=case: start("trained", case), chosen.repeats)
            plan = make_plan(job_of(training(case), images=images, device="cpu"), constants)
            seconds = {stage.name: stage.seconds for stage in plan.stages}
            told = {"train": seconds["training"], "features": seconds["features"]}
            told["cluster"] = seconds["whitening"] + seconds["k-means"]
            cells = [f"{took[n]:8.2f} ({told[n] / took[n]:.2f})" for n in ("train", "features", "cluster")]
            print(f"{images:>6} {k:>5} {processes:>2}   " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="take and keep the machine's constants first")
    parser.add_argument("--quick", action="store_true", help="leave 10^6 rows out")
    parser.add_argument("--rows", type=int, help="only the cases of so many rows")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count time on a core, not the clock's")
    parser.add_argument("--only", choices=("clustering", "training"))
    parser.add_argument("--process", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.process:
        one_process(*json.loads(chosen.process))
        return
    torch.set_num_threads(1)
    if chosen.measure:
        clock = time.process_time if chosen.cpu_time else time.perf_counter
        save(measure(override(find_preset(PRESET).run, {"device": "cpu"}), print, clock))
    constants = load("cpu")
    if constants is None:
        raise SystemExit("measure first: --measure")
    if chosen.only != "training":
        clustering(chosen, constants)
    if chosen.only != "clustering":
        trainings(chosen, constants)


if __name__ == "__main__":
    main()

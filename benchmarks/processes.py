"""The clustering stage on 1 against 2 processes of one thread each: whitening with k-means, and k-means in levels.

    python benchmarks/processes.py                       # 200,000 x 128, K = 2,000, 10 rounds
    python benchmarks/processes.py --rows 20000 --k 200  # quicker

Processes are started by torch.multiprocessing on the loopback network and clustering is timed between two meetings of
all of them. One process runs in a process of its own too. Beside them, as the bound, as many processes cluster their
shares apart, each alone with its rows and telling nobody anything: cores that share caches and memory do not double
the speed even then. Runs alternate, and the ratio is that of the medians. On a machine that does other work besides,
or with fewer free cores than processes, the ratio says little.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from deepcluster.clustering import HierarchicalKMeans, KMeans, Whitening
from deepcluster.distributed import ProcessGroup

STAGES = ("whitening and k-means", "hierarchical k-means")


def make_features(file: Path, n: int, d: int, groups: int) -> None:
    """(n, d) float32 rows around `groups` centers, correlated."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((groups, d), dtype=np.float32)
    x = centers[rng.integers(groups, size=n)] + 0.8 * rng.standard_normal((n, d), dtype=np.float32)
    np.save(file, x @ (rng.standard_normal((d, d), dtype=np.float32) * np.geomspace(1, 0.2, d, dtype=np.float32)))


def work(rank: int, size: int, port: int, folder: str, chosen: argparse.Namespace, apart: bool) -> None:
    """Cluster this process's share, with the others or `apart` from them, and leave its labels and seconds."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=size)
    group = ProcessGroup(rank, size)
    first, last = group.row_range(chosen.rows)
    x = np.load(Path(folder) / "x.npy", mmap_mode="r")[first:last].copy()
    group = ProcessGroup() if apart else group
    white = x
    for stage in STAGES:
        dist.barrier()
        begun = time.perf_counter()
        if stage == STAGES[0]:
            white = Whitening(min(chosen.dim, 128), group=group).fit_transform(x)
            run = KMeans(chosen.k, max_iter=chosen.rounds, random_state=0, group=group).fit(white)
            labels = run.labels_
        else:
            tree = HierarchicalKMeans(
                chosen.k, branches=(chosen.branches,), max_iter=chosen.rounds, random_state=0, group=group
            )
            labels = tree.fit_predict(white)
        dist.barrier()
        seconds = time.perf_counter() - begun
        name = f"{STAGES.index(stage)}-{-size if apart else size}-{rank}.npz"
        np.savez(Path(folder) / name, labels=labels, seconds=seconds)
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=2000)
    parser.add_argument("--branches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sizes = (1, chosen.processes, -chosen.processes)  # those apart are written as a negative number
    seconds: dict[tuple[int, int], list[float]] = {(stage, size): [] for stage in range(len(STAGES)) for size in sizes}
    equal = [True] * len(STAGES)
    with tempfile.TemporaryDirectory() as folder:
        make_features(Path(folder) / "x.npy", chosen.rows, chosen.dim, chosen.k)
        for _ in range(chosen.repeats):
            for size in sizes:
                told = (abs(size), free_port(), folder, chosen, size < 0)
                mp.spawn(work, told, nprocs=abs(size), join=True)
            for stage in range(len(STAGES)):
                labels = []
                for size in sizes:
                    found = [np.load(Path(folder) / f"{stage}-{size}-{rank}.npz") for rank in range(abs(size))]
                    labels.append(np.concatenate([each["labels"] for each in found]))
                    seconds[stage, size].append(max(float(each["seconds"]) for each in found))
                equal[stage] &= bool(np.array_equal(*labels[:2]))
    print(f"{chosen.rows} x {chosen.dim}, K = {chosen.k}, {chosen.rounds} rounds, one thread a process")
    for stage, name in enumerate(STAGES):
        one, several, apart = (statistics.median(seconds[stage, size]) for size in sizes)
        pairs = [a / b for a, b in zip(seconds[stage, 1], seconds[stage, chosen.processes], strict=True)]
        same = "equal" if equal[stage] else "DIFFERENT"
        print(
            f"{name}: 1 process {one:.2f} s, {chosen.processes} processes {several:.2f} s;"
            f" {one / several:.2f} times as fast (pairs {min(pairs):.2f}-{max(pairs):.2f}),"
            f" apart {one / apart:.2f}; assignments {same}"
        )


if __name__ == "__main__":
    main()

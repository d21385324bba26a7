"""k-means here beside its peers and its bound: same rows, same number of rounds, same threads.

    python benchmarks/kmeans.py                      # 50k x 256, k = 1000
    python benchmarks/kmeans.py 10000x64x10 200000x128x10000
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/kmeans.py    # as without AVX-512
    python benchmarks/kmeans.py 1000000x256x1000 --device cuda

Each size is run on structured rows (whitened, L2-normalized features of CIFAR-10 by an untrained network where the
images are at hand and there are 50,000 x 256 rows, else a mixture of Gaussians) and on rows without structure
(normalized Gaussian noise, the worst case). The peers are faiss, from the same start, and superkmeans (pip install
superkmeans), from its own; on a GPU faiss where it is built for one, flash-kmeans and cuVS, from the same start. The
bound is the time of the products of all rows and centroids in each round. Runs alternate, so that whatever else the
machine does falls on all; printed are medians, and objectives as parts of the peers'. Tables come from arrays in memory
and results go there: on a GPU the way there and back is part of the time, and a first run, which compiles, is not.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.features.product import blas, multiply


def noise(n: int, d: int, seed: int = 0) -> np.ndarray:
    """(n, d) unit rows in every direction alike."""
    x = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def mixture(n: int, d: int, groups: int, seed: int = 0) -> np.ndarray:
    """(n, d) unit rows in groups of unequal size and width."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((groups, d), dtype=np.float32)
    share = rng.dirichlet(np.full(groups, 2.0))
    group = rng.choice(groups, n, p=share)
    width = rng.uniform(0.5, 1.5, groups).astype(np.float32)
    x = centers[group] + width[group, None] * rng.standard_normal((n, d), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cifar_features(n: int, d: int) -> np.ndarray | None:
    """(n, d) whitened, normalized features of the first n CIFAR-10 images; None where they are absent."""
    from PIL import Image

    named = os.environ.get("DEEPCLUSTER_TEST_DATA")
    folder = (Path(named) if named else Path(__file__).parents[2] / "shared" / "data") / "cifar10"
    pixels: list[np.ndarray] = []
    for shard in sorted(folder.glob("train-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if len(pixels) < n and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    pixels.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
    if len(pixels) < n:
        return None
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for wide, narrow in ((64, 3), (128, 64), (256, 128)):
        layers += [torch.nn.Conv2d(narrow, wide, 3, padding=1), torch.nn.BatchNorm2d(wide), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool2d(2)]
    network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    features = []
    with torch.no_grad():  # in training mode: batch statistics stand in for trained ones
        for part in images.split(500):
            features.append(network((part.float() / 255 - 0.45) / 0.25))
    return Whitening(d).fit_transform(torch.cat(features).numpy())


Run = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Clusters the rows: (K, D) centroids and (N,) labels."""


def compare(
    name: str, x: np.ndarray, k: int, rounds: int, repeats: int, precision: str, tol: float, device: str
) -> None:
    """One line of times and objectives for the rows x (N, D)."""
    start = x[np.random.default_rng(1).permutation(len(x))[:k]]
    settings: dict[str, Any] = {"max_iter": rounds, "tol": tol, "precision": precision, "device": device}

    def ours() -> tuple[np.ndarray, np.ndarray]:
        run = KMeans(k, init=start, random_state=0, **settings).fit(x)
        return run.cluster_centers_, run.labels_

    peers, absent = (peers_on_cpu if device == "cpu" else peers_on_gpu)(x, start, rounds)
    runs: dict[str, Run] = {"ours": ours, **peers}
    seconds: dict[str, list[float]] = {who: [] for who in [*runs, "bound"]}
    objective: dict[str, float] = {}
    for repeat in range(repeats if device == "cpu" else repeats + 1):
        for who, run in runs.items():
            begun = time.perf_counter()
            found = run()
            seconds[who].append(time.perf_counter() - begun)
            objective[who] = objective_of(x, *found)
        seconds["bound"].append(bound(x, start, rounds, device))
        if repeat == 0 and device != "cpu":
            seconds = {who: [] for who in seconds}  # it compiled, and found its memory
    median = {who: statistics.median(each) for who, each in seconds.items()}
    print(f"{name:<28} N={len(x)} D={x.shape[1]} k={k}: ours {median['ours']:.3f} s", end="")
    for who in [who for who in seconds if who != "ours"]:
        part = "" if who == "bound" else f", objective ours / {who} {objective['ours'] / objective[who]:.5f}"
        print(f"; {who} {median[who]:.3f} s ({median[who] / median['ours']:.2f} times ours{part})", end="")
    print("".join(f"; {who} not installed" for who in absent), flush=True)


def bound(x: np.ndarray, centroids: np.ndarray, rounds: int, device: str) -> float:
    """Seconds of the products of `rounds` rounds, and of the last assignment; in float32."""
    rows, columns = torch.from_numpy(x).to(device), torch.from_numpy(centroids).T.contiguous().to(device)
    step = 4096 if device == "cpu" else max(1, (1 << 28) // len(centroids))
    out = torch.empty(step, len(centroids), device=device)
    with blas().limit(limits=torch.get_num_threads()):
        wait(device)
        begun = time.perf_counter()
        for part in rows.split(step):
            if device == "cpu":
                multiply(part, columns, out[: len(part)])
            else:
                torch.mm(part, columns, out=out[: len(part)])
        wait(device)
        return (time.perf_counter() - begun) * (rounds + 1)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def peers_on_cpu(x: np.ndarray, start: np.ndarray, rounds: int) -> tuple[dict[str, Run], list[str]]:
    """The peers that are there, by name, and the names of the others."""
    runs: dict[str, Run] = {"faiss": lambda: faiss_run(x, start, rounds, gpu=False)}
    if find_spec("superkmeans") is None:
        return runs, ["superkmeans"]
    return {**runs, "superkmeans": lambda: superkmeans_run(x, len(start), rounds)}, []


def peers_on_gpu(x: np.ndarray, start: np.ndarray, rounds: int) -> tuple[dict[str, Run], list[str]]:
    """The peers that are there, by name, and the names of the others."""
    import faiss

    runs: dict[str, tuple[bool, Run]] = {
        "faiss-gpu": (faiss.get_num_gpus() > 0, lambda: faiss_run(x, start, rounds, gpu=True)),
        "flash-kmeans": (find_spec("flash_kmeans") is not None, lambda: flash_run(x, start, rounds)),
        "cuVS": (find_spec("cuvs") is not None, lambda: cuvs_run(x, start, rounds)),
    }
    return {who: run for who, (there, run) in runs.items() if there}, [who for who in runs if not runs[who][0]]


def faiss_run(x: np.ndarray, start: np.ndarray, rounds: int, gpu: bool) -> tuple[np.ndarray, np.ndarray]:
    """faiss.Kmeans without subsampling, the last assignment included."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    settings = {"niter": rounds, "max_points_per_centroid": len(x), "min_points_per_centroid": 1, "gpu": gpu}
    run = faiss.Kmeans(x.shape[1], len(start), **settings)
    run.train(x, init_centroids=start)
    _, label = run.index.search(x, 1)
    return run.centroids, label[:, 0]


def superkmeans_run(x: np.ndarray, k: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """SuperKMeans on all rows without early stops, the last assignment included."""
    from superkmeans import SuperKMeans

    run = SuperKMeans(
        k, x.shape[1], hierarchical=False, iters=rounds, sampling_fraction=1.0, early_termination=False, tol=0.0,
        n_threads=torch.get_num_threads(),
    )  # fmt: skip
    centroids = run.train(x)
    return centroids, np.asarray(run.assign(x, centroids)).ravel()


def flash_run(x: np.ndarray, start: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """flash-kmeans in float32, one more assignment included."""
    from flash_kmeans import batch_kmeans_Euclid

    rows, first = torch.from_numpy(x).cuda()[None], torch.from_numpy(start).cuda()[None]
    centroids = batch_kmeans_Euclid(rows, len(start), max_iters=rounds, tol=0.0, init_centroids=first)[1]
    label = batch_kmeans_Euclid(rows, len(start), max_iters=1, tol=0.0, init_centroids=centroids.clone())[0]
    return centroids[0].cpu().numpy(), label[0].long().cpu().numpy()


def cuvs_run(x: np.ndarray, start: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """cuVS, the last assignment included; its tolerance must be above zero."""
    from cuvs.cluster.kmeans import KMeansParams, fit, predict

    rows, centroids = torch.from_numpy(x).cuda(), torch.from_numpy(start).cuda()
    label = torch.empty(len(x), dtype=torch.int32, device="cuda")
    settings = KMeansParams(n_clusters=len(start), init_method="Array", max_iter=rounds, tol=1e-12, n_init=1)
    fit(settings, rows, centroids)
    predict(settings, rows, centroids, labels=label)
    return centroids.cpu().numpy(), label.long().cpu().numpy()


def objective_of(x: np.ndarray, centroids: np.ndarray, label: np.ndarray) -> float:
    parts = (slice(i, i + 4096) for i in range(0, len(x), 4096))
    return sum(float(np.square(x[part] - centroids[label[part]], dtype=np.float64).sum()) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["50000x256x1000"], help="NxDxK")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tol", type=float, default=0.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here for --device cuda")
    torch.set_num_threads(chosen.threads)
    run = (chosen.rounds, chosen.repeats, chosen.precision, chosen.tol, chosen.device)
    processor = torch.cpu.get_capabilities().get("cpu_name")
    gpu = f"{torch.cuda.get_device_name()}, " if chosen.device == "cuda" else ""
    print(f"{gpu}{processor}, {torch.backends.cpu.get_cpu_capability()}, {chosen.threads} threads")
    for size in chosen.sizes:
        n, d, k = (int(part) for part in size.split("x"))
        features = cifar_features(n, d) if (n, d) == (50_000, 256) else None
        if features is None:
            compare("mixture of Gaussians", mixture(n, d, k // 2 + 1), k, *run)
        else:
            compare("CIFAR-10 features, whitened", features, k, *run)
        compare("noise", noise(n, d), k, *run)


if __name__ == "__main__":
    main()

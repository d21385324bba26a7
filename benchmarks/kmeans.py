"""k-means here beside its peers and its bound: same rows, same number of rounds, same threads.

    python benchmarks/kmeans.py                      # 50k x 256, k = 1000
    python benchmarks/kmeans.py 10000x64x10 200000x128x10000
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/kmeans.py    # as without AVX-512

Each size is run on structured rows (whitened, L2-normalized features of CIFAR-10 by an untrained network where the
images are at hand and there are 50,000 x 256 rows, else a mixture of Gaussians) and on rows without structure
(normalized Gaussian noise, the worst case). The peers are faiss, from the same start, and superkmeans (pip install
superkmeans), from its own. The bound is the time of the products of all rows and centroids in each round. Runs
alternate, so that whatever else the machine does falls on all; printed are medians, and objectives as parts of faiss's.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path

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


def compare(name: str, x: np.ndarray, k: int, rounds: int, repeats: int, precision: str, tol: float) -> None:
    """One line of times and objectives for the rows x (N, D)."""
    start = x[np.random.default_rng(1).permutation(len(x))[:k]]

    def ours() -> tuple[float, float]:
        begun = time.perf_counter()
        run = KMeans(k, max_iter=rounds, init=start, tol=tol, random_state=0, precision=precision).fit(x)
        return time.perf_counter() - begun, run.inertia_

    runs = {"ours": ours, "faiss": lambda: faiss_run(x, start, rounds), "bound": lambda: (bound(x, start, rounds), 0.0)}
    if find_spec("superkmeans") is not None:
        runs["superkmeans"] = lambda: superkmeans_run(x, k, rounds)
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    objective: dict[str, float] = {}
    for _ in range(repeats):
        for who, run in runs.items():
            took, objective[who] = run()
            seconds[who].append(took)
    median = {who: statistics.median(each) for who, each in seconds.items()}
    print(f"{name:<28} N={len(x)} D={x.shape[1]} k={k}: ours {median['ours']:.3f} s", end="")
    for who in [who for who in runs if who != "ours"]:
        part = "" if who == "bound" else f", objective ours / {who} {objective['ours'] / objective[who]:.5f}"
        print(f"; {who} {median[who]:.3f} s ({median[who] / median['ours']:.2f} times ours{part})", end="")
    print(flush=True)


def bound(x: np.ndarray, centroids: np.ndarray, rounds: int) -> float:
    """Seconds of the products of `rounds` rounds, and of the last assignment."""
    rows, columns = torch.from_numpy(x), torch.from_numpy(centroids).T.contiguous()
    out = torch.empty(4096, len(centroids))
    begun = time.perf_counter()
    with blas().limit(limits=torch.get_num_threads()):
        for part in rows.split(4096):
            multiply(part, columns, out[: len(part)])
    return (time.perf_counter() - begun) * (rounds + 1)


def faiss_run(x: np.ndarray, start: np.ndarray, rounds: int) -> tuple[float, float]:
    """Seconds and final objective of faiss.Kmeans without subsampling, the last assignment included."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    begun = time.perf_counter()
    run = faiss.Kmeans(x.shape[1], len(start), niter=rounds, max_points_per_centroid=len(x), min_points_per_centroid=1)
    run.train(x, init_centroids=start)
    _, label = run.index.search(x, 1)
    took = time.perf_counter() - begun
    return took, objective_of(x, run.centroids, label[:, 0])


def superkmeans_run(x: np.ndarray, k: int, rounds: int) -> tuple[float, float]:
    """Seconds and final objective of SuperKMeans on all rows without early stops, the last assignment included."""
    from superkmeans import SuperKMeans

    begun = time.perf_counter()
    run = SuperKMeans(
        k, x.shape[1], hierarchical=False, iters=rounds, sampling_fraction=1.0, early_termination=False, tol=0.0,
        n_threads=torch.get_num_threads(),
    )  # fmt: skip
    centroids = run.train(x)
    label = np.asarray(run.assign(x, centroids)).ravel()
    return time.perf_counter() - begun, objective_of(x, centroids, label)


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
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    run = (chosen.rounds, chosen.repeats, chosen.precision, chosen.tol)
    processor = torch.cpu.get_capabilities().get("cpu_name")
    print(f"{processor}, {torch.backends.cpu.get_cpu_capability()}, {chosen.threads} threads")
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

"""k-means here beside faiss: same rows, same start, same number of rounds, same threads.

    python benchmarks/kmeans.py            # (50k x 256, k=1000) and (200k x 128, k=10000)
    python benchmarks/kmeans.py --quick    # a tenth of both
    python benchmarks/kmeans.py --part 50  # a fiftieth

Each size is run on structured rows (whitened, L2-normalized features of CIFAR-10 by an untrained network
where the images are at hand, else a mixture of Gaussians; a mixture for the larger size) and on rows without
structure (normalized Gaussian noise, the worst case). Runs alternate between the two, so that whatever else the
machine does falls on both; the printed ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import time
from pathlib import Path

import numpy as np
import torch

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening


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
    seconds: dict[str, list[float]] = {"ours": [], "faiss": []}
    objective: dict[str, float] = {}
    done = 0
    for _ in range(repeats):
        begun = time.perf_counter()
        ours = KMeans(k, max_iter=rounds, init=start, tol=tol, random_state=0, precision=precision).fit(x)
        seconds["ours"].append(time.perf_counter() - begun)
        objective["ours"], done = ours.inertia_, ours.n_iter_
        took, objective["faiss"] = faiss_run(x, start, rounds)
        seconds["faiss"].append(took)
    ours_s, faiss_s = (statistics.median(seconds[who]) for who in ("ours", "faiss"))
    pairs = [b / a for a, b in zip(seconds["ours"], seconds["faiss"], strict=True)]
    print(
        f"{name:<34} N={len(x)} D={x.shape[1]} k={k}: ours {ours_s:.2f} s ({done} rounds), faiss {faiss_s:.2f} s; "
        f"{faiss_s / ours_s:.2f} times as fast (pairs {min(pairs):.2f}-{max(pairs):.2f}); "
        f"objective ours / faiss {objective['ours'] / objective['faiss']:.5f}",
        flush=True,
    )


def faiss_run(x: np.ndarray, start: np.ndarray, rounds: int) -> tuple[float, float]:
    """Seconds and final objective of faiss.Kmeans without subsampling, the last assignment included."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    begun = time.perf_counter()
    run = faiss.Kmeans(x.shape[1], len(start), niter=rounds, max_points_per_centroid=len(x), min_points_per_centroid=1)
    run.train(x, init_centroids=start)
    _, label = run.index.search(x, 1)
    took = time.perf_counter() - begun
    objective = sum(
        float(np.square(x[i : i + 4096] - run.centroids[label[i : i + 4096, 0]], dtype=np.float64).sum())
        for i in range(0, len(x), 4096)
    )
    return took, objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows and clusters")
    parser.add_argument("--part", type=int, help="the rows and clusters divided by this; by default 1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tol", type=float, default=0.0)
    parser.add_argument("--only", choices=("small", "large"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    part = chosen.part or (10 if chosen.quick else 1)
    run = (chosen.rounds, chosen.repeats, chosen.precision, chosen.tol)
    if chosen.only != "large":
        n, d, k = 50_000 // part, 256, 1000 // part
        features = cifar_features(n, d)
        if features is None:
            compare("mixture (no CIFAR-10 at hand)", mixture(n, d, k), k, *run)
        else:
            compare("CIFAR-10 features, whitened", features, k, *run)
        compare("noise", noise(n, d), k, *run)
    if chosen.only != "small":
        n, d, k = 200_000 // part, 128, 10_000 // part
        compare("mixture of 5,000 Gaussians", mixture(n, d, 5000 // part), k, *run)
        compare("noise", noise(n, d), k, *run)


if __name__ == "__main__":
    main()

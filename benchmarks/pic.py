"""PIC of 50,000 x 256 rows: seconds for the search, the iteration and the ascent; the search beside faiss's.

    python benchmarks/pic.py            # 50k x 256
    python benchmarks/pic.py --quick    # a tenth
    python benchmarks/pic.py --part 50  # a fiftieth

The rows are those of benchmarks/kmeans.py: whitened, L2-normalized features of CIFAR-10 by an untrained network where
the images are at hand, else a mixture of Gaussians. Both searches use the same threads and take turns, so that
whatever else the machine does falls on both; the printed ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from deepcluster.clustering.pic import PIC, ROUNDING, follow, iterate, symmetric, uphill, weights
from deepcluster.features.knn import nearest_rows
from kmeans import cifar_features, mixture


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def faiss_search(x: np.ndarray, k: int) -> np.ndarray:
    """(N, k + 1) positions by IndexFlatL2, the rows themselves among them."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    return index.search(x, k + 1)[1]


def searches(x: np.ndarray, k: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors and squared distances; prints the seconds of both searches."""
    ours, theirs = [], []
    for _ in range(repeats):
        seconds, (near, squared) = timed(lambda: nearest_rows(x, k))
        ours.append(seconds)
        seconds, found = timed(lambda: faiss_search(x, k))
        theirs.append(seconds)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(near[::50], found[::50], strict=True)]) / k
    print(
        f"search: ours {mine:.2f} s, faiss {peer:.2f} s; {peer / mine:.2f} times as fast; "
        f"{100 * same:.2f} % the same neighbors",
        flush=True,
    )
    return near, squared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--part", type=int, help="the rows divided by this; by default 1")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    n, d = 50_000 // (chosen.part or (10 if chosen.quick else 1)), 256
    x = cifar_features(n, d)
    print("mixture (no CIFAR-10 at hand)" if x is None else "CIFAR-10 features, whitened", f"N={n} D={d}", flush=True)
    x = mixture(n, d, 1000) if x is None else x
    near, squared = searches(x, 5, chosen.repeats)
    for version in ("paper", "published"):
        graph, scale = weights(near, squared, 0.2)
        both = symmetric(graph)
        iteration, (_, height, _) = timed(
            lambda both=both, scale=scale, version=version: iterate(
                both, scale, alpha=0.001, version=version, max_iter=200, tol=0.0
            )
        )
        edges = graph if version == "paper" else both
        ascent, root = timed(lambda edges=edges, height=height: follow(uphill(edges, height)))
        level = np.abs(height[near] - height[:, None]) <= ROUNDING * height[:, None]
        whole, run = timed(lambda version=version: PIC(version=version).fit(x))
        sizes = np.bincount(run.labels_)
        print(
            f"{version}: iteration {iteration:.2f} s, ascent {ascent:.2f} s, all of fit {whole:.2f} s; "
            f"{len(np.unique(root)):,} local maxima, {run.n_clusters_:,} clusters of {sizes.min()}-{sizes.max()}, "
            f"{100 * np.mean(sizes < 10):.0f} % of them smaller than 10; "
            f"{int(level.any(1).sum())} rows level with a neighbor",
            flush=True,
        )


if __name__ == "__main__":
    main()

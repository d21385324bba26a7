"""Peak memory of the clustering stage for features on disk: by default 1,000,000 x 512 float32, 2 GB.

    python benchmarks/clustering_memory.py
    python benchmarks/clustering_memory.py --rows 100000      # quicker

A file of features is made, then a process of its own whitens it to 256 into a second file and clusters that
into 1,000 groups. Reported is that process's peak: anonymous memory (its own), and resident memory, which
also counts pages of files it has mapped. The files are deleted afterwards.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MEBI = 1 << 20


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


def stage(folder: Path, width: int, k: int, rounds: int) -> None:
    """What is measured: whitening and k-means, file to file."""
    from deepcluster.clustering.kmeans import KMeans
    from deepcluster.clustering.whitening import Whitening

    peak = Peak()
    features = np.load(folder / "features.npy", mmap_mode="r")
    base = peak.now()
    begun = time.perf_counter()
    whitening = Whitening(width).fit(features)
    white = np.lib.format.open_memmap(folder / "white.npy", "w+", np.float32, (len(features), width))
    whitening.transform(features, out=white)
    whitened = time.perf_counter()
    run = KMeans(k, max_iter=rounds, random_state=0).fit(white)
    done = time.perf_counter()
    anonymous, resident = peak.stop()
    print(
        f"{len(features)} x {features.shape[1]} -> {width}, k={k}, {run.n_iter_} rounds: "
        f"peak anonymous {anonymous / MEBI:.0f} MiB, peak resident {resident / MEBI:.0f} MiB "
        f"(of which {base / MEBI:.0f} MiB after imports); whitening {whitened - begun:.1f} s, "
        f"k-means {done - whitened:.1f} s; objective {run.inertia_:.1f}; sizes {np.bincount(run.labels_).min()} to "
        f"{np.bincount(run.labels_).max()}"
    )


class Peak:
    """Watches this process's memory from a thread, every 5 ms."""

    def __init__(self) -> None:
        self.anonymous = 0
        self.going = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def now(self, key: str = "RssAnon") -> int:
        """Bytes the kernel counts under `key`."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        return 0

    def _watch(self) -> None:
        while self.going:
            self.anonymous = max(self.anonymous, self.now())
            time.sleep(0.005)

    def stop(self) -> tuple[int, int]:
        """Peak bytes of anonymous (sampled) and of all resident memory (exact)."""
        self.going = False
        self.thread.join()
        return self.anonymous, self.now("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's temporary folder")
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.stage:
        stage(chosen.stage, chosen.width, chosen.k, chosen.rounds)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        make_features(Path(folder) / "features.npy", chosen.rows, chosen.dim)
        again = ["--width", str(chosen.width), "--k", str(chosen.k), "--rounds", str(chosen.rounds)]
        subprocess.run([sys.executable, __file__, "--stage", folder, *again], check=True)


if __name__ == "__main__":
    main()

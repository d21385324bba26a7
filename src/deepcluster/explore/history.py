"""The history of a run: the cluster sizes of epochs whose checkpoints were kept."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.clustering.metrics import nmi
from deepcluster.engine import checkpoint
from deepcluster.errors import DeepClusterError

POINTS = 240
"""Points of the curve of sizes."""

NAMES = ("assignments", "assignment", "assignment_at_refresh", "told")
"""Where methods keep their clusters in a checkpoint."""


def kept_epochs(folder: Path) -> dict[int, Path]:
    """Epoch -> the checkpoint that was kept of it."""
    found = {}
    for file in (folder / "checkpoints").glob("epoch-*.ckpt"):
        if match := re.fullmatch(r"epoch-(\d+)\.ckpt", file.name):
            found[int(match[1])] = file
    return dict(sorted(found.items()))


def clusters_of(file: Path) -> np.ndarray | None:
    """(N,) int64 clusters in a checkpoint; None where it has none.

    Raises:
        DeepClusterError: the file is damaged, or gone.
    """
    try:
        now = file.stat()
    except OSError as error:
        raise DeepClusterError(f"{file} cannot be read ({error.strerror}): load the page again.") from error
    return _read(file, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=4)  # of a million images each takes 8 MB
def _read(file: Path, mtime_ns: int, size: int) -> np.ndarray | None:
    """The clusters in the file of that time and size, which further training may replace."""
    state = checkpoint.load(file)["method"]
    for name in NAMES:
        if name in state:
            found = state[name].cpu().numpy()
            found = found[0] if found.ndim == 2 else found
            return found.astype(np.int64) if (found >= 0).any() else None
    return None


def sizes(assignment: np.ndarray, last: np.ndarray) -> dict[str, Any]:
    """The cluster sizes of an epoch, largest first, and its agreement with the last clusters.

    Args:
        assignment: (N,) of the epoch.
        last: (N,) of the finished run.
    """
    counts = np.bincount(assignment[assignment >= 0])
    counts = np.sort(counts[counts > 0])[::-1]
    rank = np.unique(np.linspace(0, len(counts) - 1, min(POINTS, len(counts))).astype(int))
    return {
        "clusters": len(counts),
        "largest": int(counts[0]) if len(counts) else 0,
        "median": float(np.median(counts)) if len(counts) else 0.0,
        "smallest": int(counts[-1]) if len(counts) else 0,
        "ranks": rank.tolist(),
        "sizes": counts[rank].tolist(),
        "nmi_last": round(float(nmi(assignment, last)), 4) if len(assignment) == len(last) else None,
    }

"""The history of a run: the cluster sizes of epochs whose checkpoints were kept."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.clustering.metrics import nmi
from deepcluster.engine import checkpoint
from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError

POINTS = 240
"""Points of the curve of sizes."""


def curves(run: Run) -> dict[str, Any]:
    """The rows of all epochs, and those whose clusters are known."""
    kept = {*kept_epochs(run.folder), *(row["epoch"] for row in run.metrics[-1:])}
    return {"rows": run.metrics, "kept": sorted(kept)}


def of_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """Cluster sizes of an epoch, where its clusters were kept."""
    file, last = kept_epochs(run.folder).get(epoch), run.assignment
    found = None if file is None else clusters_of(run, file)
    if found is None and epoch in (row["epoch"] for row in run.metrics[-1:]):
        found = last
    return {"epoch": epoch, "known": found is not None} | ({} if found is None else sizes(found, last))


def kept_epochs(folder: Path) -> dict[int, Path]:
    """Epoch -> the checkpoint that was kept of it."""
    files = (folder / "checkpoints").glob("epoch-*.ckpt")
    epochs = {file.stem.removeprefix("epoch-"): file for file in files}
    return {int(epoch): epochs[epoch] for epoch in sorted(filter(str.isdecimal, epochs), key=int)}


def clusters_of(run: Run, file: Path) -> np.ndarray | None:
    """(N,) int64 clusters in a checkpoint of the run; None where it has none, a DeepClusterError where it is damaged or
    gone."""
    try:
        return _read(run, file, file.stat().st_mtime_ns)
    except OSError as error:
        raise DeepClusterError(f"{file} cannot be read ({error.strerror}): load the page again.") from error


@lru_cache(maxsize=4)  # of a million images each takes 8 MB
def _read(run: Run, file: Path, mtime_ns: int) -> np.ndarray | None:
    """The clusters in the file of that time, which further training may replace."""
    clusterings = run.saved_clusters(checkpoint.load(file))[0]
    return clusterings[0].cpu().numpy().astype(np.int64) if (clusterings[:1] >= 0).any() else None


def sizes(assignment: np.ndarray, last: np.ndarray) -> dict[str, Any]:
    """The cluster sizes of an epoch's (N,) assignment, largest first, and its agreement with the (N,) last one."""
    counts = np.sort(np.unique(assignment[assignment >= 0], return_counts=True)[1])[::-1]  # of any numbers
    rank = np.unique(np.linspace(0, len(counts) - 1, min(POINTS, len(counts))).astype(int))
    return {
        "clusters": len(counts),
        "largest": int(counts.max(initial=0)),
        "median": float(np.median(counts)) if len(counts) else 0.0,
        "smallest": int(counts[-1]) if len(counts) else 0,
        "ranks": rank.tolist(),
        "sizes": counts[rank].tolist(),
        "nmi_last": round(float(nmi(assignment, last)), 4) if len(assignment) == len(last) else None,
    }

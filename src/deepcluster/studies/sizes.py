"""Cluster sizes of several runs side by side, such as k-means beside PIC (arXiv 1807.05520, appendix, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError
from deepcluster.studies.study import Row, Study, run_names
from deepcluster.visualize.sizes import effective

SMALL = 10
"""Images below which a cluster counts as small."""


def sizes_of_runs(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """(K,) int64 sizes of each run's clusters, empty ones included, by the run's name.

    Raises:
        DeepClusterError: a run has no clusters yet.
    """
    found = {}
    for name, run in zip(run_names([run.folder for run in runs]), runs, strict=True):
        assignment = np.asarray(run.assignment)
        sizes = np.bincount(assignment[assignment >= 0], minlength=len(run.centroids))
        if not sizes.sum():
            raise DeepClusterError(f"No image of {run.folder} is in a cluster: train it for longer.")
        found[name] = sizes
    return found


def row_of(name: str, sizes: np.ndarray) -> Row:
    """One line of the table: of the clusters in use, that is with at least one image."""
    used = sizes[sizes > 0]
    return {
        "run": name,
        "images": int(sizes.sum()),
        "k": len(sizes),
        "used": len(used),
        "min": int(used.min()),
        "median": float(np.median(used)),
        "max": int(used.max()),
        f"under_{SMALL}": float((used < SMALL).mean()),
        "as_even_as": round(effective(sizes), 1),
    }


def study_sizes(sizes: dict[str, np.ndarray], folders: Sequence[str]) -> Study:
    """The table and its sentence."""
    rows = [row_of(name, each) for name, each in sizes.items()]
    said = " ".join(
        f"{row['run']}: {row['used']:,} clusters of {row['min']:,} to {row['max']:,} images, half of them under"
        f" {row['median']:,.6g}, {100 * row[f'under_{SMALL}']:.1f} % with fewer than {SMALL}."
        for row in rows
    )
    about = {
        "runs": list(folders),
        "min_median_max": "of clusters with at least one image",
        f"under_{SMALL}": f"share of those with fewer than {SMALL} images",
        "as_even_as": "exp of the entropy of the sizes: so many equal clusters would be as even",
    }
    every = [
        {"run": name, "cluster": number, "images": int(size)}
        for name, each in sizes.items()
        for number, size in enumerate(each)
    ]
    return Study("sizes", said, about, rows, more={"clusters": every})

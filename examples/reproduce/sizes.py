"""Cluster sizes of runs side by side, such as k-means and PIC (arXiv 1807.05520, appendix, figure 3).

python examples/reproduce/sizes.py runs/kmeans runs/pic --out runs/sizes
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from common import Row, Study, run_script, with_options
from tyro.conf import Positional, arg

from deepcluster.clustering.metrics import effective
from deepcluster.engine.run import Run, load_run
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.compare import short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 10
"""Images below which a cluster counts as small."""


def sizes(
    runs: Positional[tuple[Path, ...]],
    out: Path | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """How many images the clusters of each run have.

    Args:
        runs: run folders.
        out: folder to write; none = studies/ in the first run's folder.
        as_json: print one JSON object.
    """
    if not runs:
        raise DeepClusterError("Name at least one run folder: sizes.py RUN [RUN ...].")
    names = short_names([str(folder) for folder in runs])
    found = {name: sizes_of(load_run(folder)) for name, folder in zip(names, runs, strict=True)}
    rows = [row_of(name, each) for name, each in found.items()]
    sentence = " ".join(
        f"{row['run']}: {row['used']:,} clusters of {row['min']:,} to {row['max']:,} images, half of them under"
        f" {row['median']:,.6g}, {100 * row[f'under_{SMALL}']:.1f} % with fewer than {SMALL}."
        for row in rows
    )
    clusters = [
        {"run": name, "cluster": number, "images": int(size)}
        for name, each in found.items()
        for number, size in enumerate(each)
    ]
    settings = {"runs": [str(folder) for folder in runs], "as_even_as": "exp of the entropy of the sizes"}
    Study("sizes", sentence, settings, rows, sizes_figure(found), {"clusters": clusters}).report(
        out or runs[0] / "studies", as_json
    )


def sizes_of(run: Run) -> np.ndarray:
    """(K,) int64 images in each cluster, empty ones included."""
    assignment = run.assignment
    if not (assignment >= 0).any():
        raise DeepClusterError(f"No image of {run.folder} is in a cluster: train it for longer.")
    return np.bincount(assignment[assignment >= 0], minlength=len(run.centroids))


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


def sizes_figure(sizes: dict[str, np.ndarray]) -> Figure:
    """Images against rank, and the share of clusters by size in bins of equal ratio, the same for all runs."""
    used = {name: np.sort(each[each > 0])[::-1] for name, each in sizes.items()}
    low, high = min(each[-1] for each in used.values()), max(each[0] for each in used.values())
    edges = np.unique(np.geomspace(low, high + 1, 25).round())
    page = style.figure(11, 3.6)
    ranked, shares = page.subplots(1, 2)
    style.quiet(ranked, "Clusters from large to small", "rank of the cluster", "images")
    style.quiet(shares, "How many clusters have which size", "images in a cluster", "clusters (%)")
    for number, (name, each) in enumerate(used.items()):
        color = style.SERIES[number % len(style.SERIES)]
        ranked.plot(np.arange(len(each)) + 1, each, ".-", color=color, label=f"{name}: {len(each):,} clusters")
        share = 100 * np.histogram(each, edges)[0] / len(each)
        shares.stairs(share, edges, color=color, fill=True, alpha=0.3)
    ranked.set_xscale("log")
    ranked.set_yscale("log")
    shares.set_xscale("log")
    ranked.legend(frameon=False, fontsize=9)
    return page


if __name__ == "__main__":
    run_script(with_options(sizes))

"""`deepcluster cluster FEATURES.npy --k K --out FILE`, in levels by `--algorithm hierarchical`, without K by `pic`.

Launched several times over, `torchrun --nproc-per-node 2 -m deepcluster.cli.main cluster ...`, k-means and the
hierarchical one share the rows out over the processes.
"""

from __future__ import annotations

import json as json_module
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from deepcluster.cli.parse import parse
from deepcluster.cli.processes import several_processes
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError


@dataclass(frozen=True)
class Cluster:
    """Clusters a feature table, out of core: whitening, k-means and PIC read it in pieces."""

    features: Positional[Path]
    """The .npy table (N, D) float32, or the folder of one in parts; NaN rows are left out."""
    out: Path
    """The table to write: .csv or .parquet with index, path, cluster, distance."""
    algorithm: Literal["kmeans", "pic", "hierarchical"] = "kmeans"
    """How to cluster: k-means, power iteration clustering of the nearest-neighbor graph, or k-means in levels."""
    k: int | None = None
    """Clusters; k-means needs it, PIC finds the number itself."""
    branches: tuple[int, ...] | None = None
    """hierarchical: branches of each level but the last: 4 makes 4 super-clusters of K / 4 clusters, 4 10 three
    levels; by default two levels, about the square root of K wide."""
    whiten: int = 256
    """PCA-whiten to this width and L2-normalize first; 0 = take the features as they are."""
    iterations: int | None = None
    """Rounds: of k-means at most, by default 20; of PIC, by default 200."""
    seed: int | None = None
    """k-means, hierarchical: random draws follow from it; by default 0."""
    neighbors: int | None = None
    """PIC: neighbors of each row, by default 5."""
    sigma: float | None = None
    """PIC: width of the weights exp(-distance^2 / sigma^2), by default 0.2."""
    alpha: float | None = None
    """PIC: part of the graph in each round, by default 0.001."""
    version: Literal["paper", "published"] | None = None
    """PIC: as in the paper, which is the default, or as in its published code."""
    json: bool = False
    """Print one JSON object when done."""


# what each algorithm takes from the command line, and what its class calls it
NAMES = {
    "kmeans": {"k": "n_clusters", "iterations": "max_iter", "seed": "random_state"},
    "hierarchical": {
        "k": "n_clusters",
        "branches": "branches",
        "iterations": "max_iter",
        "seed": "random_state",
    },
    "pic": {
        "iterations": "max_iter",
        "neighbors": "n_neighbors",
        "sigma": "sigma",
        "alpha": "alpha",
        "version": "version",
    },
}


def command(arguments: list[str]) -> None:
    """Clusters."""
    chosen = parse(Cluster, arguments, prog="deepcluster cluster")
    if chosen.out.suffix not in (".csv", ".parquet"):
        raise DeepClusterError(
            f"Assignments are written as .csv or .parquet, not as {chosen.out.name!r}: change --out."
        )
    with several_processes() as group:
        _cluster(chosen, group)


def _cluster(chosen: Cluster, group: ProcessGroup) -> None:
    import numpy as np

    from deepcluster.clustering.metrics import size_stats
    from deepcluster.clustering.tables import cluster_table
    from deepcluster.engine.assignment import Assignment
    from deepcluster.engine.log import Screen
    from deepcluster.features.table import open_table

    clusterer = clusterer_for(chosen, group)
    screen = Screen(stderr=chosen.json)
    table: Any
    table, about = open_table(chosen.features)
    with tempfile.TemporaryDirectory(dir=chosen.out.parent if chosen.out.parent.is_dir() else None) as scratch:
        if chosen.algorithm == "hierarchical":
            clusterer.set_params(scratch=scratch)
        cluster, distance = cluster_table(
            table, clusterer, whiten=chosen.whiten, scratch=Path(scratch), bad=about.get("bad"), group=group
        )
    if not group.is_first:
        return
    Assignment(paths(about, len(table)), cluster, distance).save(chosen.out)
    sizes: dict[str, Any] = size_stats(cluster, chosen.k or clusterer.n_clusters_)
    if chosen.json:
        scores = {"out": str(chosen.out), "rows": len(table), "objective": float(clusterer.inertia_), **sizes}
        print(json_module.dumps(scores))
        return
    used, smallest, largest = sizes["clusters_used"], sizes["size_min"], sizes["size_max"]
    screen.say(f"{chosen.out}: {int(np.sum(cluster >= 0)):,} rows in {used:,} clusters of {smallest:,}-{largest:,}")


def clusterer_for(chosen: Cluster, group: ProcessGroup = SINGLE) -> Any:
    """The clusterer the options describe; what is not given is the class's own default.

    Raises:
        DeepClusterError: k-means without --k, an option of another algorithm, or PIC in several processes.
    """
    from deepcluster.clustering.hierarchical import HierarchicalKMeans
    from deepcluster.clustering.kmeans import KMeans
    from deepcluster.clustering.pic import PIC

    names = NAMES[chosen.algorithm]
    if chosen.k is not None and chosen.k < 1:
        raise DeepClusterError(f"--k is {chosen.k}: ask for at least 1 cluster.")
    if chosen.algorithm != "pic" and chosen.k is None:
        raise DeepClusterError(
            "k-means needs the number of clusters: give --k, or take --algorithm pic, which finds it."
        )
    for name in sorted({name for other in NAMES.values() for name in other} - set(names)):
        if getattr(chosen, name) is not None:
            raise DeepClusterError(f"--{name} is no option of {chosen.algorithm}; leave it out or change --algorithm.")
    given = {names[name]: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if chosen.algorithm != "pic":
        kind = KMeans if chosen.algorithm == "kmeans" else HierarchicalKMeans
        return kind(**{"random_state": 0, **given}, group=group)
    if not group.is_single:
        raise DeepClusterError(f"PIC clusters in one process, not in {group.size}; start it once.")
    return PIC(**given)


def paths(about: dict[str, Any], rows: int) -> list[str]:
    """The rows' image paths, where the .json beside the table says which images they are."""
    from deepcluster.data.open import open_images

    try:
        source = open_images(about["data"])
    except (KeyError, DeepClusterError):
        return [""] * rows
    if len(source) != rows or source.fingerprint() != about.get("source_fingerprint"):
        return [""] * rows
    return [source.path(index) for index in range(rows)]

"""`deepcluster cluster FEATURES.npy --k K --out FILE`.

Under `torchrun --nproc-per-node 2 -m deepcluster.cli.main cluster ...` the processes of k-means and of hierarchical
k-means share the rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from deepcluster.cli.common import check_table_name, several_processes, show
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError

OPTIONS = {
    "kmeans": {"k": "n_clusters", "iterations": "max_iter", "seed": "random_state"},
    "hierarchical": {"k": "n_clusters", "branches": "branches", "iterations": "max_iter", "seed": "random_state"},
    "pic": {
        "iterations": "max_iter",
        "neighbors": "n_neighbors",
        "sigma": "sigma",
        "alpha": "alpha",
        "version": "version",
    },
}
"""The options of each algorithm, and the parameters of its class that they set."""


def cluster(
    features: Path,
    /,
    *,
    out: Path,
    algorithm: Literal["kmeans", "pic", "hierarchical"] = "kmeans",
    k: int | None = None,
    branches: tuple[int, ...] | None = None,
    whiten: int = 256,
    iterations: int | None = None,
    seed: int | None = None,
    neighbors: int | None = None,
    sigma: float | None = None,
    alpha: float | None = None,
    version: Literal["paper", "published"] | None = None,
    json: bool = False,
) -> None:
    """Clusters a feature table, which may be larger than memory: whitening, k-means and PIC read it in blocks.

    Args:
        features: the .npy table (N, D) float32, or the folder of a table in parts; NaN rows are left out.
        out: the table to write: .csv or .parquet with the columns index, path, cluster, distance.
        algorithm: k-means, power iteration clustering (PIC) of the nearest-neighbor graph, or hierarchical k-means.
        k: number of clusters; k-means needs it, PIC finds it.
        branches: hierarchical: number of branches on each level but the last. 4 makes 4 super-clusters of K / 4
            clusters each, 4 10 makes three levels. None = two levels, with about the square root of K branches.
        whiten: PCA-whiten to this width and L2-normalize first; 0 = cluster the features as they are.
        iterations: maximum number of iterations; None = 20 for k-means, 200 for PIC.
        seed: k-means, hierarchical: seed of all random draws; None = 0.
        neighbors: PIC: neighbors of each row in the graph; None = 5.
        sigma: PIC: bandwidth of the edge weights exp(-distance^2 / sigma^2); None = 0.2.
        alpha: PIC: share of the graph in each iteration; None = 0.001.
        version: PIC: as in the paper (the default), or as in its published code.
    """
    check_table_name(out)
    options: dict[str, Any] = {"k": k, "branches": branches, "iterations": iterations, "seed": seed}
    options |= {"neighbors": neighbors, "sigma": sigma, "alpha": alpha, "version": version}
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(algorithm, given)
    with several_processes() as group:
        from deepcluster.clustering.metrics import size_stats
        from deepcluster.clustering.tables import cluster_table
        from deepcluster.engine.assignment import Assignment
        from deepcluster.engine.log import Screen
        from deepcluster.features.table import open_table

        clusterer = _clusterer(algorithm, given, group)
        table: Any
        table, about = open_table(features)
        with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as scratch:
            if algorithm == "hierarchical":
                clusterer.set_params(scratch=scratch)
            assignment, distance = cluster_table(
                table, clusterer, whiten=whiten, scratch=Path(scratch), bad=about.get("bad"), group=group
            )
        if not group.is_first:
            return
    Assignment(_paths(about, len(table)), assignment, distance).save(out)
    sizes: dict[str, Any] = size_stats(assignment, k or clusterer.n_clusters_)
    values = {"out": str(out), "rows": len(table), "objective": float(clusterer.inertia_), **sizes}
    used, smallest, largest = sizes["clusters_used"], sizes["size_min"], sizes["size_max"]
    rows = int((assignment >= 0).sum())
    show(Screen(), json, values, f"{out}: {rows:,} rows in {used:,} clusters of {smallest:,}-{largest:,}")


def _check_options(algorithm: str, given: dict[str, Any]) -> None:
    """Refuses a missing --k and options of another algorithm."""
    if given.get("k", 1) < 1:
        raise DeepClusterError(f"--k is {given['k']}: ask for at least 1 cluster.")
    if algorithm != "pic" and "k" not in given:
        raise DeepClusterError("k-means needs the number of clusters: give --k, or --algorithm pic, which finds it.")
    for name in sorted(set(given) - set(OPTIONS[algorithm])):
        raise DeepClusterError(f"--{name} is not an option of {algorithm}: leave it out or change --algorithm.")


def _clusterer(algorithm: str, given: dict[str, Any], group: ProcessGroup) -> Any:
    """The clusterer with the given options; other parameters keep the defaults of its class."""
    from deepcluster.clustering.hierarchical import HierarchicalKMeans
    from deepcluster.clustering.kmeans import KMeans
    from deepcluster.clustering.pic import PIC

    parameters = {OPTIONS[algorithm][name]: value for name, value in given.items()}
    if algorithm == "pic":
        if not group.is_single:
            raise DeepClusterError(f"PIC runs in one process, not in {group.size}: start it without torchrun.")
        return PIC(**parameters)
    kind = KMeans if algorithm == "kmeans" else HierarchicalKMeans
    return kind(**{"random_state": 0, **parameters}, group=group)


def _paths(about: dict[str, Any], rows: int) -> list[str]:
    """The image path of each row, if the table's .json file names the images and they are unchanged."""
    from deepcluster.data.open import open_images

    try:
        source = open_images(about["data"])
    except (KeyError, DeepClusterError):
        return [""] * rows
    if len(source) != rows or source.fingerprint() != about.get("source_fingerprint"):
        return [""] * rows
    return [source.path(index) for index in range(rows)]

"""`deepcluster cluster FEATURES.npy --k K --out FILE`."""

from __future__ import annotations

import json as json_module
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from deepcluster.cli.parse import parse
from deepcluster.records import DeepClusterError


@dataclass(frozen=True)
class Cluster:
    """Clusters a feature table, out of core: whitening and k-means read it in pieces."""

    features: Positional[Path]
    """The .npy table (N, D) float32; NaN rows are left out."""
    k: int
    """Clusters."""
    out: Path
    """The table to write: .csv or .parquet with index, path, cluster, distance."""
    algorithm: Literal["kmeans"] = "kmeans"
    """How to cluster."""
    whiten: int = 256
    """PCA-whiten to this width and L2-normalize first; 0 = take the features as they are."""
    iterations: int = 20
    """Lloyd iterations."""
    seed: int = 0
    """Random draws follow from it."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Clusters."""
    chosen = parse(Cluster, arguments, prog="deepcluster cluster")
    if chosen.out.suffix not in (".csv", ".parquet"):
        raise DeepClusterError(
            f"Assignments are written as .csv or .parquet, not as {chosen.out.name!r}: change --out."
        )
    import numpy as np

    from deepcluster.clustering.kmeans import KMeans
    from deepcluster.clustering.scores import size_stats
    from deepcluster.clustering.tables import cluster_table
    from deepcluster.engine.assignment import Assignment
    from deepcluster.engine.log import Screen
    from deepcluster.features.table import open_table

    screen = Screen(stderr=chosen.json)
    table, about = open_table(chosen.features)
    kmeans = KMeans(chosen.k, max_iter=chosen.iterations, random_state=chosen.seed)
    with tempfile.TemporaryDirectory(dir=chosen.out.parent if chosen.out.parent.is_dir() else None) as scratch:
        cluster, distance = cluster_table(
            table, kmeans, whiten=chosen.whiten, scratch=Path(scratch), bad=about.get("bad")
        )
    Assignment(paths(about, len(table)), cluster, distance).save(chosen.out)
    sizes: dict[str, Any] = size_stats(cluster, chosen.k)
    if chosen.json:
        scores = {"out": str(chosen.out), "rows": len(table), "objective": float(kmeans.inertia_), **sizes}
        print(json_module.dumps(scores))
        return
    used, smallest, largest = sizes["clusters_used"], sizes["size_min"], sizes["size_max"]
    screen.say(f"{chosen.out}: {int(np.sum(cluster >= 0)):,} rows in {used:,} clusters of {smallest:,}-{largest:,}")


def paths(about: dict[str, Any], rows: int) -> list[str]:
    """The rows' image paths, where the .json beside the table says which images they are."""
    from deepcluster.data.sources import open_images

    try:
        source = open_images(about["data"])
    except (KeyError, DeepClusterError):
        return [""] * rows
    if len(source) != rows or source.fingerprint() != about.get("source_fingerprint"):
        return [""] * rows
    return [source.path(index) for index in range(rows)]

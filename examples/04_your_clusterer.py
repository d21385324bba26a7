"""Other clusterers in the place of k-means: whatever has scikit-learn's `fit_predict` will do.

    python examples/04_your_clusterer.py

The same small network on the handwritten digits, grouped in turn by our k-means, by agglomerative clustering with
twenty clusters, and by HDBSCAN, which finds their number itself and leaves stray images out until the next clustering.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sklearn.cluster import HDBSCAN, AgglomerativeClustering

import deepcluster as dc

CLUSTERERS: dict[str, Any] = {
    "k-means": None,
    "agglomerative": AgglomerativeClustering(20),
    "HDBSCAN": HDBSCAN(min_cluster_size=10, copy=True),
}


def compare(data: str = "digits", epochs: int = 8) -> dict[str, tuple[int, float]]:
    """Name -> clusters found in the end and their agreement (NMI) with the images' labels."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, clusterer in CLUSTERERS.items():
            out = Path(folder) / name
            run = dc.train("tiny-deepcluster", data, out, clusterer=clusterer, clusterings=1, epochs=epochs, quiet=True)
            found[name] = (len(run.centroids), run.metrics[-1]["nmi_labels"])
    return found


if __name__ == "__main__":
    for name, (clusters, agreement) in compare().items():
        print(f"{name:<14}{clusters:>5} clusters   NMI with the labels {agreement:.3f}")

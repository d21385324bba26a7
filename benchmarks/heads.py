"""Clusterers of frozen features, told the number of classes: AMI with the classes, and CPU seconds.

    python benchmarks/heads.py FOLDER [FOLDER ...] [--backbone auto] [--image-size 160] [--seeds 3] [--unbalanced]

Each folder is a labelled source (class folders, digits, a .tar). Features are scaled to unit length, centered and
reduced to 128 main directions, for every row of the table alike. --unbalanced keeps all images of one class, 20 % of
another and shares between for the rest.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.cluster import AgglomerativeClustering
from sklearn.cluster import KMeans as Reference
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.preprocessing import normalize

from deepcluster.clustering import TEMI, KMeans, Whitening
from deepcluster.clustering.spectral import spectral_embedding
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.engine.run import load_subject
from deepcluster.engine.subject import short_side
from deepcluster.features.knn import nearest_rows
from deepcluster.models.pretrained import choose_backbone

Clusterer = Callable[[np.ndarray, int, int], np.ndarray]
"""Of rows (N, P), a number of clusters and a seed: (N,) labels."""


def spectral(z: np.ndarray, k: int, seed: int) -> np.ndarray:
    """What heads start from, with the best of ten k-means."""
    near, _ = nearest_rows(z, min(10, max(5, len(z) // (4 * k))), metric="cosine")
    return np.asarray(Reference(k, n_init=10, random_state=seed).fit_predict(spectral_embedding(near, k, seed)))


def temi(**parameters: Any) -> Clusterer:
    return lambda z, k, seed: np.asarray(TEMI(k, random_state=seed, **parameters).fit_predict(z))


ROWS: dict[str, Clusterer] = {
    "k-means": lambda z, k, seed: np.asarray(KMeans(k, random_state=seed).fit_predict(z)),
    "scikit-learn's, best of 10": lambda z, k, seed: Reference(k, n_init=10, random_state=seed).fit_predict(z),
    "Ward": lambda z, k, seed: AgglomerativeClustering(k).fit_predict(z),
    "spectral": spectral,
    "TEMI": temi(),
    "TEMI from k-means": temi(init="k-means"),
    "TEMI from random weights": temi(init="random"),
    "TEMI, beta .6": temi(beta=0.6),
}


def features(folder: str, backbone: str, size: int, unbalanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """(N, 128) embedded rows and (N,) classes."""
    source = open_images(folder)
    subject = load_subject(choose_backbone(backbone)[0], image_size=size)
    pixels = load_pixels(source, short_side=short_side(subject.image_size), cache_gb=4)
    index, rows = subject.model.features(pixels, device=subject.device)
    labels = np.unique(np.asarray(source.labels)[index], return_inverse=True)[1]
    if unbalanced:
        draw = np.random.default_rng(1)
        share = np.linspace(1, 0.2, labels.max() + 1)[draw.permutation(labels.max() + 1)]
        kept = draw.random(len(labels)) < share[labels]
        rows, labels = rows[kept], labels[kept]
    return Whitening(128, whiten=False).fit_transform(normalize(rows)), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unbalanced", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Number of distinct clusters")
    sets = [features(folder, options.backbone, options.image_size, options.unbalanced) for folder in options.folders]
    table = Table("", *(f"{folder} ({len(z)})" for folder, (z, _) in zip(options.folders, sets, strict=True)))
    table.add_column("mean")
    table.add_column("CPU s")
    for name, clusterer in ROWS.items():
        began = time.process_time()
        scores = [
            np.mean(
                [
                    adjusted_mutual_info_score(labels, clusterer(z, int(labels.max()) + 1, seed))
                    for seed in range(options.seeds)
                ]
            )
            for z, labels in sets
        ]
        seconds = (time.process_time() - began) / options.seeds / len(sets)
        table.add_row(name, *(f"{score:.3f}" for score in scores), f"{np.mean(scores):.3f}", f"{seconds:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

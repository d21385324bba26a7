"""Which embedding of frozen features k-means groups best, and which criterion finds the number of classes.

    python benchmarks/groups.py FOLDER [FOLDER ...] [--backbone auto] [--seeds 3]

Each folder holds labeled images, in one folder per class; labels are used for scoring only. The first table has the AMI
of groups with classes by embedding, where k-means is told the number of classes. The second has, by criterion, the
number of clusters that it chooses and the AMI of the groups at that number. docs/groups.md shows both for many sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_mutual_info_score, calinski_harabasz_score, davies_bouldin_score

from deepcluster.clustering.choose_k import choose_k
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.open import open_images
from deepcluster.engine.describe import fitting_size
from deepcluster.engine.run import load_subject
from deepcluster.features.block_reader import normalize_rows
from deepcluster.models.pretrained import choose_backbone

CHOSEN = "PCA to 64, L2"
EMBEDDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda x: x,
    "L2": lambda x: normalize_rows(torch.from_numpy(x)).numpy(),
    "square root, centered, L2": lambda x: pca(np.sqrt(np.abs(x)) * np.sign(x), x.shape[1]),
    "centered, L2": lambda x: pca(x, x.shape[1]),
    "PCA to 32, L2": lambda x: pca(x, 32),
    CHOSEN: lambda x: pca(x, 64),
    "PCA to 128, L2": lambda x: pca(x, 128),
    "PCA-whitening to 64, L2": lambda x: pca(x, 64, whiten=True),
}


def pca(x: np.ndarray, width: int, *, whiten: bool = False) -> np.ndarray:
    z: np.ndarray = Whitening(width, whiten=whiten).fit_transform(x)
    return z


def groups(z: np.ndarray, k: int, seed: int) -> np.ndarray:
    spherical = not np.allclose(z, 0) and bool(np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-3))
    clusterer = KMeans(k, init="k-means++", n_init=3, max_iter=50, spherical=spherical, random_state=seed)
    labels: np.ndarray = clusterer.fit_predict(z)
    return labels


def features_of(folder: str, backbone: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features of the images of a folder and (N,) labels."""
    source, (name, _) = open_images(folder), choose_backbone(backbone)
    try:
        subject = load_subject(name, image_size=fitting_size(source, name))
    except ValueError:  # a run has a size of its own
        subject = load_subject(name)
    features, labels = subject.features(source), np.asarray(source.labels)
    known = np.isfinite(features).all(1) & (labels >= 0)
    return features[known], labels[known]


def criteria(z: np.ndarray, labels: np.ndarray, seed: int) -> list[tuple[str, int, float]]:
    """(criterion, number of clusters, AMI there) for each criterion."""
    choice = choose_k(z, random_state=seed)
    found = [groups(z, k, seed) for k in choice.candidates]
    scores = {name: list(values) for name, values in choice.scores.items()}
    scores["mean of the three"] = scores.pop("score")
    scores["Calinski-Harabasz"] = [calinski_harabasz_score(z, each) for each in found]
    scores["Davies-Bouldin"] = [-davies_bouldin_score(z, each) for each in found]
    amis = [float(adjusted_mutual_info_score(labels, each)) for each in found]
    scores["(best AMI)"] = amis
    best = {name: int(np.argmax(values)) for name, values in scores.items()}
    return [(name, choice.candidates[at], amis[at]) for name, at in best.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--backbone", default="auto", help="a name, a file of weights or a run")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sets = [features_of(folder, given.backbone) for folder in given.folders]
    heads = [f"{folder} ({len(labels)} of {len(np.unique(labels))})" for folder, (_, labels) in
             zip(given.folders, sets, strict=True)]  # fmt: skip
    by_embedding = Table("embedding", *heads, "mean", title="AMI of k-means told the number of classes")
    for name, embed in EMBEDDINGS.items():
        row = []
        for x, labels in sets:
            z, k = embed(x), len(np.unique(labels))
            row.append(np.mean([adjusted_mutual_info_score(labels, groups(z, k, seed)) for seed in range(given.seeds)]))
        by_embedding.add_row(name, *(f"{ami:.3f}" for ami in [*row, np.mean(row)]))
    by_criterion = Table("criterion", *heads, "|log(k / classes)|", title="k chosen, and AMI there")
    columns = [criteria(EMBEDDINGS[CHOSEN](x), labels, 0) for x, labels in sets]
    for row_of in zip(*columns, strict=True):
        off = [abs(np.log(k / len(np.unique(y)))) for (_, k, _), (_, y) in zip(row_of, sets, strict=True)]
        by_criterion.add_row(row_of[0][0], *(f"{k}: {ami:.3f}" for _, k, ami in row_of), f"{np.mean(off):.2f}")
    console = Console(width=max(100, 30 + 30 * len(sets)))
    console.print(by_embedding)
    console.print(by_criterion)


if __name__ == "__main__":
    main()

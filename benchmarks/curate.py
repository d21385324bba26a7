"""A curated sample of an unbalanced set of images against as many at random: balance, and neighbors of rare classes.

    python benchmarks/curate.py --train "cifar10/train-*.tar" --test cifar10/test.tar [--backbone patches] [--seeds 3]

Class i of C has `--largest` * (1/100)^(i / (C - 1)) training images, the usual long tail. Features are those of
`deepcluster cluster`; labels are used for scoring only. Of each sample the table has, as means over the seeds: the
images of the smallest class, the entropy of the classes (1 = equally many), near-duplicates left out, and the accuracy
of the 20 nearest images of the sample, one vote each, for test images of all classes and of the rarest third.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from deepcluster.clustering.metrics import size_stats
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.arrays import Arrays
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine.curate import curate_features
from deepcluster.engine.describe import open_describer, reduced_width
from deepcluster.engine.log import Screen
from deepcluster.engine.patches import fit_patches
from deepcluster.features.neighbors import score_features
from deepcluster.models.pretrained import is_fitted

SAMPLES: dict[str, dict[str, object] | None] = {
    "random": None,
    "one level of k-means": {"clusters": (0,), "resamplings": 0},
    "levels, not resampled": {"resamplings": 0},
    "curate": {},
    "curate, near-duplicates kept": {"duplicates": 2.0},
}
"""Sample -> arguments of `curate_features`; 0 stands for the default number of clusters."""


def part(source: ImageSource, counts: np.ndarray) -> Arrays:
    """The first images of each class, so many of each (C,)."""
    assert source.labels is not None
    index = np.concatenate([np.flatnonzero(source.labels == c)[:count] for c, count in enumerate(counts)])
    return Arrays(f"{len(index)} of {source.name}", np.stack([source.read(k) for k in index]), source.labels[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--backbone", default="patches", help="as for deepcluster cluster")
    parser.add_argument("--largest", type=int, default=5000, help="training images of the first class")
    parser.add_argument("--size", type=int, default=2000, help="images of a sample")
    parser.add_argument("--test-images", type=int, default=200, help="of each class")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    opened, test_source = open_images(args.train), open_images(args.test)
    classes = len(opened.classes)
    counts = np.round(args.largest * 0.01 ** (np.arange(classes) / max(1, classes - 1))).astype(int)
    train, test = part(opened, counts), part(test_source, np.full(classes, args.test_images))
    with tempfile.TemporaryDirectory() as folder:
        name, subject = open_describer(
            train, Path(folder), args.backbone, image_size=None, device="cpu", screen=Screen()
        )
        if is_fitted(name):
            fit_patches(subject.backbone, load_pixels(train, short_side=None, cache_gb=1))
        x, y = subject.features(train), subject.features(test)
        rare = test.labels >= classes - max(1, classes // 3)
        print(f"{len(train):,} images, {counts.tolist()} of the classes; samples of {args.size:,}")
        print(f"{'':<30}{'smallest':>9}{'entropy':>9}{'repeats':>9}{'kNN':>8}{'rare':>8}")
        for title, how in SAMPLES.items():
            rows = []
            for seed in range(args.seeds):
                index, repeats = np.random.default_rng(seed).permutation(len(train))[: args.size], 0
                if how is not None:
                    if how.get("clusters"):
                        how = {**how, "clusters": (max(int(len(train) ** 0.5), len(train) // 74),)}
                    embedding = Whitening(reduced_width(subject), whiten=False)
                    found = curate_features(x, args.size, scratch=Path(folder), seed=seed, whiten=embedding, **how)
                    index, repeats = found.index, int(found.duplicate.sum())
                own = train.labels[index]
                sizes = np.bincount(own, minlength=classes)
                scores = [
                    dict(score_features(x[index], own, y[which], test.labels[which], k=(20,), classes=classes))
                    for which in (slice(None), rare)
                ]
                knn = [score["knn20_majority_top1"] for score in scores]
                rows.append([sizes.min(), size_stats(own, classes)["size_entropy"], repeats, *knn])
            smallest, even, repeats, *knn = np.mean(rows, 0)
            shown = "".join(f"{score:>8.1%}" for score in knn)
            print(f"{title:<30}{smallest:>9.1f}{even:>9.3f}{repeats:>9.0f}{shown}", flush=True)


if __name__ == "__main__":
    main()

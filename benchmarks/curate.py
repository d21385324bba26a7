"""A curated sample of an unbalanced set of images against as many at random: balance, neighbors of rare classes, and
what a network learns from it.

    python benchmarks/curate.py --train "cifar10/train-*.tar" --test cifar10/test.tar [--backbone patches] [--seeds 3]
    python benchmarks/curate.py --train "cifar10/train-*.tar" --test cifar10/test.tar --backbone auto --others 100
        --size 1000 --from auto --epochs 10

Class i of C has `--largest` * (1/100)^(i / (C - 1)) training images, the usual long tail; with `--others` the first
class has `--largest` and every other one so many. Features are those of `deepcluster cluster`; labels are used for
scoring only. Of each sample the table has, as means over the seeds: the images of the smallest class, the entropy of
the classes (1 = equally many) and its deviation, near-duplicates left out, and the accuracy of the 20 nearest images of
the sample, one vote each, for test images of all classes and of the rarest third (with `--others`: of all but the
first).

With `--epochs` a network is trained on each sample by the settings that `deepcluster train` chooses, from scratch or
`--from` trained weights, and on the whole pool for as many steps. Its features are scored likewise, with the deviation
over the seeds, but all networks have the same neighbors: as many other test images of every class. The first row is the
network before training.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from deepcluster.clustering.curation import share_out
from deepcluster.clustering.metrics import size_stats
from deepcluster.clustering.whitening import Whitening
from deepcluster.config import AUTO, TrainRun, override
from deepcluster.data.arrays import Arrays
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine import train as engine
from deepcluster.engine.build import draw_backbone
from deepcluster.engine.curate import curate_features
from deepcluster.engine.describe import open_describer, reduced_width
from deepcluster.engine.log import Screen
from deepcluster.engine.model import load_initial_weights
from deepcluster.engine.patches import fit_patches
from deepcluster.features.extract import extract
from deepcluster.features.neighbors import score_features
from deepcluster.models.backbone import Backbone
from deepcluster.models.pretrained import choose_backbone, is_fitted
from deepcluster.presets.choose import choose

SAMPLES: dict[str, dict[str, Any] | None] = {
    "random": None,
    "k-means, not resampled": {"resamplings": 0},
    "curate": {},
    "curate, near-duplicates kept": {"duplicates": 2.0},
    "balanced by labels": None,
    "whole pool": None,
}
"""Sample -> arguments of `curate_features`. By labels is the best that curation can do."""


def part(source: ImageSource, counts: np.ndarray, skip: int = 0) -> Arrays:
    """So many images of each class (C,), the first ones or those behind `skip`."""
    assert source.labels is not None
    index = np.concatenate([np.flatnonzero(source.labels == c)[skip:][:count] for c, count in enumerate(counts)])
    images = (Image.fromarray(source.read(k)) for k in index)
    squares = np.stack([np.asarray(ImageOps.fit(image, (min(image.size),) * 2)) for image in images])
    return Arrays(f"{len(index)} of {source.name}", squares, source.labels[index])


def drawn(
    title: str,
    train: Arrays,
    x: np.ndarray,
    size: int,
    seed: int,
    scratch: Path,
    width: int,
    clusters: list[int] | None,
) -> tuple[np.ndarray, int]:
    """(M,) images of a sample, and how many near-duplicates were left out."""
    random = np.random.default_rng(seed).permutation(len(train))
    if title == "whole pool":
        return np.arange(len(train)), 0
    if title == "balanced by labels":
        share = share_out(size, np.bincount(train.labels))
        return np.concatenate([random[train.labels[random] == c][:count] for c, count in enumerate(share)]), 0
    how = SAMPLES[title]
    if how is None:
        return random[:size], 0
    whiten = Whitening(width, whiten=False)
    found = curate_features(x, size, scratch=scratch, seed=seed, whiten=whiten, clusters=clusters, **how)
    return found.index, int(found.duplicate.sum())


def knn(bank: np.ndarray, own: np.ndarray, asked: np.ndarray, answers: np.ndarray, rare: np.ndarray) -> list[float]:
    """Accuracy on all that are asked for, and on the rare ones."""
    return [
        dict(score_features(bank, own, asked[which], answers[which], k=(20,), classes=int(answers.max()) + 1))[
            "knn20_majority_top1"
        ]
        for which in (np.ones(len(asked), bool), rare)
    ]


def settings(images: Arrays, start: str | None, side: int | None, epochs: int, seed: int) -> TrainRun:
    """What `deepcluster train` chooses for the images."""
    run = replace(choose(images, image_size=side, device="cpu", from_=start).run, minutes=None)
    return override(run, {"epochs": epochs, "seed": seed, "device": "cpu"})


def untrained(run: TrainRun) -> Backbone:
    """The network that a run begins with."""
    backbone = draw_backbone(run)
    if run.backbone.weights:
        load_initial_weights(run.backbone.weights, [backbone])
    return backbone.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--backbone", default="patches", help="as for deepcluster cluster")
    parser.add_argument("--largest", type=int, default=5000, help="training images of the first class")
    parser.add_argument("--others", type=int, help="training images of each of the others; by default a long tail")
    parser.add_argument("--size", type=int, default=2000, help="images of a sample")
    parser.add_argument("--test-images", type=int, default=200, help="of each class; as many again are neighbors")
    parser.add_argument("--epochs", type=int, default=0, help="of training on each sample; 0 = do not train")
    parser.add_argument("--from", dest="start", help="weights that training begins with, as for deepcluster train")
    parser.add_argument("--side", type=int, help="pixels that the trained network sees; by default what train chooses")
    parser.add_argument("--samples", nargs="+", choices=list(SAMPLES), default=list(SAMPLES), metavar="SAMPLE")
    parser.add_argument("--clusters", type=int, nargs="+", help="as for deepcluster curate")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    opened, test_source = open_images(args.train), open_images(args.test)
    classes = len(opened.classes)
    counts = np.round(args.largest * 0.01 ** (np.arange(classes) / max(1, classes - 1))).astype(int)
    if args.others:
        counts[1:] = args.others
    each = np.full(classes, args.test_images)
    train, test = part(opened, counts), part(test_source, each)
    rare = test.labels >= (1 if args.others else classes - max(1, classes // 3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone, subject = open_describer(train, folder, args.backbone, image_size=None, device="cpu", screen=Screen())
        if is_fitted(backbone):
            fit_patches(subject.backbone, load_pixels(train, short_side=None, cache_gb=1))
        x, y = subject.features(train), subject.features(test)
        start = choose_backbone(args.start)[0] if args.start == "auto" else args.start
        bank = part(test_source, each, skip=args.test_images)

        def judged(network: Backbone) -> list[float]:
            here, there = (
                extract(network, load_pixels(images, short_side=network.image_size, cache_gb=1))[1]
                for images in (bank, test)
            )
            return knn(here, bank.labels, there, test.labels, rare)

        print(f"{len(train):,} images, {np.bincount(train.labels).tolist()} of the classes; samples of {args.size:,}")
        print(f"{'':<30}{'smallest':>9}{'entropy':>17}{'repeats':>9}{'kNN':>8}{'rare':>8}", end="")
        print("  trained: kNN        rare" if args.epochs else "")
        if args.epochs:
            run = settings(train, start, args.side, args.epochs, 0)
            print(
                f"{'not trained':<81}" + "".join(f"{score:>8.1%}      " for score in judged(untrained(run))), flush=True
            )
        for title in args.samples:
            rows = []
            for seed in range(args.seeds):
                index, repeats = drawn(title, train, x, args.size, seed, folder, reduced_width(subject), args.clusters)
                own = train.labels[index]
                row = [
                    np.bincount(own, minlength=classes).min(),
                    size_stats(own, classes)["size_entropy"],
                    repeats,
                    *knn(x[index], own, y, test.labels, rare),
                ]
                if args.epochs:
                    images = Arrays(f"sample of {len(index)}", train.images[index])
                    epochs = max(1, round(args.epochs * args.size / len(index)))
                    run = settings(images, start, args.side, epochs, seed)
                    quiet = Screen(quiet=True)
                    made = engine.train(run, images, folder / "run", preset=AUTO, overwrite=True, screen=quiet)
                    row += judged(made.backbone)
                rows.append(row)
            mean, spread = np.mean(rows, 0), np.std(rows, 0)
            shown = f"{mean[0]:>9.1f}{mean[1]:>9.3f} ± {spread[1]:.3f}{mean[2]:>9.0f}{mean[3]:>8.1%}{mean[4]:>8.1%}"
            shown += "".join(f"{s:>8.1%} ± {100 * d:.1f}" for s, d in zip(mean[5:], spread[5:], strict=True))
            print(f"{title:<30}{shown}", flush=True)


if __name__ == "__main__":
    main()

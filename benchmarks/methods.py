"""The methods beside each other on the same images: curves of the downstream measure and of the clusters, one picture.

    python benchmarks/methods.py --train "cifar10/train-*.tar" --test cifar10/test.tar --out runs/methods [--only NAME]
    python benchmarks/methods.py --train "imagenette112/train-*.tar" --test imagenette112/val.tar \
        --out runs/imagenette --image-size 64 --view-size 48 --k 500 --epochs 16

Trains small presets on the first 20,000 training images (or all, where there are fewer), cut to their middle square,
with the same network, views and optimizer, and follows the kNN score of 5,000 training images after every epoch.
Runs that are there already are not trained again. Then scores 5,000 test images by their 20 nearest training images and
by logistic regression on the features, compares clusters with the classes, and asks how often a turned image stays in
its cluster. Prints a table and writes OUT/methods.png and OUT/methods.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deepcluster.clustering.metrics import nmi
from deepcluster.config import override
from deepcluster.data.arrays import Arrays
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.engine import run as runs
from deepcluster.engine import run_folder
from deepcluster.engine import train as engine
from deepcluster.engine.log import Screen
from deepcluster.features.neighbors import score_features
from deepcluster.presets import find_preset

matplotlib.use("Agg")
Images = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Lane:
    """One run: a preset, what is changed in it, and the run it begins from, which is then gone on with for a shorter
    time than a whole run takes."""

    preset: str
    values: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    part: float = 1


LANES = {
    "deepcluster": Lane("deepcluster-convnet"),
    "deepcluster, longer": Lane("deepcluster-convnet", {"lr": 0.001}, "deepcluster", 2 / 3),
    "odc": Lane("odc-convnet"),
    "odc from deepcluster": Lane(
        "odc-convnet", {"k": 500, "lr": 0.001, "method.start": "whitened"}, "deepcluster", 2 / 3
    ),
    "rotations only": Lane("rotnet-convnet"),
    "clusters only": Lane("deepercluster-convnet", {"rotations": False}),
    "both": Lane("deepercluster-convnet"),
    "both, from rotations": Lane("deepercluster-convnet", {}, "rotations only"),
}


def first(source: str, count: int, side: int) -> Images:
    """(N, side, side, 3) uint8, the middle square of each of the first images, and (N,) labels."""
    opened = open_images(source)
    assert opened.labels is not None
    count = min(count, len(opened))
    return np.stack([square(opened.read(index), side) for index in range(count)]), opened.labels[:count]


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of (H, W, 3), (side, side, 3)."""
    short = min(image.shape[:2])
    top, left = (image.shape[0] - short) // 2, (image.shape[1] - short) // 2
    cut = image[top : top + short, left : left + short]
    return cut if short == side else np.asarray(Image.fromarray(cut).resize((side, side), Image.Resampling.BILINEAR))


def describe(run: runs.Run, images: np.ndarray) -> np.ndarray:
    """(M, D) features, the mean-pooled map, at unit length."""
    pixels = load_pixels(open_images(images), short_side=None, cache_gb=1)
    x = run.model.features(pixels, tap="pool" if run.config["settings"]["backbone"]["name"] == "convnet" else None)[1]
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-9)


def judge(run: runs.Run, bank: Images, test: Images) -> dict[str, float]:
    """Scores of a run, fractions of 1."""
    here, there = describe(run, bank[0]), describe(run, test[0])
    scores = dict(score_features(here, bank[1], there, test[1], k=(20,), classes=int(bank[1].max()) + 1))
    scale = StandardScaler().fit(here)
    linear = LogisticRegression(C=0.01, max_iter=200).fit(scale.transform(here), bank[1])
    upright = run.assign(test[0]).cluster
    turned = [run.assign(np.ascontiguousarray(np.rot90(test[0], turn, (1, 2)))).cluster for turn in (1, 2, 3)]
    last = run.metrics[-1]
    return {
        "knn": scores["knn20_majority_top1"],
        "linear": float(linear.score(scale.transform(there), test[1])),
        "nmi_labels": nmi(test[1], upright),
        "nmi_turned": float(np.mean([nmi(test[1], clusters) for clusters in turned])),
        "stays": float(np.mean([clusters == upright for clusters in turned])),
        "changed": last.get("changed", last.get("reassigned")) or float("nan"),
        **{name: last[name] for name in ("accuracy_super", "accuracy_sub", "accuracy_joint") if name in last},
    }


def draw(curves: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """kNN, NMI with the labels and the share of changed labels, epoch by epoch."""
    from matplotlib import pyplot as plt

    panels = (
        ("kNN of training images (%)", lambda row: row.get("watched"), 100),
        ("NMI of clusters and classes", lambda row: row.get("nmi_labels"), 1),
        ("labels that changed in the epoch (%)", lambda row: row.get("changed", row.get("reassigned")), 100),
    )
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), constrained_layout=True)
    for axis, (title, value, scale) in zip(axes, panels, strict=True):
        for name, rows in curves.items():
            points = [(row["epoch"] + 1, scale * value(row)) for row in rows if value(row) is not None]
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3.5, label=name)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=12, help="of a run from scratch")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--view-size", type=int, default=24)
    parser.add_argument("--k", type=int, help="clusters of DeepCluster; by default the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of each run; take another --out for another")
    parser.add_argument("--only", nargs="*", choices=list(LANES), default=list(LANES))
    chosen = parser.parse_args()
    bank, test = (
        first(source, count, chosen.image_size)
        for source, count in ((chosen.train, chosen.images), (chosen.test, chosen.test_images))
    )
    source = Arrays(f"first-{len(bank[0])}", *bank)
    curves: dict[str, list[dict[str, Any]]] = {}
    table: dict[str, dict[str, float]] = {}
    for name in chosen.only:
        lane, out = LANES[name], chosen.out / name.replace(" ", "-").replace(",", "")
        if not (out / "run.json").exists() or "finished" not in run_folder.read_config(out):
            print(f"== {name}", flush=True)
            values = {
                "watch": "knn",
                "epochs": max(round(chosen.epochs * lane.part), 1),
                "image_size": chosen.image_size,
                "view_size": chosen.view_size,
                "seed": chosen.seed,
                **lane.values,
            }
            if chosen.k and lane.preset == "deepcluster-convnet":
                values["k"] = chosen.k
            if lane.start:
                values["backbone.weights"] = str(chosen.out / lane.start.replace(" ", "-") / "model.safetensors")
            run = override(find_preset(lane.preset).run, values)
            engine.train(run, source, out, preset=lane.preset, overwrite=True, screen=Screen())
        done = runs.load_run(out)
        curves[name], table[name] = done.metrics, judge(done, bank, test)
        print(f"{name:22s}" + "  ".join(f"{key} {value:.3f}" for key, value in table[name].items()), flush=True)
    draw(curves, chosen.out / "methods.png")
    (chosen.out / "methods.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

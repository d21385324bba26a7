"""Detection and segmentation of blood cells from several networks, each at its own best learning rate.

    python benchmarks/transfer.py BCCD [--networks NAME=NETWORK ...] [--tasks detection segmentation] [--rates RATE ...]
        [--seeds 3] [--iterations 300] [--size 192] [--train all] [--out FOLDER]

BCCD is the set as a PASCAL VOC folder or .tar: 205 images to learn from, 87 to choose the rate on, 72 to score, red
and white cells and platelets. A NETWORK is a run folder, a file of weights or a backbone by name; `untrained:` before
it gives the same network before it learned. Every network is trained with seed 0 at each of the rates; at the one that
is best on val, with every seed, and scored on test. A seed draws the new layers and the order of the images. Results
of this NAME and these settings that are there already are not made again. Prints a Markdown table: mean and standard
deviation of the seeds.

BCCD has boxes and no masks, so that `segmentation` is of ellipses: the class of a pixel is that of the ellipse which
fills .85 of a box, the smaller box first where several do; the rest of the ellipse which fills the box is void, since
nobody marked where the cell ends; all else is background. What learns them is not compared with outlines of cells.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.annotation import VOID
from deepcluster.evaluate.voc.dataset import open_voc
from deepcluster.evaluate.voc.detection import voc_detection
from deepcluster.evaluate.voc.segmentation import voc_segmentation

UNTRAINED = "untrained:"
INNER = 0.85
"""Of the sides of a box, what is certainly cell along the axes."""
SCORE = {"detection": "map", "segmentation": "miou"}
RATES = {"detection": (0.003, 0.01, 0.03), "segmentation": (0.01, 0.03, 0.1)}


def ellipse_masks(source: str, size: int, out: Path) -> None:
    """A VOC set for segmentation of the images and boxes of another, the shorter side `size` pixels."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        voc = open_voc(source, split, "detection")
        for index, name in enumerate(voc.ids):
            image = Image.fromarray(voc.images.read(index))
            scale = size / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
            mask = Image.new("L", image.size, 0)
            draw = ImageDraw.Draw(mask)
            objects = voc.objects[index]
            boxes = objects.boxes * scale
            sides = boxes[:, 2:] - boxes[:, :2]
            for box in boxes:
                draw.ellipse(tuple(box), fill=VOID)
            for at in np.argsort(-sides.prod(1)):
                edge = sides[at] * (1 - INNER) / 2
                draw.ellipse((*boxes[at, :2] + edge, *boxes[at, 2:] - edge), fill=int(objects.labels[at]) + 1)
            image.save(out / "JPEGImages" / f"{name}.png")
            mask.save(out / "SegmentationClass" / f"{name}.png")
        (out / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(voc.ids))
    (out / "class_names.txt").write_text("\n".join(voc.classes))  # last: the set is whole


def one_run(task: str, network: str, given: argparse.Namespace, rate: float, seed: int, split: str) -> dict[str, float]:
    """Scores of one network that learned at one rate with one seed, made or read."""
    name, _, what = network.partition("=")
    settings = f"{task}-{given.size}px-{given.iterations}-{given.train}"
    folder = given.out / settings / name / f"{split}-{rate:g}-{seed}"
    file = folder / f"voc-{task}.json"
    if not file.exists():
        untrained = what.startswith(UNTRAINED)
        subject = load_subject(what.removeprefix(UNTRAINED), untrained=untrained, results=folder)
        screen = Screen(stderr=True)
        size, common = given.size, {"train": given.train, "iterations": given.iterations, "lr": rate, "seed": seed}
        if task == "detection":
            # platelets are a twelfth, red cells a fifth, white cells two fifths of the shorter side
            sides = tuple(round(size * share) for share in (1 / 12, 1 / 6, 1 / 3))
            result = voc_detection(
                subject, given.data, split="train", test_split=split, min_size=size, max_size=2 * size, anchors=sides,
                regions=64, batch=2, drops=(given.iterations * 3 // 4,), screen=screen, **common,
            )  # fmt: skip
        else:
            masks = given.out / f"ellipses-{size}"
            if not (masks / "class_names.txt").exists():
                ellipse_masks(given.data, size, masks)
            result = voc_segmentation(
                subject, masks, test_split=split, crop=size * 2 // 3, scale=(0.75, 1.25), batch=4,
                drops=(given.iterations * 3 // 4,), screen=screen, **common,
            )  # fmt: skip
        result.save(folder)
    scores: dict[str, float] = json.loads(file.read_text())["scores"]
    return scores


def _on_val(task: str, network: str, given: argparse.Namespace, rate: float) -> float:
    """The score that the rate is chosen by; 0 where it is too high for a finite loss."""
    try:
        return one_run(task, network, given, rate, 0, "val")[SCORE[task]]
    except DeepClusterError as error:
        if "not finite" not in str(error):
            raise
        print(error, flush=True)
        return 0.0


def row(task: str, network: str, given: argparse.Namespace) -> dict[str, str]:
    """Column -> cell, of one network."""
    on_val = {rate: _on_val(task, network, given, rate) for rate in given.rates or RATES[task]}
    best = max(on_val, key=lambda rate: on_val[rate])
    draws = [one_run(task, network, given, best, seed, "test") for seed in range(given.seeds)]
    cells = {
        "network": network.partition("=")[0],
        "rate": f"{best:g}",
        "on val, by rate": " ".join(f"{100 * score:.1f}" for score in on_val.values()),
    }
    for name in draws[0]:
        values = [100 * draw[name] for draw in draws]
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells[name] = f"{statistics.fmean(values):.1f}{deviation}"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--networks", nargs="+", default=["random=untrained:convnet"], metavar="NAME=NETWORK")
    parser.add_argument("--tasks", nargs="+", choices=list(SCORE), default=list(SCORE))
    parser.add_argument("--rates", type=float, nargs="+", help="by default three, other ones for each task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--size", type=int, default=192, help="of the shorter side, in pixels")
    parser.add_argument("--train", choices=("all", "fc6-8"), default="all")
    parser.add_argument("--out", type=Path, default=Path("evaluations/transfer"))
    given = parser.parse_args()
    for task in given.tasks:
        rows = []
        for network in given.networks:
            rows.append(row(task, network, given))
            print(rows[-1], flush=True)
        print(f"\n{task}, {given.iterations} steps\n\n| " + " | ".join(rows[0]) + " |")
        print("|---" * len(rows[0]) + "|")
        for cells in rows:
            print("| " + " | ".join(cells.get(name, "-") for name in rows[0]) + " |")


if __name__ == "__main__":
    main()

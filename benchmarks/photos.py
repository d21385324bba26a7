"""Groups of photos of many kinds: what this package makes of a mixed folder, beside the plain ways, in one table.

    python benchmarks/photos.py --data ../shared/data --out runs/photos [--minutes 10] [--seeds 3] [--rows pixels ...]

The folder is made from Imagenette's validation images, CIFAR-10's test images, COIL-100 and the cells of BCCD (cut out
along their boxes): about 1,400 files in 73 class folders, which are used for scoring only. Every row is scored on each
of the four parts and on the whole: AMI of its groups with the classes, where it is told the number of classes, and
kNN: the share of images of which most of the five nearest others (cosine) are of the same class. Seconds are those of
the whole folder with the first seed, from files to groups. Scores are means over the seeds, with the standard deviation
of the whole's AMI.

Rows: `pixels` (32 x 32), `histogram` (4 x 4 x 4 colors), `untrained` (the pretrained backbone with random weights),
`scikit-learn` (its KMeans on the pretrained backbone's L2-normalized features), `cluster` with each algorithm and with
the number of clusters chosen, `train` (from nothing, one run on the whole folder), `train --from` (from the backbone).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

import deepcluster as dc
from deepcluster.data.open import open_images
from deepcluster.engine.cluster import cluster_images
from deepcluster.engine.describe import FEATURES, fitting_size
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_subject
from deepcluster.features.table import open_table
from deepcluster.models.pretrained import choose_backbone

Row = Callable[[str, int, int], tuple[np.ndarray, np.ndarray]]
"""Of a folder, a number of groups and a seed: (N,) groups and (N, D) features."""
QUIET = Screen(quiet=True)
NEIGHBORS = 5


def make_folder(data: Path, out: Path, each: int = 40) -> None:
    """The four parts of the mixed folder, `each` images of a class; parts that are there are left."""
    rng = random.Random(0)

    def of_classes(part: str, tar: Path, count: int, classes: int, kind: Callable[[str], str]) -> None:
        if (out / part).exists() or not tar.exists():
            return
        with tarfile.open(tar) as archive:
            members: dict[str, list[tarfile.TarInfo]] = {}
            for member in archive.getmembers():
                if member.isfile():
                    members.setdefault(kind(member.name), []).append(member)
            for name in sorted(members)[:classes]:
                for member in rng.sample(members[name], min(count, len(members[name]))):
                    content = archive.extractfile(member)
                    assert content is not None
                    write(part, name, Path(member.name).name, content.read())

    def write(part: str, name: str, file: str, content: bytes) -> None:
        place = out / part / name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    of_classes("imagenette", data / "imagenette112/val.tar", each, 10, lambda path: path.split("/")[-2])
    of_classes("cifar", data / "cifar10/test.tar", each, 10, lambda path: path.split("/")[-2])
    of_classes("coil", data / "retrieval/coil100-60deg.tar", 6, 50, lambda path: Path(path).name.split("__")[0])
    cells = data / "voc/bccd.tar"
    if cells.exists() and not (out / "cells").exists():
        with tarfile.open(cells) as archive:
            for name, crops in sorted(_cells(archive).items()):
                for number, crop in enumerate(rng.sample(crops, min(5 * each // 2, len(crops)))):
                    content = io.BytesIO()
                    crop().save(content, "PNG")
                    write("cells", name, f"{number:04d}.png", content.getvalue())


def _cells(archive: tarfile.TarFile) -> dict[str, list[Callable[[], Image.Image]]]:
    """Class -> what cuts each of its cells out of its image."""
    found: dict[str, list[Callable[[], Image.Image]]] = {}
    for member in archive.getmembers():
        if member.name.endswith(".xml"):
            tree = archive.extractfile(member)
            assert tree is not None
            photo = member.name.replace("Annotations", "JPEGImages").replace(".xml", ".jpg")
            for thing in ET.parse(tree).getroot().iter("object"):
                box = thing.find("bndbox")
                assert box is not None
                x0, y0, x1, y1 = (int(box.findtext(side) or 0) for side in ("xmin", "ymin", "xmax", "ymax"))
                if min(x1 - x0, y1 - y0) >= 12:  # two boxes are empty

                    def crop(photo: str = photo, place: tuple[int, ...] = (x0, y0, x1, y1)) -> Image.Image:
                        content = archive.extractfile(photo)
                        assert content is not None
                        return Image.open(content).convert("RGB").crop(place)  # type: ignore[arg-type]

                    found.setdefault(thing.findtext("name") or "", []).append(crop)
    return found


def small_images(folder: str, side: int) -> np.ndarray:
    source = open_images(folder)
    return np.stack([
        np.asarray(Image.fromarray(source.read(index)).resize((side, side))) for index in range(len(source))
    ])  # fmt: skip


def k_means(features: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return KMeans(k, n_init=10, random_state=seed).fit_predict(features), features


def pixels(folder: str, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return k_means(small_images(folder, 32).reshape(-1, 32 * 32 * 3) / 255.0, k, seed)


def histogram(folder: str, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    bins = small_images(folder, 64) // 64
    codes = bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]
    counts = np.stack([np.bincount(code.ravel(), minlength=64) for code in codes])
    return k_means(np.sqrt(counts / counts.sum(1, keepdims=True)), k, seed)


def backbone(untrained: bool) -> Row:
    """scikit-learn's KMeans on L2-normalized features of the backbone that `auto` is."""

    found: dict[str, np.ndarray] = {}

    def row(folder: str, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if folder not in found or untrained:  # the pretrained network has no seed
            name, source = choose_backbone()[0], open_images(folder)
            subject = load_subject(name, image_size=fitting_size(source, name), untrained=untrained, seed=seed)
            found[folder] = normalize(subject.features(source))
        return k_means(found[folder], k, seed)

    return row


def cluster(out: Path, algorithm: str, auto: bool = False, backbone: str = "auto") -> Row:
    """`deepcluster cluster`, in a run folder for each folder of images, whose features serve for further seeds."""

    def row(folder: str, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        run = cluster_images(
            folder,
            out / Path(folder).name,
            backbone=backbone,
            k=None if auto or algorithm == "pic" else k,
            algorithm=algorithm,
            seed=seed,
            overwrite=True,
            screen=QUIET,
        )
        return run.assignment, run.embed(open_table(run.folder / FEATURES)[0][:])

    return row


def trained(out: Path, minutes: float, start: str | None) -> Row:
    """`deepcluster train --minutes`, and k-means on the features of its network."""

    def row(folder: str, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        values: dict[str, str] = {} if start is None else {"from_": start}
        run = dc.train(data=folder, out=out, minutes=minutes, overwrite=True, quiet=True, seed=seed, **values)  # type: ignore[arg-type]
        return k_means(run.embed(run.features(folder)), k, seed)

    return row


def knn(features: np.ndarray, labels: np.ndarray) -> float:
    nearest = KNeighborsClassifier(NEIGHBORS, metric="cosine").fit(features, labels)
    neighbors = nearest.kneighbors(return_distance=False)  # of each row, itself left out
    votes = np.stack([np.bincount(row, minlength=labels.max() + 1) for row in labels[neighbors]])
    return float((votes.argmax(1) == labels).mean())


def purity(groups: np.ndarray, labels: np.ndarray) -> float:
    return float(sum(np.bincount(labels[groups == group]).max() for group in np.unique(groups)) / len(labels))


def score(row: Row, folder: Path, parts: list[str], seed: int, *, once: bool) -> dict[str, float]:
    """Scores of one row with one seed; `once`: one run on the whole, whose features serve for the parts."""
    scores: dict[str, float] = {}
    for part in ["", *parts]:
        source = open_images(str(folder / part))
        labels, k = np.asarray(source.labels), len(source.classes)
        if not part or not once:
            began = time.perf_counter()
            groups, features = row(str(folder / part), k, seed)
            seconds = time.perf_counter() - began
            if not part:
                everything, paths = features, [source.path(index) for index in range(len(source))]
                scores["seconds"] = seconds
        else:
            mine = np.array([path.startswith(f"{part}/") for path in paths])
            groups, features = k_means(everything[mine], k, seed)
        name = part or "all"
        scores[f"{name} AMI"] = float(adjusted_mutual_info_score(labels, groups))
        scores[f"{name} purity"], scores[f"{name} kNN"] = purity(groups, labels), knn(features, labels)
        scores[f"{name} groups"] = len(np.unique(groups))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="what the folder is made from")
    parser.add_argument("--images", type=Path, help="score this folder of class folders, or of such folders, instead")
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--each", type=int, default=40, help="images of each class")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="*", help="names of rows; all by default")
    given = parser.parse_args()
    images = given.images or given.out / "images"
    if given.images is None:
        make_folder(given.data, images, given.each)
    if not images.is_dir():
        raise SystemExit(f"{given.data} holds none of the image sets: name another folder by --data or --images.")
    parts = sorted(part.name for part in images.iterdir() if any(each.is_dir() for each in part.glob("*")))
    run = given.out / "run"
    rows: dict[str, tuple[Row, bool]] = {
        "pixels": (pixels, False),
        "histogram": (histogram, False),
        "untrained": (backbone(True), False),
        "scikit-learn": (backbone(False), False),
        "cluster": (cluster(run / "kmeans", "kmeans"), False),
        "cluster auto": (cluster(run / "auto", "kmeans", auto=True), False),
        "temi": (cluster(run / "temi", "temi"), False),
        "hierarchical": (cluster(run / "hierarchical", "hierarchical"), False),
        "pic": (cluster(run / "pic", "pic"), False),
        "patches": (cluster(run / "patches", "kmeans", backbone="patches"), False),
        "train": (trained(run / "train", given.minutes, None), True),
        "train --from": (trained(run / "from", given.minutes, "auto"), True),
    }
    names = given.rows or list(rows)
    table = Table(
        "row", *(f"{part} {what}" for part in ["all", *parts] for what in ("AMI", "kNN")), "purity", "seconds"
    )
    for name in names:
        row, once = rows[name]
        seeds = [score(row, images, parts, seed, once=once) for seed in range(given.seeds)]
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"{name.replace(' ', '')}.json").write_text(json.dumps(seeds, indent=1))
        mean = {key: float(np.mean([each[key] for each in seeds])) for key in seeds[0]}
        spread = float(np.std([each["all AMI"] for each in seeds]))
        cells = [f"{mean[f'{part} AMI']:.3f}" for part in ["all", *parts]]
        cells[0] += f" ±{spread:.3f}"
        both = [
            text
            for part, ami in zip(["all", *parts], cells, strict=True)
            for text in (ami, f"{mean[f'{part} kNN']:.3f}")
        ]
        table.add_row(name, *both, f"{mean['all purity']:.3f}", f"{seeds[0]['seconds']:.0f}")
        print(name, {key: round(value, 3) for key, value in mean.items()}, flush=True)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()

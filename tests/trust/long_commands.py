"""The long commands that are killed in `test_kills`, and what they are given."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from deepcluster.cli.main import main
from deepcluster.data import cache as pixel_cache
from deepcluster.data.open import open_images
from evaluate.voc.make import SIDE, make_shapes
from explore.browse import Site

METHODS = (
    "tiny-deepcluster", "tiny-deepcluster-pic", "tiny-odc", "tiny-deepcluster-v2", "tiny-swav", "tiny-deepercluster",
    "tiny-rotnet",
)  # fmt: skip
IMAGES = 96
EDITS = 60
HELD = ["--holdout", "0.2"]
PROTOCOLS = {
    "knn": [], "clusters": [], "linear": HELD, "mlp": HELD, "low-shot": [*HELD, "--shots", "3"],
    "retrieval": ["--features", "rmac", "--whiten-on", "same", "--long-side", "32", "--levels", "2", "--dims", "8"],
}  # fmt: skip
SPLITS = ["--split", "train", "--test-split", "val"]
TUNED = ["--mode", "all", "--iterations", "30", "--batch-size", "4", "--crops", "center"]
BOXES = f"--iterations 8 --batch 2 --min-size {SIDE} --max-size {SIDE} --regions 16 --anchors 12 20 --draws 2".split()
VOC = {
    "voc-classification": SPLITS, "voc-classification --mode all": [*SPLITS, *TUNED],
    "voc-detection": [*SPLITS, *BOXES],
    "voc-segmentation": f"--crop {SIDE} --iterations 12 --batch 4 --draws 2".split(),
}  # fmt: skip
PICTURES = {"clusters": [], "activations": ["--steps", "20"], "map": [], "top-images": []}
SEVERAL = ("tiny-deepcluster", "tiny-odc", "tiny-deepercluster")


Work = list[str] | Callable[[], object]


@dataclass
class Long:
    """A long command: what it is given first, and again after each kill."""

    name: str
    first: Work
    again: list[str] | None = None  # where a run folder is there already
    before: str = ""  # what is copied into the place first


def edit() -> None:
    """A person edits in the explorer of the run, from where things stand, and writes down what is shown after each."""
    journal, acknowledged, notes = Path("run/explore/edits.jsonl"), Path("acknowledged"), Path("shown.jsonl")
    wrong: list[BaseException] = []

    def put(file: Path, text: str) -> None:  # in one piece, whenever it ends
        with file.open("ab", buffering=0) as handle:
            handle.write(text.encode())

    def lines(file: Path) -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    def shown(site: Site) -> str:
        clusters = site.get("/api/clusters?hidden=1&limit=500")["rows"]
        groups = np.frombuffer(site.ask("GET", "/api/map/groups")[2], "<i4").tolist()
        return json.dumps([groups, sorted((row["id"], row["name"]) for row in clusters), site.get("/api/selection")])

    def step(site: Site, number: int) -> None:
        one, other = number % IMAGES, 7 * number % IMAGES
        mine, others = (site.get(f"/api/images/{image}")["cluster"] for image in (one, other))
        kinds: list[dict[str, object]] = [
            {"op": "select", "images": [one, other], "on": True},
            {"op": "move", "images": [one, other], "to": None},
            {"op": "rename", "cluster": mine, "name": f"number {number}"},
            {"op": "hide", "clusters": [others], "hidden": number % 4 > 0},
            {"op": "move", "images": "selection", "to": mine},
        ]
        kind = number % 7
        path = "/api/edits" if kind < 5 else "/api/undo" if kind == 5 else "/api/redo"
        status, answer = site.post(path, kinds[kind] if kind < 5 else {})
        assert status == 200, answer

    def look(page: str) -> bool:
        try:
            address = re.search(r'url=([^"]+)', Path(urlparse(page).path).read_text())
            assert address
            site = Site(address[1])
            number = max(0, len(lines(journal)) - 1)
            assert number >= len(lines(acknowledged)), "an edit is lost"
            while True:
                if len(lines(notes)) > number:
                    assert lines(notes)[number] == shown(site)
                else:
                    put(notes, shown(site) + "\n")
                if number == EDITS:
                    break
                step(site, number)
                put(acknowledged, "\n")
                number += 1
            acknowledged.unlink(missing_ok=True)
        except BaseException as error:
            wrong.append(error)
        os.kill(os.getpid(), signal.SIGINT)
        return True

    webbrowser.open = look  # type: ignore[assignment]
    assert main(["explore", "run", "--port", "0", "--open"]) == 0
    if wrong:
        raise wrong[0]


def make_images(folder: Path) -> None:
    """Digits as pictures, in archives, in parquet files and as an array, and photos for VOC."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for k in range(IMAGES):
        file = folder / "photos" / str(digits.target[k]) / f"{k:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 15.9).astype(np.uint8)).resize((16, 16)).save(file)
    make_shapes(folder / "voc")
    np.save(folder / "many.npy", np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, 3))
    photos = sorted(folder.glob("photos/*/*.png"))
    for part in range(12):
        with tarfile.open(folder / f"{part:02d}.tar", "w") as archive:
            for file in photos:
                archive.add(file, f"{file.parent.name}/{part}-{file.name}")
    for part in range(2):
        content = [file.read_bytes() for file in photos[part::2]]
        parquet.write_table(pyarrow.table({"image": content}), folder / f"{part}.parquet", row_group_size=8)


def commands(made: Path) -> list[Long]:
    """All of them, on the images and the run in `made`."""
    data, run, table = (str(made / name) for name in ("photos", "run", "table.npy"))
    network = ["--backbone", f"{run}/model.safetensors"]
    return [
        *_training(data, run),
        *_tables(made, data, run, table, network),
        *(
            Long(f"evaluate {name}", ["evaluate", "run", name.split()[0], "--data", images, *more], before="run")
            for images, protocols in ((data, PROTOCOLS), (str(made / "voc"), VOC))
            for name, more in protocols.items()
        ),
        Long("assign", ["assign", run, "--data", data, "--out", "a.csv"]),
        Long("report", ["report", "run"], before="run"),
        *(
            Long(f"visualize {name}", ["visualize", "run", name, *more], before="run")
            for name, more in PICTURES.items()
        ),
        *(
            Long(f"export {form}", ["export", run, "--out", out, "--format", form])
            for form, out in (("safetensors", "a.safetensors"), ("onnx", "a.onnx"), ("huggingface", "shared"))
        ),
        Long("explore", edit, before="run"),
        *(
            Long(f"explore --export {name}", ["explore", "run", "--export", name], before="run")
            for name in ("a.csv", "a.json", "folders", "a.parquet")
        ),
    ]


def _training(data: str, run: str) -> list[Long]:
    options = f"--data {data} --epochs 4 --batch-size 32 --image-size 12 --save-minutes 0.001 --keep-every 2 --out run"
    found, resume, two = [], ["train", "--resume", "run"], ["--processes", "2"]
    for preset in METHODS:
        more = [] if preset in ("tiny-deepcluster-pic", "tiny-rotnet", "tiny-deepercluster") else ["--method.k", "8"]
        whiten = ["--method.whiten", "16"] if preset in METHODS[:2] else []
        train = ["train", preset, *options.split(), *more, *whiten]
        found.append(Long(preset, train, resume))
        if preset in SEVERAL:
            found.append(Long(f"two processes of {preset}", [*train, *two], [*resume, *two]))
        if preset == METHODS[0]:
            exact = [*train, "--deterministic", "True", *two]
            found += [
                Long("two processes with --deterministic", exact, [*resume, *two]),
                Long("train --from", [*train, "--from", run], resume),
                Long("train --overwrite", [*train, "--overwrite"], before="run"),
            ]
    return found


def _tables(made: Path, data: str, run: str, table: str, network: list[str]) -> list[Long]:
    """Cached images, features, clusters of them and curation."""

    def cache() -> None:
        os.environ["DEEPCLUSTER_CACHE"] = "cache"
        pixel_cache.CHUNK = 8
        pixel_cache.load_pixels(
            open_images(data), short_side=None, cache_gb=1, workers=1, directory=Path("cache"), small=0
        )

    many, ray = str(made / "many.npy"), ["--engine", "ray"]
    grouped = ["cluster", data, "--out", "groups", "--k", "6"]
    curated = ["--clusters", "12", "4", "--resamplings", "2"]
    parts = ["features", run, "--data", many, "--out", "parts", "--parts", "5"]
    of_table = {
        "kmeans": ["--k", "20"], "pic": [], "hierarchical": ["--k", "20"], "temi": ["--k", "20", "--iterations", "100"],
    }  # fmt: skip
    return [
        Long("index", ["index", f"{made}/*.tar", "--out", "manifest.json", "--workers", "1"]),
        Long("cache", cache),
        Long("features", ["features", run, "--data", data, "--out", "table.npy"]),
        Long("features of parquet", ["features", run, "--data", f"{made}/*.parquet", "--out", "table.npy"]),
        Long("features in parts", parts),
        Long("features in parts by ray", [*parts, *ray]),
        Long("cluster images", [*grouped, *network]),
        Long("cluster images by patches", [*grouped, "--backbone", "patches"]),
        Long("cluster images on two processes", [*grouped, *network, "--processes", "2"]),
        Long("cluster images --overwrite", [*grouped[:3], "run", *grouped[4:], *network, "--overwrite"], before="run"),
        *(
            Long(f"cluster {kind}", ["cluster", table, "--algorithm", kind, "--out", "a.csv", "--whiten", "16", *more])
            for kind, more in of_table.items()
        ),
        Long("cluster into parquet", ["cluster", table, "--k", "20", "--out", "a.parquet"]),
        Long("cluster by ray", ["cluster", table, "--k", "20", "--out", "a.parquet", *ray]),
        Long("curate a table", ["curate", table, "--size", "50", "--out", "a.csv", *curated]),
        Long("curate a table by ray", ["curate", table, "--size", "50", "--out", "a.csv", *curated, *ray]),
        Long("curate images", ["curate", data, "--size", "50", "--out", "a.txt", *curated, *network]),
        Long("curate shards", ["curate", f"{made}/*.tar", "--size", "80", "--out", "a.json", *curated, *network]),
    ]

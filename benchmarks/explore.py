"""The explorer with a million images: how long until something is seen, and what a click costs.

    python benchmarks/explore.py [--images 1000000] [--k 10000] [--dim 128] [--browser]

Makes a run folder of that size without training: clusters, distances, centroids, unit vectors, and a source whose
images are colored squares drawn when they are read. Prints the time from the end of the imports to an answering
server, of the first view (state, table and first page of thumbnails, none of them made before), of pages far down, of
searches, edits, neighbors, and the map; with `--browser` also what Chromium needs from the address to the first images.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.clustering.whitening import Whitening
from deepcluster.config import TrainRun, as_dict
from deepcluster.engine.model import Model
from deepcluster.engine.run import Run
from deepcluster.engine.run_folder import FORMAT
from deepcluster.explore import vectors
from deepcluster.explore.explorer import Explorer
from deepcluster.explore.server import listen, serve
from deepcluster.models.zoo import build_backbone


class Squares:
    """N colored squares of 128 pixels."""

    name = "squares"
    classes = tuple(f"class {number}" for number in range(100))

    def __init__(self, images: int) -> None:
        self.images = images
        self.labels: np.ndarray | None = np.random.default_rng(3).integers(0, 100, images)

    def __len__(self) -> int:
        return self.images

    def path(self, index: int) -> str:
        return f"squares/{index:08d}.png"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        side = min(128, short_side or 128)
        return np.full((side, side, 3), (index * 37 % 256, index * 91 % 256, index * 11 % 256), np.uint8)

    def fingerprint(self) -> str:
        return f"squares{self.images}"


class Synthetic(Run):
    """A run that nobody trained."""

    def source(self) -> Any:
        return Squares(self.config["images"])


def make(folder: Path, images: int, k: int, dim: int) -> Run:
    """A run folder with all that the explorer reads, vectors included."""
    draw = np.random.default_rng(0)
    centroids = vectors.unit_rows(draw.normal(size=(k, dim)).astype(np.float32))
    assignment = draw.integers(0, k, images)
    place = folder / "explore"
    place.mkdir(parents=True)
    about = {
        "format": FORMAT,
        "preset": "synthetic",
        "images": images,
        "settings": as_dict(TrainRun()),
        "data": "squares",
    }
    (folder / "run.json").write_text(json.dumps(about | {"source_fingerprint": f"squares{images}"}))
    backbone = build_backbone("convnet", image_size=32)
    whitening = Whitening().fit(draw.normal(size=(2 * backbone.dim, backbone.dim)).astype(np.float32))
    Model(backbone, torch.from_numpy(centroids), [whitening]).save(folder / "model.safetensors")
    run = Synthetic(folder, "cpu")
    mark = vectors.identity(run, f"squares{images}")
    rows = np.lib.format.open_memmap(place / f"vectors-{mark}.npy", "w+", np.float32, (images, dim))
    distance = np.empty(images, np.float32)
    for start in range(0, images, 65536):
        part = slice(start, min(start + 65536, images))
        near = centroids[assignment[part]]
        rows[part] = vectors.unit_rows(near + 0.05 * draw.normal(size=near.shape).astype(np.float32))
        distance[part] = np.linalg.norm(rows[part] - near, axis=1)
    rows.flush()
    (place / f"vectors-{mark}.json").write_text('{"bad": []}')
    np.save(folder / "assignment.npy", assignment)
    np.save(folder / "distance.npy", distance)
    return run


class Client:
    """One connection that is kept."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self.headers = {"X-Token": address.split("token=")[1]}

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        while True:
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 200:
                return content
            assert answer.status == 202, content
            time.sleep(0.02)

    def post(self, path: str, value: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", path, json.dumps(value), self.headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()


def first_view(client: Client) -> None:
    """What the page asks for before anything is clicked: state, table, first cluster, its first page of pictures."""
    client.get("/api/state")
    rows = json.loads(client.get("/api/clusters?limit=100"))["rows"]
    cluster = rows[0]["id"]
    client.get(f"/api/clusters/{cluster}")
    images = json.loads(client.get(f"/api/clusters/{cluster}/members?limit=200"))["images"]
    thumbs = [row["cover"] for row in rows[:20]] + [image["id"] for image in images[:60]]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda index: client.get(f"/thumb/{index}?side=192"), thumbs))


def timed(what: str, work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    found = work()
    print(f"{what:<58}{time.perf_counter() - began:8.3f} s", flush=True)
    return found


def in_a_browser(address: str) -> None:
    """From the address to images on the screen, by a fresh Chromium."""
    import shutil

    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 850})

        def look(where: str, wanted: str) -> None:
            page.goto(address + where)
            page.locator(wanted).first.wait_for(timeout=120_000)

        timed("Chromium: address to first images", lambda: look("", ".cell img.tiny, .cell img[src]"))
        timed("Chromium: table of clusters", lambda: look("#/table", "tbody tr"))
        timed("Chromium: scroll the list to its end", lambda: scroll(page))
        timed("Chromium: outliers, of all images", lambda: look("#/outliers", ".cell img"))
        browser.close()


def scroll(page: Any) -> None:
    last = page.locator("#rows .row").first.get_attribute("aria-setsize")
    page.locator("#rows").evaluate("node => { node.scrollTop = node.scrollHeight }")
    page.locator(f"#rows .row[aria-posinset='{last}']").wait_for()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--images", type=int, default=1_000_000)
    words.add_argument("--k", type=int, default=10_000)
    words.add_argument("--dim", type=int, default=128)
    words.add_argument("--browser", action="store_true")
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = make(Path(place) / "run", chosen.images, chosen.k, chosen.dim)
        print(f"{chosen.images:,} images, {chosen.k:,} clusters, {chosen.dim} dimensions")
        began = time.perf_counter()
        explorer = Explorer(run)
        listening = listen(0)
        ready = threading.Event()
        told: list[Any] = []

        def started(server: Any, address: str) -> None:
            told.extend((server, address))
            ready.set()

        thread = threading.Thread(target=serve, args=(explorer, listening, started), daemon=True)
        thread.start()
        ready.wait()
        client = Client(told[1], listening.getsockname()[1])
        print(f"{'opening the run and starting the server':<58}{time.perf_counter() - began:8.3f} s")
        timed("first view: state, table, 200 images, 80 new thumbnails", lambda: first_view(client))
        print(f"{'together':<58}{time.perf_counter() - began:8.3f} s")
        timed("the same again", lambda: first_view(client))
        timed(
            "table, the last page, by purity",
            lambda: client.get(f"/api/clusters?sort=purity&offset={max(0, chosen.k - 100)}"),
        )
        timed("search for a class", lambda: client.get("/api/clusters?search=class+42"))
        timed("nearest clusters of one", lambda: client.get("/api/clusters/5/nearest"))
        timed("200 outliers of all images", lambda: client.get("/api/outliers?limit=200"))
        timed("merge of 3 clusters", lambda: client.post("/api/edits", {"op": "merge", "clusters": [1, 2, 3]}))
        timed("undo", lambda: client.post("/api/undo", {}))
        timed("60 neighbors, the first time", lambda: client.get("/api/images/7/neighbors?limit=60"))
        timed("60 neighbors of another image", lambda: client.get("/api/images/8/neighbors?limit=60"))
        timed("clusters of all images for the map", lambda: client.get("/api/map/groups"))
        if chosen.browser:
            in_a_browser(client.address)
        timed("map by main axes, computed", lambda: client.get("/api/map/axes"))
        timed("map by t-SNE of 2,500 landmarks, computed", lambda: client.get("/api/map/neighborhoods"))
        timed("near-duplicates, computed", lambda: client.get("/api/duplicates?similarity=0.99&limit=20"))
        timed("suggestions, after these", lambda: client.get("/api/suggestions"))
        told[0].should_exit = True
        thread.join(10)


if __name__ == "__main__":
    main()

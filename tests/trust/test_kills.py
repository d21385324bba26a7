"""Every method and every long command, killed at random moments and given again: the same bits, and nothing left over.

`DEEPCLUSTER_FIGURES=FILE pytest -m slow tests/trust/test_kills.py` writes down how many kills there were.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tarfile
import time
import traceback
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import deepcluster
from deepcluster.cli.main import main
from deepcluster.data import cache as pixel_cache
from deepcluster.data.open import open_images
from deepcluster.engine import checkpoint
from deepcluster.resume import ResumeFile
from evaluate.voc.make import SIDE, make_shapes
from explore.browse import Site
from restarts import differing

METHODS = (
    "tiny-deepcluster", "tiny-deepcluster-pic", "tiny-odc", "tiny-deepcluster-v2", "tiny-swav", "tiny-deepercluster",
    "tiny-rotnet",
)  # fmt: skip
TIMES = r"^(seconds|images_per_second)|^(id|created|finished|at|began)$"
"""What differs between two equal runs."""
IMAGES = 96
EDITS = 60
PATIENCE = 1200
"""Seconds that a command may take."""
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
SEVERAL = ("tiny-deepcluster", "tiny-odc", "tiny-deepercluster")


Work = list[str] | Callable[[], object]


@dataclass
class Long:
    """A long command: what it is given first, and again after each kill."""

    name: str
    first: Work
    again: list[str] | None = None  # where a run folder is there already
    before: str = ""  # what is copied into the place first


def start(work: Work, place: Path) -> int:
    """A process that does the work in `place`, in a group of its own; all modules are loaded already."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        said = os.open(place / ".said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(place)
        torch.set_num_threads(1)
        if not callable(work) and "--processes" in work:  # each of them is started by the words of the first
            os.execv(sys.executable, [sys.executable, "-m", "deepcluster", *work])
        status = (work(), 0)[1] if callable(work) else main(work)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def living(group: int) -> list[int]:
    """The processes of a group, but for those that have ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def finish(child: int) -> tuple[int, float]:
    """Its status, and the seconds until then; whatever it started ends soon after it."""
    began = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < began + PATIENCE:
        time.sleep(0.005)
    took = time.monotonic() - began
    until = time.monotonic() + 60
    while (left := living(child)) and ended[0] and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)
    if not ended[0]:
        os.waitpid(child, 0)
    assert not left, f"processes {left} go on"
    return os.waitstatus_to_exitcode(ended[1]), took


def kill(child: int, work: Work, draw: random.Random) -> None:
    """Ends it; of several processes one or all."""
    victims = [child]
    if not callable(work) and "--processes" in work:
        group = living(child)
        victims = draw.choice([group, *([one] for one in group)])
    for one in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def results(place: Path) -> dict[str, Any]:
    """What a command has left: each file's content, without times."""
    found: dict[str, Any] = {}
    for file in sorted(place.rglob("*")):
        name = re.sub(r"\.[0-9a-f]{8}\.", ".", file.relative_to(place).as_posix())  # tables of a manifest
        if file.name == "previous.ckpt":  # which one that is depends on the hour
            continue
        if not file.is_file() or name == ".said" or "tensorboard" in name or file.suffix == ".lock":
            continue
        if file.suffix == ".ckpt":
            found[name] = checkpoint.load(file)
        elif file.suffix in (".json", ".jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else None
            found[name] = _timeless(json.loads(file.read_text()) if rows is None else rows)
        elif file.suffix == ".html":
            found[name] = re.sub(
                r"\d+(\.\d+)? (s|min|h)\b|\d{4}-\d\d-\d\d.\d\d:\d\d|>[^<]*(second|/s)[^<]*<", "", file.read_text()
            )
        else:
            found[name] = file.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if not re.search(TIMES, name) and name != "crc32"}
    if isinstance(value, str):
        return re.sub(r"\.[0-9a-f]{8}\.", ".", value)
    return [_timeless(part) for part in value] if isinstance(value, list) else value


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


def commands(made: Path) -> list[Long]:
    """All of them, on the images and the run in `made`."""
    data, run = str(made / "photos"), str(made / "run")
    options = f"--data {data} --epochs 4 --batch-size 32 --image-size 12 --save-minutes 0.001 --keep-every 2 --out run"
    found = []
    for preset in METHODS:
        more = [] if preset in ("tiny-deepcluster-pic", "tiny-rotnet") else ["--method.k", "8"]
        if preset == "tiny-deepercluster":
            more = []
        whiten = ["--method.whiten", "16"] if preset in METHODS[:2] else []
        train, resume = ["train", preset, *options.split(), *more, *whiten], ["train", "--resume", "run"]
        found.append(Long(preset, train, resume))
        if preset in SEVERAL:
            two = ["--processes", "2"]
            found.append(Long(f"two processes of {preset}", [*train, *two], [*resume, *two]))

    def cache() -> None:
        os.environ["DEEPCLUSTER_CACHE"] = "cache"
        pixel_cache.CHUNK = 8
        pixel_cache.load_pixels(
            open_images(data), short_side=None, cache_gb=1, workers=1, directory=Path("cache"), small=0
        )

    table = str(made / "table.npy")
    grouped = ["cluster", data, "--backbone", f"{run}/model.safetensors", "--out", "groups", "--k", "6"]
    return [
        *found,
        Long("index", ["index", f"{made}/*.tar", "--out", "manifest.json", "--workers", "1"]),
        Long("cache", cache),
        Long("features", ["features", run, "--data", data, "--out", "table.npy"]),
        Long(
            "features in parts", ["features", run, "--data", str(made / "many.npy"), "--out", "parts", "--parts", "5"]
        ),
        Long("cluster images", grouped),
        *(
            Long(f"cluster {kind}", ["cluster", table, "--algorithm", kind, "--out", "a.csv", "--whiten", "16", *more])
            for kind, more in (("kmeans", ["--k", "20"]), ("pic", []), ("hierarchical", ["--k", "20"]))
        ),
        *(
            Long(f"evaluate {name}", ["evaluate", "run", name.split()[0], "--data", images, *more], before="run")
            for images, protocols in ((data, PROTOCOLS), (str(made / "voc"), VOC))
            for name, more in protocols.items()
        ),
        Long("assign", ["assign", run, "--data", data, "--out", "a.csv"]),
        Long("report", ["report", "run"], before="run"),
        Long("visualize", ["visualize", "run", "clusters"], before="run"),
        Long("export", ["export", run, "--out", "a.safetensors"]),
        Long("explore", edit, before="run"),
        *(
            Long(f"explore --export {name}", ["explore", "run", "--export", name], before="run")
            for name in ("a.csv", "a.json", "folders")
        ),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as pictures, in archives and as an array; a trained run, and a table of its features."""
    from sklearn.datasets import load_digits

    for module in pkgutil.walk_packages(deepcluster.__path__, "deepcluster."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("torch.utils.tensorboard", "sklearn.cluster", "matplotlib.pyplot", "torch._dynamo"):
        importlib.import_module(name)
    folder, digits = tmp_path_factory.mktemp("made"), load_digits()
    for k in range(IMAGES):
        file = folder / "photos" / str(digits.target[k]) / f"{k:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 15.9).astype(np.uint8)).resize((16, 16)).save(file)
    make_shapes(folder / "voc")
    np.save(folder / "many.npy", np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, 3))
    for part in range(12):
        with tarfile.open(folder / f"{part:02d}.tar", "w") as archive:
            for file in sorted(folder.glob("photos/*/*.png")):
                archive.add(file, f"{file.parent.name}/{part}-{file.name}")
    options = "--epochs 2 --batch-size 32 --image-size 12 --method.k 8 --method.whiten 16"
    train = ["train", "tiny-deepcluster", "--data", str(folder / "photos"), "--out", "run", *options.split()]
    features = ["features", "run", "--data", str(folder / "many.npy"), "--out", "table.npy"]
    for command in (train, features):
        assert finish(start(command, folder))[0] == 0, (folder / ".said").read_text()
    return folder


def fresh(place: Path, long: Long, made: Path) -> Path:
    place.mkdir()
    if long.before:
        shutil.copytree(made / long.before, place / long.before)
    return place


def trial(long: Long, made: Path, place: Path, moments: list[float], tally: list[int], draw: random.Random) -> None:
    """Does the work, killed after so many seconds each time, then goes on to the end."""
    fresh(place, long, made)
    for moment in (*moments, None):
        resumed = long.again is not None and (place / "run/run.json").exists()
        work = long.again if resumed and long.again else long.first
        child = start(work, place)
        if moment is not None:
            time.sleep(moment)
            kill(child, work, draw)
        status, _ = finish(child)
        said = (place / ".said").read_text()[-3000:]
        if status == 0:
            tally[1] += moment is not None
            break
        # where another of its processes was killed, it ends by itself, and says so
        ended = status == -signal.SIGKILL or (status == 2 and "Another process" in said.splitlines()[-1])
        assert moment is not None and ended, (long.name, moments, status, said)
        tally[0] += 1


@pytest.mark.slow
def test_killed_at_random_moments(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """250 kills, shared by all commands; `DEEPCLUSTER_KILLS` asks for another number."""
    wanted, works = int(os.environ.get("DEEPCLUSTER_KILLS", "250")), commands(made)
    monkeypatch.setattr(ResumeFile, "due", True)  # after each step, not each five minutes
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    figures: dict[str, dict[str, float]] = {}
    wrong: list[str] = []
    if only := os.environ.get("DEEPCLUSTER_KILLED"):
        works = [long for long in works if re.search(only, long.name)]
    for number, long in enumerate(works):
        monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / f"cache-{number}"))
        place = fresh(tmp_path / f"whole-{number}", long, made)
        status, seconds = finish(start(long.first, place))
        assert status == 0, (long.name, (place / ".said").read_text()[-3000:])
        whole, tally, attempt, before = results(place), [0, 0], 0, len(wrong)
        draw, took = random.Random(long.name), seconds
        share = -(-(wanted * (number + 1)) // len(works)) - -(-(wanted * number) // len(works))
        while tally[0] < share and attempt < 4 * share:
            done = tally[1]
            place = tmp_path / f"killed-{number}-{attempt}"
            moments = [draw.uniform(0.02, 0.98) * took for _ in range(min(draw.choice((1, 1, 2, 3)), share - tally[0]))]
            try:
                trial(long, made, place, moments, tally, draw)
            except AssertionError as error:
                wrong.append(str(error)[:1500])
            else:
                names = results(place)
                if other := sorted(whole.keys() ^ names.keys()):
                    wrong.append(f"{long.name} {moments}: files {other}")
                wrong += [f"{long.name} {moments}: {where}" for where in differing(whole, names)[:5]]
            if not wrong:
                shutil.rmtree(place)
            attempt += 1
            took *= 0.7 if tally[1] > done else 1  # the machine was busy with something else
        if tally[0] < share:
            wrong.append(f"{long.name}: {tally[0]} kills of {share}")
        figures[long.name] = {"kills": tally[0], "done before": tally[1], "seconds": round(seconds, 2)}
        if file := os.environ.get("DEEPCLUSTER_FIGURES"):
            with open(file, "a") as figures_file:
                figures_file.write(json.dumps({long.name: figures[long.name], "wrong": wrong[before:]}) + "\n")
    assert not wrong, "\n".join([f"{len(wrong)} differences; {figures}", *wrong[:20]])

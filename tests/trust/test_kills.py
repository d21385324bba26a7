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
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from long_commands import Long, Work, commands, make_images

import deepcluster
from deepcluster.cli.main import main
from deepcluster.engine import checkpoint
from deepcluster.resume import ResumeFile
from restarts import differing

TIMES = r"^(seconds|images_per_second)|^(id|created|finished|at|began)$"
"""What differs between two equal runs."""
PATIENCE = 1200
"""Seconds that a command may take."""


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
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # no more pytest's
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
    until = time.monotonic() + 150  # agents of Ray ask each minute whether it is there
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
        if name == ".said" or "tensorboard" in name or file.suffix == ".lock":
            continue
        if file.is_dir():
            found[name] = "a folder"
        elif file.suffix == ".ckpt":
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as pictures, in archives and as an array; a trained run, and a table of its features."""
    for module in pkgutil.walk_packages(deepcluster.__path__, "deepcluster."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("torch.utils.tensorboard", "sklearn.cluster", "matplotlib.pyplot", "torch._dynamo"):
        importlib.import_module(name)
    folder = tmp_path_factory.mktemp("made")
    make_images(folder)
    options = "--epochs 2 --batch-size 32 --image-size 12 --method.k 8 --method.whiten 16"
    train = ["train", "tiny-deepcluster", "--data", str(folder / "photos"), "--out", "run", *options.split()]
    features = ["features", "run", "--data", str(folder / "many.npy"), "--out", "table.npy"]
    for command in (train, features):
        assert finish(start(command, folder))[0] == 0, (folder / ".said").read_text()
    return folder


def fresh(place: Path, long: Long, made: Path) -> Path:
    place.mkdir()
    (place / ".said").touch()  # a process may be killed before it says anything
    if long.before:
        shutil.copytree(made / long.before, place / long.before)
    return place


def trial(long: Long, made: Path, place: Path, moments: list[float], tally: list[int], draw: random.Random) -> None:
    """Does the work, killed after so many seconds each time, then goes on to the end."""
    fresh(place, long, made)
    for number, moment in enumerate((*moments, None)):
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
        last = said.splitlines()[-1] if status == 2 else ""
        done = "exists and is not empty: choose a new folder", "already holds this run: choose another --out"
        if number and any(sentence in last for sentence in done):  # it was done when it was killed
            break
        # where another of its processes was killed, it ends by itself, and says so
        ended = status == -signal.SIGKILL or "Another process" in last
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

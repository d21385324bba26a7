"""A run folder has one writer, and a run that is replaced is not lost before the new one has a checkpoint."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.config import override
from deepcluster.engine import checkpoint, loop, occupy, train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterError
from deepcluster.io import remove_leftovers, write_atomic
from deepcluster.lock import locked
from restarts import fit, images, settings

THEIRS = ("notes.txt", "checkpoints/notes.txt", "pictures/me.png", "explore/edits.jsonl")
"""Files that no run wrote, or that are work of its user."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "images.npy", images())
    dc.train(settings(), str(folder / "images.npy"), folder / "run", quiet=True)
    for name in ("evaluation/knn.json", "pictures/filters.png", "explore/vectors-0a.npy", *THEIRS):
        (folder / "run" / name).parent.mkdir(exist_ok=True)
        (folder / "run" / name).write_text(name)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def broken(folder: Path) -> str:
    (folder / "broken").mkdir()
    for number in range(3):
        (folder / f"broken/{number}.jpg").write_bytes(b"no image")
    return str(folder / "broken")


MISTAKES: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "more clusters than images": ({"k": 65}, lambda folder: images()),
    "one image": ({}, lambda folder: images(1)),
    "broken images": ({}, broken),
    "weights that are not there": ({"backbone.weights": "typo.safetensors"}, lambda folder: images()),
    "a loss that is no number": ({"lr": 1e30, "method.head_lr": 1e30}, lambda folder: images()),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_run_is_not_replaced_by_one_that_cannot_be_trained(mistake: str, run: Path, tmp_path: Path) -> None:
    values, data = MISTAKES[mistake]
    before = content(run)
    with pytest.raises(DeepClusterError):
        fit(run, settings(**values), data(tmp_path), overwrite=True)
    assert content(run) == before


def test_a_replaced_run_is_gone_and_files_of_others_are_there(run: Path) -> None:
    fit(run, settings(epochs=1), overwrite=True)
    assert len(load_run(run).metrics) == 1
    there = content(run)
    assert there.keys() >= {*THEIRS} and not {"evaluation/knn.json", "pictures/filters.png"} & there.keys()
    assert "checkpoints/epoch-0001.ckpt" not in there and not [name for name in there if name.startswith(".")]
    assert len([name for name in there if name.startswith("tensorboard/")]) == 1


def test_all_that_training_leaves_is_known_as_its_own(tmp_path: Path) -> None:
    fit(tmp_path / "run", settings(epochs=1))
    occupy.discard(tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


def test_what_interrupts_before_the_first_checkpoint_brings_the_earlier_run_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    before = content(run)
    monkeypatch.setattr(loop, "step_all", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(run, settings(seed=5), overwrite=True)
    assert content(run) == before


def test_killed_at_any_moment_the_earlier_run_comes_back(run: Path) -> None:
    """Every rename and removal of the swap, there and back, is the last one of a process once."""
    before, deaths = content(run), 0
    for death in range(1, 200):
        child = os.fork()
        if child == 0:
            left = death

            def dying(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if not left:
                        os._exit(9)
                    return original(*arguments, **options)

                return call

            for name in ("rename", "replace", "unlink", "rmdir"):
                setattr(os, name, dying(getattr(os, name)))
            try:
                occupy.move_aside(run)
                (run / "checkpoints").mkdir(exist_ok=True)
                for name in ("run.json", "model.safetensors", "checkpoints/best.ckpt"):
                    (run / name).write_text("of the new run")
                occupy.settle(run)
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        deaths += status == 9
        occupy.settle(run)
        (run / occupy.LOCK).unlink(missing_ok=True)  # of the child; the next one would take it over
        assert content(run) == before
        if status == 0:
            break
    assert deaths > 20


@pytest.mark.parametrize("command", ["--resume", "--overwrite", "cluster"])
def test_the_next_command_puts_the_earlier_run_back_and_says_so(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assignment = np.load(run / "assignment.npy")
    occupy.move_aside(run)
    assert main(["report", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    (run / "run.json").write_bytes((run / occupy.ASIDE / "run.json").read_bytes().replace(b'"seed": 0', b'"seed": 9'))
    data = str(run.parent / "images.npy")
    np.save(data, images())
    if command == "--resume":
        assert main(["train", "--resume", str(run), "--data", data]) == 0
        out = capsys.readouterr().out.replace("\n", " ")
        assert "is finished after 2 epochs" in out
    elif command == "cluster":
        assert main(["cluster", data, "--out", str(run), "--backbone", str(run / ".replaced/model.safetensors")]) == 2
        said = capsys.readouterr()
        assert "already holds another run" in said.err
        out = said.out
    else:
        words = ("--epochs", "1", "--method.k", "999", "--overwrite", "--out", str(run))
        assert main(["train", "tiny-deepcluster", "--data", data, *words]) == 2
        out = capsys.readouterr().out
    assert "the earlier run is back in its place" in out
    np.testing.assert_array_equal(load_run(run).assignment, assignment)
    assert load_run(run).config["seed"] == 0 and not (run / occupy.ASIDE).exists()


HOLD = """
import sys, time
from pathlib import Path
from deepcluster.lock import locked
with locked(Path(sys.argv[1]), str):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_is_there_and_changes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "images.npy")
    np.save(data, images())
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run / occupy.LOCK)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    before = content(run)
    for words in (
        ("train", "--resume", str(run), "--epochs", "3"),
        ("train", "tiny-deepcluster", "--data", data, "--out", str(run), "--overwrite"),
        ("cluster", data, "--out", str(run), "--overwrite", "--backbone", str(run / "model.safetensors")),
    ):
        assert main(list(words)) == 2
        said = capsys.readouterr().err
        assert (
            f"process {holder.pid} on {socket.gethostname()} is writing a run there" in said and "\n" not in said[:-1]
        )
    assert main(["report", str(run)]) == 0  # may be looked at
    (run / "report.html").unlink()
    assert content(run) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    assert not (run / occupy.LOCK).exists()


def test_a_lock_is_of_one_process_and_not_of_those_it_forks(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    ready, go = os.pipe(), os.pipe()
    holder = os.fork()
    if holder == 0:
        with locked(file, str):
            if os.fork() == 0:  # outlives it
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                os._exit(0)
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(DeepClusterError, match=f"process {holder} on"), locked(file, str):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with locked(file, str), pytest.raises(DeepClusterError), locked(file, str):
        pass
    os.write(go[1], b"x")
    assert not file.exists()


def test_a_disk_without_locks_is_told_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuses(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    class Listening(Screen):
        def warn(self, line: str) -> None:
            said.append(line)

    said: list[str] = []
    monkeypatch.setattr(fcntl, "flock", refuses)
    train.train(settings(epochs=1), images(), tmp_path / "run", screen=Listening(quiet=True))
    assert [line for line in said if "has no locks" in line and str(tmp_path / "run") in line]
    assert not (tmp_path / "run" / occupy.LOCK).exists()


def test_temporary_files_of_living_processes_are_not_swept(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        names: list[Path] = []
        write_atomic(tmp_path / "file", lambda beside: names.append(beside) or beside.write_text("x"))  # type: ignore[func-returns-value]
        left = [
            names[0].name,
            names[0].name.replace(str(os.getpid()), "4194999"),  # no such process
            ".old.0a1b2c3d.part",
        ]
        living = names[0].name.replace(str(os.getpid()), str(other.pid))
        for name in (*left, living):
            (tmp_path / name).write_text("")
        remove_leftovers(tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {"file", living}
    finally:
        other.kill()
        other.wait()


def test_replacing_keeps_links_of_the_user(run: Path, tmp_path: Path) -> None:
    """`checkpoints` on another disk: the link goes aside as a whole, and what it leads to stays."""
    (run / "checkpoints").rename(tmp_path / "large")
    (run / "checkpoints").symlink_to(tmp_path / "large")
    kept = content(tmp_path / "large")
    with pytest.raises(DeepClusterError):
        fit(run, settings(k=65), overwrite=True)
    assert (run / "checkpoints").is_symlink() and content(tmp_path / "large") == kept
    fit(run, override(settings(), {"epochs": 1}), overwrite=True)
    assert content(tmp_path / "large") == kept and checkpoint.load(run / "checkpoints/last.ckpt")

"""What a command says of killed processes, little memory and warnings: a sentence, never the words of a library."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from lightning_fabric.strategies.launchers import subprocess_script

from deepcluster.cli import main as cli
from deepcluster.data.decode_pool import decode_batches
from deepcluster.data.open import open_images
from deepcluster.engine import fabric
from deepcluster.errors import DeepClusterError, DeepClusterWarning, ProcessLost

SOURCE = Path(cli.__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "--data.workers 1"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "--data.workers 1"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]"), "has ended"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "--batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--batch-size"),
        (OSError(12, "Cannot allocate memory"), "--batch-size"),
        (MemoryError(), "--batch-size"),
    ],
)
def test_killed_workers_and_little_memory_are_one_sentence(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("deepcluster: ") and said.count("\n") == 1 and words in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits open files")
@pytest.mark.parametrize(("hard", "status"), [(20, 2), (400, 0)])
def test_few_open_files_end_in_a_sentence_or_are_raised(hard: int, status: int) -> None:
    """In a child whose limit is real: a worker that cannot send an image would let its reader wait forever."""
    import resource

    child = os.fork()
    if child == 0:
        signal.alarm(30)
        taken, left = len(os.listdir("/dev/fd")), 1
        try:
            # a server that starts processes, as from Python 3.14 on, is the parent's
            multiprocessing.set_start_method("fork", force=True)
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 20, taken + hard))
            source = open_images(np.zeros((300, 8, 8, 3), np.uint8))
            batches = list(decode_batches(source, [np.arange(150), np.arange(150, 300)], None, 4))
            left = int(sum(len(batch.index) for batch in batches) != 300)
        except DeepClusterError as error:
            left = 2 * ("ulimit -n" in str(error))
        finally:
            os._exit(left)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_any_other_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main(["train"])


def test_only_our_warnings_are_shown_each_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: object) -> None:
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.warn("words of a library", category, stacklevel=1)
        warnings.warn("the groups say little", DeepClusterWarning, stacklevel=1)

    monkeypatch.setattr(cli, "_run", warn)
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(f"warning: {message}", file=sys.stderr))
    assert cli.main(["train"]) == 0
    assert capsys.readouterr().err == "warning: the groups say little\n"


def test_every_warning_of_the_package_has_a_category_of_its_own() -> None:
    for file in SOURCE.rglob("*.py"):
        for call in re.findall(r"warnings\.warn\((.*?)stacklevel", file.read_text(), re.S):
            assert re.search(r"DeepClusterWarning|DegenerateClusters", call), (file, call)
    assert issubclass(DeepClusterError, ValueError) and issubclass(ProcessLost, DeepClusterError)


@pytest.mark.parametrize(
    ("status", "ends"), [(-signal.SIGKILL, True), (2, True), (None, False), (0, False), (130, False), (143, False)]
)
def test_a_process_ends_with_one_that_was_lost_and_saves_with_one_that_was_stopped(
    status: int | None, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(fabric, "GRACE", 0.1)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", None)
    monkeypatch.setenv(fabric.FIRST, "")
    with fabric.together(tmp_path):
        start: Any = subprocess_script._launch_process_observer  # Fabric's launcher calls it
        start([SimpleNamespace(poll=lambda: 0), SimpleNamespace(poll=lambda: status)])
        time.sleep(0.3)
    assert ended == [2] * ends and ("Another process of this run" in capsys.readouterr().err) == ends


@pytest.mark.skipif(os.name != "posix", reason="asks for the process that started it")
@pytest.mark.parametrize("lives", [True, False])
def test_a_second_process_ends_with_the_first(lives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(fabric, "GRACE", 0.1)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(fabric.FIRST, str(os.getppid() + (not lives)))
    with fabric.together(tmp_path):
        time.sleep(0.3)
    assert ended == [2] * (not lives)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("when", ["before they meet", "while they train"])
def test_one_of_two_processes_is_killed(tmp_path: Path, which: str, when: str) -> None:
    """The other one ends within 30 seconds and says how to go on, if there is something to go on from."""
    words = ["train", "tiny-deepcluster", "--data", "digits", "--out", str(tmp_path / "run"), "--epochs", "5000"]
    command = [sys.executable, "-m", "deepcluster", *words, "--processes", "2"]
    said, saved = tmp_path / "said", tmp_path / "run" / "checkpoints" / "last.ckpt"
    with said.open("w") as err:
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
    try:
        until = time.monotonic() + 120
        others: list[psutil.Process] = []
        while not others or (when == "while they train" and not saved.exists()):
            assert time.monotonic() < until and first.poll() is None, said.read_text()
            time.sleep(0.2)
            others = [child for child in psutil.Process(first.pid).children() if "--processes" in child.cmdline()]
        os.kill(first.pid if which == "first" else others[0].pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while first.poll() is None or (others[0].is_running() and others[0].status() != psutil.STATUS_ZOMBIE):
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.2)
    finally:
        for child in others:
            with contextlib.suppress(psutil.Error):
                child.kill()
        first.kill()
        first.wait()
    lines = said.read_text().splitlines()
    assert len(lines) == 1 and "Another process of this run has ended" in lines[0]
    assert (f"deepcluster train --resume {tmp_path / 'run'}" in lines[0]) == (when == "while they train")


@pytest.mark.parametrize("words", ["report run", "curate images --size 3 --out x.txt"])
def test_what_one_process_does_is_not_done_by_several(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words.split()) == 2
    assert "runs on one process: start it without torchrun" in capsys.readouterr().err


def test_processes_that_do_not_meet_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(40, 4)))
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert cli.main(["cluster", str(tmp_path / "f.npy"), "--k", "3", "--out", str(tmp_path / "c.csv")]) == 2
    sentence = capsys.readouterr().err
    assert "do not meet" in sentence and "use torchrun" in sentence and sentence.count("\n") == 1

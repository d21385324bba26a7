"""`--engine ray`: what one process finds, also where workers are killed; `tests/clustering/test_parts.py` has the rest
of its mathematics. Ray needs some ten seconds to start."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.cli.main import main
from deepcluster.clustering import KMeans
from deepcluster.engine import ray_session
from deepcluster.engine.ray_engine import ray_engine
from deepcluster.errors import DeepClusterError, ProcessLost
from deepcluster.io import beside
from deepcluster.models.export import export_backbone
from deepcluster.models.zoo import build_backbone
from processes import free_port


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 24))[rng.integers(40, size=12_000)] + 0.6 * rng.normal(size=(12_000, 24))
    x[[3, 7000]] = np.nan
    np.save(tmp_path / "f.npy", x.astype(np.float32))
    return tmp_path / "f.npy"


# ----------------------------------------------------------------------------------------------- without starting it


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--engine", "ray"]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("deepcluster: ") and sentence.count("\n") == 1
    return sentence


def test_mistakes_are_sentences(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(table.with_name("c.csv"))
    np.save(table.with_name("i.npy"), np.zeros((4, 8, 8, 3), np.uint8))
    images = str(table.with_name("i.npy"))
    for command in (["cluster", images], ["curate", images, "--size", "2"]):
        assert "are images: write a table first" in said([*command, "--out", out], capsys)
    for algorithm in ("pic", "temi"):
        words = ["cluster", str(table), "--algorithm", algorithm, "--out", out]
        assert f"{algorithm} runs in one process" in said(words, capsys)
    words = ["features", "timm:resnet18", "--data", images, "--out", str(table.with_name("g.npy"))]
    assert "leave out its ending" in said(words, capsys)
    words = ["cluster", str(table), "--k", "3", "--out", out]
    with monkeypatch.context() as torchrun:
        torchrun.setenv("RANK", "0")
        torchrun.setenv("WORLD_SIZE", "2")
        assert "leave out torchrun" in said(words, capsys)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'deepcluster[ray]'" in said(words, capsys)
    assert sorted(path.name for path in table.parent.iterdir()) == ["f.npy", "i.npy"]


@pytest.mark.parametrize("address", ["127.0.0.1:PORT", "ray://127.0.0.1:10001", "somewhere"])
def test_nobody_answers(
    address: str, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'deepcluster[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", address.replace("PORT", str(free_port())))
    words = ["cluster", str(table), "--k", "3", "--out", str(table.with_name("c.csv"))]
    assert "No Ray cluster answers at RAY_ADDRESS" in said(words, capsys)


def test_what_a_killed_session_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's logs and sockets, in a folder that only its user may read."""
    left = tmp_path / beside(tmp_path / "ray").name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")  # no such process
    (left / "session_latest").mkdir(parents=True)
    monkeypatch.setattr(ray_session, "SHORT", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ray_session, "_start", lambda ray, folder, cores: None)
    monkeypatch.setitem(sys.modules, "ray._private.worker", SimpleNamespace())
    with ray_session.ray_session(SimpleNamespace(shutdown=lambda: None), 1):
        (own,) = tmp_path.iterdir()
        assert own != left and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- with Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray with two workers; commands join it, as it runs in this process."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'deepcluster[ray]'")
    ray: Any = import_module("ray")

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=50)
    yield
    ray.shutdown()


@contextlib.contextmanager
def kills(name: str, wanted: int) -> Iterator[list[int]]:
    """SIGKILL for so many workers, each while it is at work of this name."""
    psutil = pytest.importorskip("psutil")
    killed: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set() and len(killed) < wanted:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in killed and " ".join(process.cmdline()).startswith(f"ray::{name}"):
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
                        break
            time.sleep(0.001)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield killed
    finally:
        over.set()
        watching.join()


def twice(words: list[str], out: Callable[[str], Path], name: str, wanted: int) -> tuple[Path, Path]:
    """The results of a command by one process, and by Ray with workers killed in the middle."""
    assert main([*words, "--out", str(out("one"))]) == 0
    with kills(name, wanted) as killed:
        assert main([*words, "--out", str(out("ray")), "--engine", "ray"]) == 0
    assert len(killed) == wanted
    return out("one"), out("ray")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["cluster", "--k", "30", "--whiten", "12"], "_update"),
        (["cluster", "--k", "300", "--whiten", "0", "--seed", "3"], "_update"),
        (["cluster", "--k", "60", "--algorithm", "hierarchical", "--branches", "4"], "_call"),
        (["curate", "--size", "900", "--clusters", "300", "30", "--resamplings", "1"], "_call"),
    ],
)
def test_tables_with_a_worker_killed(words: list[str], name: str, table: Path) -> None:
    words = [words[0], str(table), *words[1:]]
    one, other = twice(words, lambda which: table.with_name(f"{which}.csv"), name, 1)
    assert one.read_bytes() == other.read_bytes()
    assert not [path for path in table.parent.iterdir() if path.name.endswith(".part")]


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_features_with_a_worker_killed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_backbone(build_backbone("convnet", image_size=24), "safetensors", tmp_path / "net.safetensors")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 255, (3000, 30, 30, 3), dtype=np.uint8))
    words = ["features", str(tmp_path / "net.safetensors"), "--data", str(tmp_path / "images.npy"), "--parts", "5"]
    one, other = twice(words, lambda which: tmp_path / which, "_Worker", 1)
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir()) and len(files) == 9
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)
    part = sorted(other.glob("*.npy"))[1]
    before = (part.read_bytes(), part.stat().st_mtime_ns)
    sorted(other.glob("*.npy"))[2].unlink()
    assert main([*words, "--out", str(other), "--engine", "ray"]) == 0  # what is there stays, what is missing comes
    assert before == (part.read_bytes(), part.stat().st_mtime_ns)
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_mistake_that_a_worker_finds_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    x[4000, 1] = np.inf
    with ray_engine(), pytest.raises(DeepClusterError, match="Row 4000 of the features holds NaN or infinity"):
        KMeans(3, random_state=0).fit(x)
    np.save(tmp_path / "images.npy", np.zeros((8, 30, 30, 3), np.uint8))
    export_backbone(build_backbone("convnet", image_size=24), "safetensors", tmp_path / "net.safetensors")
    words = ["features", str(tmp_path / "net.safetensors"), "--data", str(tmp_path / "images.npy")]
    if not torch.cuda.is_available():
        assert "GPU" in said([*words, "--out", str(tmp_path / "g"), "--device", "cuda"], capsys)


def _only_here() -> None:
    """A function of a module that workers do not find."""


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_work_that_is_lost_again_and_again_is_told_in_a_sentence() -> None:
    def ends(*_: Any) -> None:  # inside, so that it is sent
        os.kill(os.getpid(), signal.SIGKILL)

    with ray_engine() as engine:
        with pytest.raises(ProcessLost, match="was lost with its process 4 times"):
            engine.run(ends, [()])
        with pytest.raises(ProcessLost, match="was lost with its process 4 times"):
            list(engine.pooled(lambda: ends, (), [()], False))
        wrong: Any = _only_here
        runs: list[Callable[[], Any]] = [
            lambda: engine.run(wrong, [()]),
            lambda: list(engine.pooled(wrong, (), [()], False)),
        ]
        for run in runs:
            with pytest.raises(DeepClusterError, match=r"No module named .*: install the same deepcluster") as caught:
                run()
            assert str(caught.value).count("\n") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_each_core_has_one_actor() -> None:
    def make(seconds: float) -> Callable[[int], tuple[int, int]]:
        def work(number: int) -> tuple[int, int]:
            time.sleep(seconds)
            return number, os.getpid()

        return work

    with ray_engine() as engine:
        found = list(engine.pooled(make, (0.3,), [(number,) for number in range(12)], False))
    assert sorted(number for number, _ in found) == list(range(12)) and len({pid for _, pid in found}) == 2


@pytest.mark.slow
def test_the_command_alone_prints_its_result_and_nothing_else(table: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'deepcluster[ray]'")
    words = ["cluster", str(table), "--k", "20", "--engine", "ray", "--out", str(table.with_name("c.csv"))]
    done = subprocess.run([sys.executable, "-m", "deepcluster", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "11,998 rows in 20 clusters" in done.stdout


@pytest.mark.slow
def test_sigterm_ends_it_and_what_it_started(table: Path) -> None:
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'deepcluster[ray]'")
    words = ["cluster", str(table), "--k", "2000", "--engine", "ray", "--out", str(table.with_name("c.csv"))]
    with subprocess.Popen([sys.executable, "-m", "deepcluster", *words], stderr=subprocess.PIPE) as process:
        started: list[Any] = []
        while not any("ray::_" in " ".join(cmdline(each)) for each in started):
            assert process.poll() is None
            time.sleep(0.05)
            started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143 and process.stderr is not None and process.stderr.read() == b""
    gone, alive = psutil.wait_procs(started, timeout=60)
    assert gone and not alive
    assert [path.name for path in table.parent.iterdir()] == ["f.npy"]


def cmdline(process: Any) -> list[str]:
    with contextlib.suppress(Exception):
        return list(process.cmdline())
    return []


@pytest.mark.slow
def test_a_machine_lost_and_another_that_joins(table: Path) -> None:
    """Two machines of a Ray cluster, simulated by Ray itself; one of them is ended in the fourth iteration."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'deepcluster[ray]'")
    script = f"""
import os
from pathlib import Path
from ray.cluster_utils import Cluster
import deepcluster.engine.ray_engine as engine
from deepcluster.clustering import KMeans
from deepcluster.features.table import open_table
rows = open_table(Path({str(table)!r}))[0][8000:].copy()
alone = KMeans(100, random_state=0).fit(rows)
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0}})
lost = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)][1]
os.environ["RAY_ADDRESS"] = cluster.address
each, calls = engine._Kept.each, []
def counted(self, *what):
    calls.append(what)
    if len(calls) == 4:
        cluster.remove_node(lost, allow_graceful=False)
    if len(calls) == 6:
        cluster.add_node(num_cpus=2)
    return each(self, *what)
engine._Kept.each = counted
with engine.ray_engine() as ray:
    assert ray.cores == 2
    spread = KMeans(100, random_state=0).fit(rows)
    assert ray.cores == 3 and len(calls) > 6
assert (alone.labels_ == spread.labels_).all() and (alone.cluster_centers_ == spread.cluster_centers_).all()
print("the same")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("the same\n"), done.stderr[-2000:]

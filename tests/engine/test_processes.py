"""Runs on several processes give what one gives: the same clusters, losses to rounding, one checkpoint for all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deepcluster as dc
from deepcluster.clustering.pic import PIC
from deepcluster.config import override
from deepcluster.data.open import open_images
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import checkpoint, train
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.presets import find_preset
from processes import free_port, together
from restarts import images
from several import RUNS, N, settings


def _fit(group: ProcessGroup, name: str, folder: str, values: dict[str, Any]) -> dict[str, Any]:
    out = Path(folder) / f"{name}-{group.size}"
    data = open_images(images(N))
    data.labels = np.arange(N) % 4
    run = train.train(settings(name, **values), data, out, screen=Screen(quiet=True))
    timed = ("seconds", "images_per")
    rows = [{key: value for key, value in row.items() if not key.startswith(timed)} for row in run.metrics]
    return {"rows": rows, "assignment": run.assignment, "draw": torch.rand(1)}


ROUNDED = ("deepcluster-v2", "swav")
"""On processors with AVX-512 the sums of two processes differ from those of one in the last digits, which the second
epoch of these methods amplifies: by how much depends on the seed and on every rounding before."""


def same_clusters(one: np.ndarray, other: np.ndarray, name: str) -> None:
    """Of the methods in `ROUNDED`, but for a few images that lie between two clusters."""
    most = 0.005 if name in ROUNDED else 0.0
    assert one.shape == other.shape and (one != other).mean() <= most, np.flatnonzero(one != other)


ONCE_MORE = (
    "extras",
    "remembered",
    "weighted",
    "sela",
    "pic",
    "swav",
    "odc eval",
    "odc averaged",
    "deepercluster 4",
    "one class",
    "rotnet",
)
"""Variants of methods that others of the runs have, too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ONCE_MORE else ()) for name in RUNS]
)
def test_two_processes_do_what_one_does(tmp_path: Path, name: str) -> None:
    """Assignments, losses and weights to rounding; and what is on the disk says the same. Bits: test_deterministic."""
    (alone,) = together(_fit, 1, name, str(tmp_path), {})
    for shared in together(_fit, 2, name, str(tmp_path), {}):
        same_clusters(shared["assignment"], alone["assignment"], name)
        strict = slice(1) if name in ROUNDED else slice(None)
        torch.testing.assert_close(shared["rows"][strict], alone["rows"][strict], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(shared["rows"][-1]["loss"], alone["rows"][-1]["loss"], rtol=0.02, atol=0)
        assert torch.equal(shared["draw"], alone["draw"])
    one, two = (dc.load_run(tmp_path / f"{name}-{size}") for size in (1, 2))
    same_clusters(one.assignment, two.assignment, name)
    same_clusters(one.assign(images(40)).cluster, two.assign(images(40)).cluster, name)
    saved = [checkpoint.load(tmp_path / f"{name}-{size}" / "checkpoints" / "last.ckpt") for size in (1, 2)]
    assert saved[0]["method"].keys() == saved[1]["method"].keys()
    for key, value in saved[0]["method"].items():
        if isinstance(value, torch.Tensor):
            assert value.shape == saved[1]["method"][key].shape, key
    assert saved[0]["optimizers"].keys() == saved[1]["optimizers"].keys()
    assert sorted(p.name for p in (tmp_path / f"{name}-1").iterdir()) == sorted(
        p.name for p in (tmp_path / f"{name}-2").iterdir()
    )


@pytest.mark.slow
def test_three_processes_and_statistics_of_their_own(tmp_path: Path) -> None:
    (alone,) = together(_fit, 1, "deepercluster", str(tmp_path), {})
    for shared in together(_fit, 3, "deepercluster", str(tmp_path), {}):
        same_clusters(shared["assignment"], alone["assignment"], "deepercluster")
    apart = together(_fit, 2, "odc", str(tmp_path), {"sync_batchnorm": False})
    assert apart[0]["rows"] == apart[1]["rows"] and apart[0]["rows"][-1]["loss"] > 0


def _cut(group: ProcessGroup, name: str, folder: str, stop_at: int) -> None:
    """Trains until one process, the last, is told to stop within an epoch."""
    from deepcluster.engine import loop

    module: Any = loop
    steps, original = {"done": 0}, module.step_all

    def counting(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        steps["done"] += 1
        if steps["done"] == stop_at and group.rank == group.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    module.step_all = counting
    try:
        run = settings(name, processes=group.size)
        train.train(run, images(N), Path(folder) / "cut", screen=Screen(quiet=True))
    except Interrupted:
        return
    finally:
        module.step_all = original
    raise AssertionError("the run was not stopped")


def _go_on(group: ProcessGroup, folder: str) -> np.ndarray:
    # The run was begun with another number, which is what it would take by itself where no launcher says otherwise.
    processes = 1 if group.is_single else None
    return train.train_again(Path(folder) / "cut", images(N), screen=Screen(quiet=True), processes=processes).assignment


@pytest.mark.parametrize(
    "name", ["deepercluster", "odc", *(pytest.param(name, marks=pytest.mark.slow) for name in ROUNDED)]
)
@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, name: str, before: int, after: int) -> None:
    """One process is told to stop, all do; the rest is done by more processes, or fewer."""
    together(_cut, before, name, str(tmp_path), 12)
    resumed = together(_go_on, after, str(tmp_path))
    (whole,) = together(_fit, 1, name, str(tmp_path), {})
    for assignment in resumed:
        same_clusters(assignment, whole["assignment"], name)


def _photos(group: ProcessGroup, folder: str) -> dict[str, Any]:
    run = settings("deepercluster", batch_size=6, **{"data.cache_gb": 0.0})
    done = train.train(run, str(Path(folder) / "photos"), Path(folder) / f"run-{group.size}", screen=Screen(quiet=True))
    rows = (Path(folder) / f"run-{group.size}" / "bad_images.csv").read_text().splitlines()
    return {"assignment": done.assignment, "bad": rows, "loss": done.metrics[-1]["loss"]}


def test_photos_of_which_some_are_damaged(tmp_path: Path) -> None:
    """Decoded on the way, a whole batch of them undecodable; batches that no number of turns divides."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, picture in enumerate(images(48)):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    for number in (3, 17, 18, 19, 20, 21, 22):
        (folder / f"{number:02d}.png").write_bytes(b"no image")
    for size in (1, 2):
        for done in together(_photos, size, str(tmp_path)):
            assert np.flatnonzero(done["assignment"] < 0).tolist() == [3, 17, 18, 19, 20, 21, 22]
            assert len(done["bad"]) == 8 and np.isfinite(done["loss"])


def _refused(group: ProcessGroup, folder: str, what: str) -> str:
    try:
        if what == "batch":
            train.train(
                settings("deepcluster", batch_size=1), images(N), Path(folder) / "run", screen=Screen(quiet=True)
            )
        elif what == "here":  # one process alone finds something wrong
            with group.collective_section():
                if group.rank == group.size - 1:
                    raise DeepClusterError("the second machine has no images")
        else:
            train.train(settings("deepcluster", k=5000), images(N), Path(folder) / "run", screen=Screen(quiet=True))
    except DeepClusterError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "said"),
    [("batch", "cannot be shared by 2 processes"), ("here", "no images"), ("clusters", "5,000 clusters")],
)
def test_all_processes_end_with_one_sentence(tmp_path: Path, what: str, said: str) -> None:
    for sentence in together(_refused, 2, str(tmp_path), what):
        assert said in sentence
    assert not (tmp_path / "run").exists()


def _clusterer(group: ProcessGroup, folder: str) -> np.ndarray:
    run = settings("deepcluster")
    return train.train(
        run, images(N), Path(folder) / str(group.size), screen=Screen(quiet=True), clusterer=PIC(sigma=0.3)
    ).assignment


def test_a_clusterer_that_must_see_everything(tmp_path: Path) -> None:
    (alone,) = together(_clusterer, 1, str(tmp_path))
    for shared in together(_clusterer, 2, str(tmp_path)):
        np.testing.assert_array_equal(shared, alone)


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deepcluster"],
    "own": ["-m", "deepcluster"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(tmp_path: Path, launcher: str) -> None:
    """The command line under torchrun, and by itself with --processes; a mistake is said once."""
    words = ["train", "tiny-deepcluster", "--data", "digits", "--out", str(tmp_path / "run"), "--epochs", "2"]
    words += ["--processes", "2"] if launcher == "own" else []

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *LAUNCHERS[launcher], *words, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    done = start()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done:") == 1 and done.stdout.count("epoch 2/2") == 1
    assert len(dc.load_run(tmp_path / "run").metrics) == 2
    again = start()
    assert again.returncode != 0
    assert again.stderr.count("already holds a run") == 1


@pytest.mark.slow
def test_two_machines(tmp_path: Path) -> None:
    """Two launchers of torchrun that meet over the network, as on two machines, with one folder that both see."""
    port = free_port()
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "7"]
    where += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    words = ["train", "tiny-deepercluster", "--data", "digits", "--epochs", "2", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "-m", "deepcluster", *words]
    machines = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sum(out.count("done:") for out, _ in said) == 1
    one = train.train(
        override(find_preset("tiny-deepercluster").run, {"epochs": 2}),
        "digits",
        tmp_path / "one",
        screen=Screen(quiet=True),
    )
    two = dc.load_run(tmp_path / "run")
    assert two.config["processes"] == 2 and len(two.metrics) == 2
    assert two.metrics[0]["loss"] == pytest.approx(one.metrics[0]["loss"], rel=1e-2)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_another_number_goes_on(tmp_path: Path) -> None:
    words = ["train", "tiny-odc", "--data", "digits", "--epochs", "400", "--out", str(tmp_path / "run")]
    command = [sys.executable, *LAUNCHERS["torchrun"], *words]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if "epoch 2/" in line:
            break
    launcher.send_signal(signal.SIGTERM)
    out, _ = launcher.communicate(timeout=120)
    assert out.count("stopped and saved") == 1
    step = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["progress"]["step"]
    assert step >= 28
    stopped = train.train_again(tmp_path / "run", epochs=4, screen=Screen(quiet=True))
    assert len(stopped.metrics) == 4

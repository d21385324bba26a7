"""`deepcluster cluster` of images on several processes gives the run folder of one, to the last bit."""

from __future__ import annotations

import json
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

from deepcluster.data.arrays import open_digits
from deepcluster.distributed import ProcessGroup
from deepcluster.engine.cluster import cluster_images
from deepcluster.engine.describe import FEATURES
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.models.zoo import build_backbone
from engine.test_processes import LAUNCHERS
from processes import together

TIMES = ("created", "finished", "processes")
"""What run.json may say of two equal runs otherwise."""
PARTS = {"k": 7, "seed": 3, "part": 512}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network, and 900 digits of which two are damaged: in the part that one process takes, and in the other's."""
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16, widths=(8, 16)).eval()
    Model(backbone, torch.zeros(0, backbone.dim)).save(tmp_path / "net.safetensors")
    digits = open_digits()
    (tmp_path / "photos").mkdir()
    for index in range(900):
        image = Image.fromarray(digits.read(index)).resize((16 + index % 5, 18 + index % 3))
        image.save(tmp_path / "photos" / f"{index:04d}.png")
    for index in (300, 800):
        file = tmp_path / "photos" / f"{index:04d}.png"
        file.write_bytes(file.read_bytes()[:60])
    return tmp_path


def run_of(folder: Path) -> dict[str, Any]:
    """Each file of a run folder, but for times."""
    found: dict[str, Any] = {
        str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    config = json.loads(found["run.json"])
    return found | {"run.json": {name: value for name, value in config.items() if name not in (*TIMES, "crc32")}}


def grouped(group: ProcessGroup, folder: Path, values: dict[str, Any], out: str = "") -> str:
    """What is said where it is refused."""
    values = {"backbone": str(folder / "net.safetensors"), "data": str(folder / "photos")} | values
    try:
        cluster_images(values.pop("data"), folder / (out or f"run-{group.size}"), screen=Screen(quiet=True), **values)
    except DeepClusterError as error:
        return str(error)
    return ""


def digits(count: int) -> np.ndarray:
    return np.stack([open_digits().read(index) for index in range(count)])


@pytest.mark.parametrize(
    "values",
    [
        PARTS,
        pytest.param({"k": 7, "backbone": "patches"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "hierarchical", "k": 8}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "pic"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "temi", "k": 4, "options": {"iterations": 20}}, marks=pytest.mark.slow),
        pytest.param({"data": digits(64)}, marks=pytest.mark.slow),
        pytest.param({"data": digits(64), "k": 64}, marks=pytest.mark.slow),
    ],
    ids=["parts", "patches", "hierarchical", "pic", "temi", "k auto of 64 images", "as many clusters as images"],
)
def test_two_processes_leave_the_run_of_one(folder: Path, values: dict[str, Any]) -> None:
    assert together(grouped, 1, folder, values) == [""] and together(grouped, 2, folder, values) == [""] * 2
    one, two = run_of(folder / "run-1"), run_of(folder / "run-2")
    assert one == two
    if "data" not in values:
        assert [line.split(",")[0] for line in one["bad_images.csv"].decode().splitlines()] == ["index", "300", "800"]


def shares(group: ProcessGroup, folder: Path) -> tuple[str, int]:
    """Each process with another run folder: what is said, and how many images this one has described."""
    described, model = 0, Model.features

    def count(self: Model, *arguments: Any, **values: Any) -> Any:
        nonlocal described
        found = model(self, *arguments, **values)
        described += len(found[0])
        return found

    Model.features = count  # type: ignore[method-assign]
    said = grouped(group, folder, {"k": 5}, f"of-{group.rank}")
    return said, described


def test_all_processes_describe_and_the_first_one_alone_writes(folder: Path) -> None:
    first, *others = together(shares, 3, folder)
    assert first == ("", 511) and [images for _, images in others] == [256, 131]
    for number, (said, _) in enumerate(others, 1):
        assert f"of-{number} does not exist" in said and not (folder / f"of-{number}").exists()


def stopped(group: ProcessGroup, folder: Path, rank: int) -> bool:
    """Groups images until one process is told to stop, in the second part."""
    features = Model.features

    def stop(self: Model, pixels: Any, images: np.ndarray, **values: Any) -> Any:
        if images[0] > 0 and group.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return features(self, pixels, images, **values)

    Model.features = stop  # type: ignore[assignment, method-assign]
    try:
        grouped(group, folder, PARTS, "stopped")
    except Interrupted:
        return True
    finally:
        Model.features = features  # type: ignore[method-assign]
    return False


@pytest.mark.parametrize(
    ("before", "rank", "after"),
    [(2, 1, 1), pytest.param(2, 0, 3, marks=pytest.mark.slow), pytest.param(1, 0, 2, marks=pytest.mark.slow)],
)
def test_told_to_stop_another_number_of_processes_goes_on(folder: Path, before: int, rank: int, after: int) -> None:
    assert all(together(stopped, before, folder, rank))
    (part,) = (folder / "stopped" / FEATURES).glob("part-*.npy")
    made = part.stat().st_mtime_ns
    assert set(together(grouped, after, folder, PARTS, "stopped")) == {""}
    assert part.stat().st_mtime_ns == made
    assert together(grouped, 1, folder, PARTS) == [""]
    assert run_of(folder / "stopped") == run_of(folder / "run-1")


def refused(group: ProcessGroup, folder: Path) -> list[str]:
    mistakes: list[dict[str, Any]] = [
        {"k": 899},
        {"processes": 3},
        {"processes": 0},
        {"image_size": 64},
        {"data": digits(64 + group.rank), "k": 5},
    ]
    return [grouped(group, folder, values, f"run{number}") for number, values in enumerate(mistakes)]


def test_mistakes_are_the_same_sentence_on_all_processes(folder: Path) -> None:
    one, other = together(refused, 2, folder)
    assert one == other
    words = (
        "898 rows cannot make 899 clusters",
        "--processes is 3 but the launcher started 2",
        "--processes is 0: give at least 1",
        "knows the size of its images",
        "see different images",
    )
    for number, sentence in enumerate(one):
        assert words[number] in sentence and (number == 0) == (folder / f"run{number}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(folder: Path, launcher: str) -> None:
    """The command line under torchrun, and by itself with --processes; a mistake is said once."""
    words = ["cluster", str(folder / "photos"), "--backbone", str(folder / "net.safetensors"), "--k", "5"]
    words += ["--out", str(folder / "run")] + (["--processes", "2"] if launcher == "own" else [])
    command = [sys.executable, *LAUNCHERS[launcher], *words]
    done, again = (subprocess.run(command, capture_output=True, text=True, timeout=300, check=False) for _ in range(2))
    assert done.returncode == 0 and done.stdout.count("898 images in 5 clusters") == 1, done.stderr
    assert done.stderr.count("are skipped") + done.stdout.count("are skipped") == 1
    assert json.loads((folder / "run" / "run.json").read_text())["processes"] == 2
    assert (folder / "run" / "report.html").exists()
    assert again.returncode != 0 and again.stderr.count("already holds this run") == 1

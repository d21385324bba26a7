"""Every benchmark runs, small, in a process of its own; what it measures at such sizes means nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepcluster as dc
from evaluate.voc.make import annotation, make_voc

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
IMAGES = "--train {images} --test {images} --out {out}"
SMALL = {
    "cifar": f"{IMAGES} --images 40 --test-images 20 --epochs 1 --k 4 --presets deepcluster-convnet patches --peer",
    "curate": "--train {images} --test {images} --largest 20 --size 20 --test-images 8 --seeds 1 --epochs 1"
    " --from {run}",
    "epoch": "--image-size 64 --batch-size 8 --images 16 --k 4 --rounds 1",
    "evaluation": "--data {images} --test {images} --epochs 1 --shots 1 2 --neighbors 1 5 --out {out}/table a={run}",
    "explore": "--images 500 --k 10 --dim 16",
    "groups": "{images} --backbone {run} --seeds 1",
    "growth": "--only whitening training --vary N --values 200 --set d=16 K=10 --points {out}.json --picture {out}.png",
    "heads": "{images} --seeds 1 --image-size 64 --backbone timm:tf_efficientnet_lite0",
    "input_pipeline": "--sizes 16 --rounds 1",
    "kmeans": "500x16x10 --rounds 2 --repeats 1 --threads 1",
    "length": "--epochs 20",
    "linear": "--images 500 --dim 8 --classes 3",
    "manifest": "--shards 5 --each 20",
    "methods": f"{IMAGES} --images 40 --test-images 20 --epochs 1 --k 4 --only deepcluster",
    "odc_step": "--k 20 --batch 16 --dim 8 --steps 3 --images 100 1000",
    "photos": "--images {images} --out {out} --rows pixels histogram --seeds 1",
    "pic": "--part 100 --threads 1",
    "plan": "--images 500",
    "processes": "--rows 2048 --dim 8 --k 8 --rounds 2 --repeats 1",
    "transfer": "{voc} --networks a=untrained:{run} --rates 0.01 0.02 --seeds 1 --iterations 2 --size 48 --out {out}",
}
"""Benchmark -> arguments of its small run."""
SLOW = {"cifar", "curate", "epoch", "evaluation", "explore", "groups", "growth", "heads", "input_pipeline"}
SLOW |= {"length", "linear", "methods", "odc_step", "photos", "plan", "processes", "transfer"}
"""More than a few seconds on one thread."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of each of three classes, in folders."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(60):
        picture = random.integers(0, 80, (32, 32, 3), np.uint8)
        picture[:, :, number % 3] += 150
        (folder / f"class{number % 3}").mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"class{number % 3}" / f"{number:02}.png")
    return folder


@pytest.fixture
def words(name: str, images: Path, tmp_path: Path) -> list[str]:
    """The arguments of a small run, with what it needs made."""
    places = {"images": images, "out": tmp_path / "out", "voc": tmp_path / "voc", "run": tmp_path / "run"}
    wanted = SMALL[name]
    if "{voc}" in wanted:
        names = [f"{number:03}" for number in range(6)]
        boxes = {each: annotation([("RBC", (5, 5, 30, 25), False)]) for each in names}
        make_voc(places["voc"], {"train": names[:3], "val": names[3:4], "test": names[4:]}, boxes)
    if "{run}" in wanted:
        dc.train("tiny-deepcluster", str(images), places["run"], epochs=1, k=4, device="cpu", quiet=True)
    return wanted.format(**places).split()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SMALL]
)
def test_benchmark_runs(name: str, words: list[str], tmp_path: Path) -> None:
    settings = {
        "PYTHONPATH": str(Path(dc.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "DEEPCLUSTER_TEST_DATA": str(tmp_path / "absent"),
    }
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *words],
        env=os.environ | settings, capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\d", done.stdout)
    if "--peer" in words and importlib.util.find_spec("lightly") is None:
        assert "lightly is not installed" in done.stdout


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_explains_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert not stop.value.code and "usage:" in capsys.readouterr().out


def test_every_benchmark_is_here() -> None:
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == set(SMALL)


def test_make_bench_runs_every_benchmark() -> None:
    target = (BENCHMARKS.parent / "Makefile").read_text().partition("\nbench:")[2].partition("\nclean:")[0]
    assert set(re.findall(r"benchmarks/(\w+)\.py", target)) == set(SMALL)

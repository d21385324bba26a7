"""What an estimate says of bytes and operations, compared with tiny runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepcluster.cli.main import main
from deepcluster.clustering.kmeans import KMeans
from deepcluster.config import TrainRun, override
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import train
from deepcluster.engine.build import build_method, draw_backbone
from deepcluster.engine.log import Screen
from deepcluster.estimate.dry_run import DryRun, bytes_of, count_backbone, countable, saved_bytes
from deepcluster.estimate.estimate import estimate
from deepcluster.estimate.job import Job
from deepcluster.features import product
from deepcluster.presets import find_preset
from restarts import images

N = 300
SMALL = {"epochs": 1, "batch_size": 16, "image_size": 12, "keep_every": 0, "watch": "none", "device": "cpu"}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "deepcluster": ("tiny-deepcluster", {"k": 6, "whiten": 8, "clusterings": 2, "ema_decay": 0.9}),
    "many clusters": ("tiny-deepcluster", {"k": 130, "whiten": 8, "optimizer.name": "adamw", "head": "redraw"}),
    "odc": ("tiny-odc", {"k": 6, "feature_dim": 8, "hidden": 16}),
    "deepcluster-v2": ("tiny-deepcluster-v2", {"k": 6, "feature_dim": 8, "hidden": 16}),
    "swav": ("tiny-swav", {"k": 6, "feature_dim": 8, "hidden": 16, "queue_size": 64}),
    "deepercluster": ("tiny-deepercluster", {"k": 128, "super_clusters": 2, "whiten": 8}),
    "rotnet": ("tiny-rotnet", {"whiten": 8}),
}


def settings(name: str, **values: Any) -> TrainRun:
    preset, own = TINY[name]
    return override(find_preset(preset).run, SMALL | own | values)


def job(run: TrainRun, n: int = N, processes: int = 1, device: str = "cpu") -> Job:
    return Job(run, n, processes, min(8, processes), device)


@pytest.mark.parametrize("name", TINY)
def test_files_are_as_large_as_those_of_a_run(name: str, tmp_path: Path) -> None:
    run = settings(name)
    train.train(run, images(N), tmp_path / "run", screen=Screen(quiet=True))
    sizes = {item.name: item.bytes for item in estimate(job(run)).disk}
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert sizes["last.ckpt"] == pytest.approx(bytes_of([state["method"], state["optimizers"]]), rel=0.01, abs=200)
    header = (tmp_path / "run/model.safetensors").stat().st_size - sizes["model.safetensors"]
    assert -100 <= header < 8000  # a file has its tensors' names, too
    arrays = sum((tmp_path / f"run/{each}.npy").stat().st_size for each in ("assignment", "distance"))
    assert sizes["assignment.npy, distance.npy"] == arrays


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_holds_the_state_of_its_method(name: str, processes: int) -> None:
    n = 6144  # six blocks of 1,024 images, which processes share
    run = settings(name)
    method: Any = run.method
    found = DryRun(run, 16 // processes, processes).at(n, n // processes, method.k)
    group = ProcessGroup(0, processes)
    method = build_method(run, n, group=group)
    own = sum(p.nbytes for p in method.local_parameters or ())
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    assert found["own"] == pytest.approx(own, rel=0.01) and found["shared"] == pytest.approx(trained - own, rel=0.01)
    extra = 20_000 if processes == 1 else 0  # the whitening, which a new method has not yet
    assert -1 <= found["state"] - bytes_of(method.state_dict()) <= extra + 1


def test_a_backbone_is_counted_as_it_computes() -> None:
    run = settings("deepcluster")
    counted, real = count_backbone(run), draw_backbone(run)
    assert counted.dim == real(torch.zeros(2, 3, 12, 12)).shape[1]
    with FlopCounterMode(display=False) as flops:
        real.eval()(torch.zeros(5, 3, 12, 12))
    assert 5 * counted.forward == flops.get_total_flops()
    with FlopCounterMode(display=False) as flops:
        real.train()(torch.zeros(4, 3, 12, 12)).sum().backward()
    assert 4 * counted.training == flops.get_total_flops()
    with saved_bytes(real) as saved:
        real(torch.zeros(8, 3, 12, 12))
    assert 8 * counted.saved == pytest.approx(sum(saved.values()), rel=0.1)


def test_small_views_cost_less() -> None:
    one = count_backbone(settings("deepcluster"))
    more = count_backbone(settings("deepcluster", **{"data.small_views": 2, "data.small_view_size": 8}))
    assert more.views == (12, 8, 8) and one.training < more.training < 3 * one.training


def test_operations_of_clustering_grow_as_those_of_kmeans() -> None:
    """Extrapolated from small numbers of clusters, compared with k-means itself."""
    run = settings("many clusters", **{"method.k": 240, "method.iterations": 4, "method.clusterings": 1})
    n, threads = 6144, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with FlopCounterMode(display=False) as flops, countable():
            x = np.random.default_rng(0).standard_normal((n, 8), np.float32)
            KMeans(240, max_iter=4, precision="float32", random_state=0).fit(x)
    finally:
        torch.set_num_threads(threads)
    whitening = 2 * n * 128 * (128 + 8)
    found = DryRun(run, 16).at(n, n, 240)["refresh_flops"]
    assert found == pytest.approx(flops.get_total_flops() + whitening, rel=0.25)


def test_more_processes_divide_the_work() -> None:
    run = settings("deepcluster", batch_size=128)
    alone, two = (estimate(job(run, 100_000, processes)) for processes in (1, 2))
    first, second = ({stage.name: stage for stage in found.stages} for found in (alone, two))
    for name in ("training steps", "features of all images", "clustering"):
        assert second[name].flops == pytest.approx(first[name].flops / 2, rel=0.05)
    assert first["training steps"].sent == 0 < second["training steps"].sent
    value = DryRun(run, 64, 2).at(100_000, 50_000, 6)
    assert second["training steps"].sent == pytest.approx(value["shared"])  # a ring of two sends each gradient once


@pytest.mark.parametrize("by_numpy", [True, False])
def test_operations_do_not_depend_on_the_library_that_multiplies(
    by_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "by_numpy", lambda: by_numpy)
    run = settings("many clusters", **{"method.k": 240, "method.iterations": 4, "method.clusterings": 1})
    found = DryRun(run, 16).at(6144, 6144, 240)["refresh_flops"]
    rounds = 2 * 6144 * 240 * 8 * (4 + 2)  # of four iterations, the start and the last assignment, at most
    assert 0.3 * rounds < found - 2 * 6144 * 128 * (128 + 8) <= 1.2 * rounds


def test_features_and_clusterings_are_as_many_as_the_method_takes() -> None:
    def times(name: str, **values: Any) -> tuple[float, float]:
        found = {stage.name: stage for stage in estimate(job(settings(name, **values))).stages}
        return found["features of all images"].times, found["clustering"].times

    assert times("deepcluster", epochs=4, **{"method.reassign": 2.0}) == (3, 3)  # the last one for the saved model
    assert times("deepcluster", epochs=4, **{"method.reassign": 0.5}) == (9, 9)
    assert times("deepcluster", epochs=4, **{"method.features": "remembered"}) == (2, 5)
    assert times("deepcluster-v2", epochs=4) == (2, 5)
    assert times("odc", epochs=4) == (1, 1)


@pytest.mark.parametrize(
    ("name", "values"), [("deepcluster-v2", {}), ("odc", {}), ("deepcluster", {"method.features": "remembered"})]
)
def test_an_average_that_sees_the_views_is_counted(name: str, values: dict[str, Any]) -> None:
    def operations(decay: float) -> float:
        run = settings(name, **values, **{"method.ema_decay": decay})
        stages = {stage.name: stage for stage in estimate(job(run, 3200)).stages}
        return stages["training steps"].flops / run.batch_size

    run = settings(name, **values)
    forward = count_backbone(run).forward
    views = 1 if name == "deepcluster" else run.data.views
    assert operations(0.9) - operations(0.0) == pytest.approx(views * forward, rel=0.1)


QUICK = ("deepcluster-convnet", "tiny-deepcluster-pic", "tiny-odc", "tiny-deepercluster", "tiny-rotnet")


@pytest.mark.parametrize("name", QUICK)
def test_presets_of_every_method(name: str) -> None:
    run = find_preset(name).run
    for processes in (1, 8):
        found = estimate(job(run, 1_000_000, processes, "cuda"))
        assert found.seconds > 0 and all(item.bytes > 0 for item in (*found.memory, *found.disk))
        assert set(found.peak) == {"memory", "GPU"}
        assert (sum(stage.sent for stage in found.stages) > 0) == (processes > 1)
        json.dumps(found.as_dict())


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_the_command_prints_tables_or_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("tiny-deepercluster", "--images", "1e8", "--k", "32000", "--processes", "64", "--device", "cuda")
    text = said(capsys, *words)
    assert "NOT MEASURED" in text and "64 processes on 8 machines" in text and "32,000 clusters" in text
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"\n\d+ (hours|days) in all; memory: at most .*\sGPU: at most ", text, re.DOTALL)
    slow, fast = (json.loads(said(capsys, *words, "--json", "--network-gbit", speed)) for speed in ("10", "1000"))
    assert slow["hours"] > fast["hours"] > 0 and slow["peak"]["GPU"]["bytes"] > 0


def test_without_a_preset_it_plans_what_train_would_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert "1,797 images, 22 clusters, convnet, 8 px" in said(capsys, "--data", "digits")
    text = said(capsys, "--images", "50", "--epochs", "3", "--method", "odc")
    assert "50 images, 4 clusters, resnet18, 96 px" in text and "3 epochs" in text
    assert "1 epoch " in said(capsys, "--images", "1e5", "--method.k", "30")


def test_measuring_with_images_of_which_one_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for number, image in enumerate(images(40)):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "05-broken.png").write_bytes(b"no image")
    words = ("tiny-deepcluster", "--data", str(tmp_path), "--measure", "--device", "cpu", "--json")
    found = json.loads(said(capsys, *words))
    assert "timed on this machine" in found["note"] and found["title"].startswith("41 images")
    assert {stage["name"]: stage for stage in found["stages"]}["training steps"]["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Say how many images"),
        (("deepercluster-vgg16", "--images", "100"), "100 images cannot form 320,000 clusters"),
        (("deepercluster-convnet", "--images", "1e6", "--k", "1001"), "do not divide into 4 super-clusters"),
        (("--images", "1.5"), "whole number"),
        (("--images", "many"), "images"),
        (("tiny-deepcluster", "--images", "1e4", "--processes", "2000"), "cannot be shared by 2000 processes"),
        (("tiny-deepcluster", "--images", "1e4", "--per-machine", "-1"), "--per-machine is -1"),
        (("tiny-deepcluster", "--images", "1e4", "--network-gbit", "0"), "--network-gbit is 0"),
        (("tiny-deepcluster", "--images", "1e4", "--device", "tpu"), "no estimate for --device tpu"),
        (("tiny-deepcluster", "--data", "nowhere"), "nowhere"),
        (("nothing", "--images", "1e4"), "no preset 'nothing'"),
    ],
)
def test_impossible_numbers_get_a_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1

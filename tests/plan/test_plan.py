"""What a plan says of bytes, operations and messages, beside what tiny runs really have and tell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from deepcluster.cli.main import main
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.config import TrainRun, override
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import train
from deepcluster.engine.build import build_method, draw_backbone
from deepcluster.engine.log import Screen
from deepcluster.engine.optim import make_optimizer, step_all
from deepcluster.errors import DeepClusterError
from deepcluster.methods.deepercluster import DeeperCluster
from deepcluster.models.sync_batchnorm import Part, convert_sync_batchnorm
from deepcluster.plan import constants, measure, memory
from deepcluster.plan.constants import CPU, GPU, Rounds, Search, worth
from deepcluster.plan.job import Job, job_of
from deepcluster.plan.network import look
from deepcluster.plan.plan import amount, make_plan
from deepcluster.plan.stages import Told, Wire, head_flops, kmeans_seconds, stages, step_told
from deepcluster.presets import PRESETS, find_preset
from deepcluster.types import Batch
from restarts import images

N = 64
SMALL = {"epochs": 1, "batch_size": 16, "image_size": 12, "keep_every": 0, "watch": "none", "device": "cpu"}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "deepcluster": ("tiny-deepcluster", {"k": 6, "whiten": 8, "clusterings": 2, "ema_decay": 0.9}),
    "adamw": ("tiny-deepcluster", {"k": 6, "whiten": 8, "optimizer.name": "adamw", "head": "redraw"}),
    "odc": ("tiny-odc", {"k": 6, "feature_dim": 8, "hidden": 16}),
    "deepercluster": ("tiny-deepercluster", {"k": 8, "super_clusters": 2, "whiten": 8}),
    "rotnet": ("tiny-rotnet", {"whiten": 8}),
}


def settings(name: str, **values: Any) -> TrainRun:
    preset, own = TINY[name]
    return override(find_preset(preset).run, SMALL | own | values)


def small(name: str, **values: Any) -> Job:
    return job_of(settings(name, **values), images=N)


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))


def test_a_network_is_counted_as_a_real_one_computes() -> None:
    run = settings("deepcluster")
    counted, real = look(lambda: draw_backbone(run)), draw_backbone(run)
    assert counted.parameters == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert counted.state == sum(t.nbytes for t in real.state_dict().values())
    assert counted.dim == real(torch.zeros(2, 3, 12, 12)).shape[1]
    with FlopCounterMode(display=False) as flops:
        real.eval()(torch.zeros(5, 3, 12, 12))
    assert 5 * counted.forward == flops.get_total_flops()
    with FlopCounterMode(display=False) as flops:
        real.train()(torch.zeros(4, 3, 12, 12)).sum().backward()
    assert 4 * counted.training == flops.get_total_flops()
    kept: dict[int, int] = {}
    own = {t.data_ptr() for t in (*real.parameters(), *real.buffers())}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real(torch.zeros(8, 3, 12, 12))
    assert 8 * counted.kept == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.parametrize("name", TINY)
def test_files_are_as_large_as_foretold(name: str, tmp_path: Path) -> None:
    run = settings(name)
    train.train(run, images(N), tmp_path / "run", screen=Screen(quiet=True))
    job, folder = job_of(run, images=N), tmp_path / "run"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    held = [t for part in ("method", "optimizers") for t in tensors(state[part])]
    real = sum(t.nbytes for t in held)
    assert memory.checkpoint_bytes(job) == pytest.approx(real, rel=0.01, abs=200)
    # a file has its tensors' names too
    assert 0 <= (folder / "model.safetensors").stat().st_size - memory.model_bytes(job) < 8000
    arrays = sum((folder / f"{each}.npy").stat().st_size for each in ("assignment", "distance"))
    foretold = {item.name: item.bytes for item in memory.disk(job)}
    assert foretold["assignment.npy, distance.npy"] == arrays - 2 * 128
    assert foretold["last.ckpt"] == memory.checkpoint_bytes(job)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)


@pytest.mark.parametrize("name", TINY)
def test_what_a_process_always_holds_is_what_its_method_has(name: str) -> None:
    run, job = settings(name), small(name)
    method = build_method(run, N)
    items: dict[str, int] = {}
    for item in memory.memory(job, 0):
        if item.when == memory.ALWAYS:
            items[item.name] = items.get(item.name, 0) + item.bytes
    names = ("network", "classifiers", "labels of all images", "centroids", "features of own images")
    state = {key: t for key, t in method.state_dict().items() if isinstance(t, torch.Tensor)}
    assert sum(items.get(each, 0) for each in names) == pytest.approx(sum(t.nbytes for t in state.values()), abs=200)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    head_and_neck = trained - sum(p.numel() for p in method.backbone.parameters() if p.requires_grad)
    assert memory.own_numbers(job) + memory.neck_numbers(job) == head_and_neck


def test_processes_divide_the_classifiers_as_the_method_does() -> None:
    run = settings("deepercluster")
    for size in (1, 2, 3, 16):
        job = job_of(override(run, {"processes": size}), images=N)
        group = ProcessGroup(0, size)
        method = build_method(run, N, group=group)
        assert isinstance(method, DeeperCluster)
        own = sum(p.numel() for name, p in method.named_parameters() if "head" in name)
        assert memory.own_numbers(job) == own
        assert job.share == group.row_range(N)[1]


@pytest.mark.parametrize("name", TINY)
def test_a_step_computes_what_was_foretold(name: str) -> None:
    """Forward and back through network and classifiers, counted; the order of a batch decides which rows a
    sub-classifier sees, so it is one that shows all super-classes alike."""
    run, job = settings(name), small(name)
    method = build_method(run, N)
    labels = torch.arange(N) % run.method.k
    getattr(method, "assignments", method.assignment).copy_(labels)
    index = torch.arange(16)
    if name == "deepercluster":
        index = torch.tensor([4 * (i % 8 // 4) + i // 8 for i in range(16)])  # each super-cluster four turns in a row
    if name == "odc":
        method.members  # noqa: B018 - made when asked for
    views = tuple(torch.randn(16, 3, job.view_side, job.view_side) for _ in range(job.views))
    method.train()
    with FlopCounterMode(display=False) as flops:
        method.loss(Batch(index, views, torch.arange(16), 16))["loss"].backward()
    assert 16 * job.views * job.network.training + head_flops(job) == pytest.approx(flops.get_total_flops(), rel=0.01)


class Counted(ProcessGroup):
    """One process that believes it is one of two and counts what it would send: what it hears is its own again."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "told", Told(2))

    def _reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        self.told.sum(values.nbytes)  # type: ignore[attr-defined]
        return values

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        self.told.gather(2 * rows.nbytes)  # type: ignore[attr-defined]
        return torch.cat([rows, rows])

    def lengths(self, count: int) -> list[int]:
        return [count, count]

    def sum_many_(self, tensors: Any) -> None:
        size = sum(tensor.nbytes for tensor in tensors)
        self.told.sum(size)  # type: ignore[attr-defined]

    def gather_equal(self, rows: torch.Tensor) -> torch.Tensor:
        return self.gather(rows)

    def any_of(self, *flags: bool) -> list[bool]:
        self.told.sum(8 * len(flags))  # type: ignore[attr-defined]
        return list(flags)


@pytest.mark.parametrize("name", ["deepcluster", "deepercluster", "odc"])
def test_a_step_tells_what_was_foretold(name: str) -> None:
    run = settings(name, processes=2)
    job, group = job_of(run, images=N), Counted()
    method = build_method(run, N, group=ProcessGroup(0, 2) if name == "deepercluster" else ProcessGroup())
    part = Part(torch.arange(8), 16)
    convert_sync_batchnorm(method, group, part)
    method.group = group
    if name == "odc":
        method.mine = (0, N // 2)
        method.features = method.features[: N // 2]
        F.normalize(method.features.normal_(), dim=1, out=method.features)
    getattr(method, "assignments", method.assignment).copy_(torch.arange(N) % run.method.k)
    optimizer = make_optimizer(method.backbone.parameters(), "sgd", lr=0.0, momentum=0.9, weight_decay=0.0)
    views = tuple(torch.randn(8, 3, job.view_side, job.view_side) for _ in range(job.views))
    batch = Batch(torch.arange(8), views, torch.arange(8), 16)
    method.train()
    method.loss(batch)["loss"].backward()
    step_all([optimizer, *method.optimizers().values()], method.parameters(), 0.0, None, group, method.own)
    if name != "odc":  # whose memory would meet every image twice here
        method.after_step(batch)
    group.any_of(False, False)
    foretold = step_told(job)
    if name == "odc":
        rest = Told(2).gather(16 * 8).gather(16 * 8 * 4, job.views).sum(16 * 8 * 4, job.views)
        foretold.sent -= rest.sent
    assert foretold.sent == pytest.approx(group.told.sent, rel=0.02)  # type: ignore[attr-defined]


def test_a_ring_sends_what_rings_send() -> None:
    told = Told(4).sum(100)
    assert told.sent == 150 and told.messages == 1  # three quarters out, three quarters back
    assert Told(1).sum(100).gather(10).copy(5).sent == 0
    wire = Wire(4, 4, dataclasses.replace(CPU, link=100.0, message=1.0))
    assert wire.seconds(150, 1) == 1.5 + 2
    apart = Wire(4, 2, dataclasses.replace(CPU, link=100.0, network=50.0, network_message=3.0))
    assert apart.seconds(150, 1) == 3 + 6


def test_whitening_and_kmeans_multiply_as_often_as_foretold() -> None:
    job = small("deepcluster", **{"method.clusterings": 1, "method.iterations": 3})
    x = torch.randn(N, job.network.dim)
    with FlopCounterMode(display=False) as flops:
        z = Whitening(8).fit(x).transform(x)
    by_name = {stage.name: stage for stage in stages(job, CPU)}
    products = 2 * N * job.network.dim**2 + 2 * N * job.network.dim * 8
    assert products <= flops.get_total_flops() <= by_name["whitening"].flops
    plain = KMeans(6, max_iter=3, precision="float32", random_state=0)
    with FlopCounterMode(display=False) as flops:
        plain.fit(z)
    columns = 32  # clusters are padded to whole lanes
    assert flops.get_total_flops() >= 2 * N * columns * 8 * (plain.n_iter_ + 1)
    assert by_name["k-means"].flops == 2 * N * 6 * 8 * 4


def test_seconds_are_sums_of_costs() -> None:
    c = dataclasses.replace(CPU, screened=None, plain=Search(1.0, 2.0, 3.0), begin=5.0, round=7.0)
    assert kmeans_seconds(10, 4, 2, 3, c) == (10 * (1 + 4 * (2 + 2 * 3)) * 4, 10 * 2 * 5 + 3 * 4 * 2 * 7)
    fast = dataclasses.replace(c, screened=Search(0.5, 0.0, 0.0), rounds=(Rounds(10, (2, 10), (2.0, 6.0)),))
    search, _ = kmeans_seconds(1000, 300, 2, 10, fast)
    assert search == 1000 * 0.5 * 6.0 + 1000 * (1 + 300 * 8)
    two = dataclasses.replace(fast, rounds=(*fast.rounds, Rounds(1000, (2, 10), (2.0, 10.0))))
    assert worth(two, 10, 100) == pytest.approx(8.0) and worth(two, 10, 1) == 6.0 and worth(two, 10, 1e9) == 10.0
    assert Rounds(1, (2, 4), (2.0, 3.0)).of(6) == 4.0 and Rounds(1, (2, 4), (2.0, 3.0)).of(1) == 1.0


def test_fit_finds_costs_again() -> None:
    true = np.array([3e-9, 2e-3, 0.0])
    columns = np.random.default_rng(0).uniform(1, 9, (8, 3)) * [1e6, 1.0, 1e3]
    assert measure.fit(columns.tolist(), (columns @ true).tolist()) == pytest.approx(true.tolist(), rel=1e-6, abs=1e-12)


def test_constants_come_back_as_they_were_kept() -> None:
    assert constants.load("cpu") is None
    measured = dataclasses.replace(CPU, source="measured today", assumed=("member",))
    constants.save(measured)
    assert constants.load("cpu") == measured
    constants.save(GPU)
    assert constants.load("cuda") == GPU
    constants.file_of("cpu").write_text("{")
    with pytest.raises(DeepClusterError, match="measure again"):
        constants.load("cpu")
    constants.file_of("cpu").write_text(json.dumps({"version": 0}))
    assert constants.load("cpu") is None


def test_more_processes_than_cores_share_them() -> None:
    alone, four = (make_plan(small("deepcluster", processes=w), CPU) for w in (1, 4))
    assert four.constants.matmul == alone.constants.matmul / 4
    assert four.constants.plain.product == 4 * alone.constants.plain.product


QUICK = ("deepcluster-alexnet", "deepcluster-pic-alexnet", "odc-convnet", "deepercluster-convnet", "tiny-rotnet")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_every_preset_has_a_plan(name: str) -> None:
    run = find_preset(name).run
    for processes in (1, 8):
        plan = make_plan(job_of(override(run, {"processes": processes}), images=1e6, device="cuda"), GPU)
        assert plan.run_seconds > plan.epoch_seconds > 0
        assert all(item.bytes > 0 for item in (*plan.memory, *plan.disk))
        assert (sum(stage.told.sent for stage in plan.stages) > 0) == (processes > 1)
        json.dumps(plan.as_dict())


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_the_papers_case(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--images", "1e8", "--k", "320000", "--processes", "64", "--device", "cuda")
    text = said(capsys, *words)
    assert "NOT MEASURED" in text and "64 processes on 8 machines" in text
    assert max(map(len, text.splitlines())) <= 80
    values = json.loads(said(capsys, *words, "--json"))
    stages_ = {stage["name"]: stage for stage in values["stages"]}
    per_iteration = 2 * 63 / 64 * 8 * (80_000 * 4096 + 80_000 + 1)
    assert stages_["k-means"]["bytes_sent"] == pytest.approx(4 * 10 * per_iteration, rel=0.15)
    share = 1e8 / 64
    assert values["job"]["share"] == pytest.approx(share, abs=1024)
    table = next(item for item in values["disk"] if item["name"].startswith("features"))
    assert table["bytes"] == values["job"]["share"] * 4096 * 4
    slower = json.loads(said(capsys, *words, "--json", "--network-gbit", "10"))
    assert slower["seconds_per_epoch"] > values["seconds_per_epoch"]
    more = json.loads(said(capsys, *words, "--json", "--per-machine", "4"))
    assert more["job"]["machines"] == 16


def test_what_was_measured_is_used_where_there_is_such(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tiny-deepcluster", "--images", "1000", "--device", "cpu")
    assert "NOT MEASURED" in said(capsys, *words)
    constants.save(dataclasses.replace(CPU, source="measured on a Sunday", name="my machine"))
    assert "measured on a Sunday" in said(capsys, *words) and "NOT MEASURED" in said(
        capsys, *words, "--constants", "assumed"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Say how many images"),
        (("--images", "100"), "100 images cannot make 320000 clusters"),
        (("--images", "1e6", "--k", "1001"), "do not divide into 4 super-clusters"),
        (("--images", "1.5"), "whole number"),
        (("--images", "many"), "images"),
        (("tiny-deepcluster", "--images", "1e4", "--processes", "2000"), "cannot be shared by 2000 processes"),
        (("tiny-deepcluster", "--images", "1e4", "--per-machine", "-1"), "--per-machine is -1"),
        (("tiny-deepcluster", "--images", "1e4", "--network-gbit", "0"), "--network-gbit is 0"),
        (("tiny-deepcluster", "--images", "1e4", "--device", "tpu"), "no plan for --device tpu"),
        (("tiny-deepcluster", "--images", "1e4", "--device", "cpu", "--constants", "measured"), "Nothing was measured"),
        (("nothing", "--images", "1e4"), "no preset 'nothing'"),
    ],
)
def test_impossible_numbers_get_a_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_amounts_are_said_in_words() -> None:
    assert [amount(v) for v in (0, 12, 1500, 2.5e9, 4e15)] == ["-", "12 B", "1.5 kB", "2.5 GB", "4,000 TB"]


@pytest.mark.slow
def test_measuring_gives_costs_above_zero(capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(said(capsys, "tiny-deepcluster", "--measure", "--device", "cpu", "--json"))
    assert values["source"].startswith("measured")
    assert min(values[name] for name in ("matmul", "scatter64", "link", "write", "read")) > 0
    assert constants.load("cpu") is not None


def test_fit_keeps_above_what_is_known() -> None:
    columns = np.random.default_rng(0).uniform(1, 9, (12, 3))
    seconds = (columns @ [0.5, 1e-3, 2.0]).tolist()
    found = measure.fit(columns.tolist(), seconds, (0, 0.1, 0))
    assert found[1] == pytest.approx(0.1)  # the bound binds, and the others make up for it
    assert min(found) >= 0
    assert measure.fit(columns.tolist(), seconds, (0, 1e-4, 0)) == pytest.approx([0.5, 1e-3, 2.0])

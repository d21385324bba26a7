"""Every check of the doctor: silent on a healthy run, told by one alteration of its folder, and at its threshold."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

import deepcluster as dc
from deepcluster import config as settings
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.views import ViewGroup
from deepcluster.engine import checkpoint
from deepcluster.engine.build import untrained
from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate import doctor
from deepcluster.evaluate.doctor import views as view_agreement
from deepcluster.evaluate.doctor.checks import USUAL_LR, run_checks
from deepcluster.evaluate.doctor.collect import RunDiagnostics, collect
from deepcluster.evaluate.doctor.diagnosis import Diagnosis, diagnose
from deepcluster.evaluate.doctor.findings import SEVERITIES, Finding, how_many, suggested_k
from deepcluster.evaluate.doctor.views import ViewAgreement
from deepcluster.methods.params import ODCParams

Change = Callable[[Path], object]
"""Alters a run folder."""

EPOCHS, K, N = 9, 20, 1797
SAMPLE = 128


# ------------------------------------------------------------------------------------------- a run, and how to alter it


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits preset, shorter: a real run that has nothing wrong with it."""
    folder = tmp_path_factory.mktemp("runs") / "healthy"
    dc.train("tiny-deepcluster", "digits", folder, epochs=EPOCHS, quiet=True)
    shutil.rmtree(folder / "tensorboard")
    return folder


@pytest.fixture(scope="module")
def facts(healthy: Path) -> RunDiagnostics:
    return collect(load_run(healthy, "cpu"), sample=SAMPLE)


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images that differ in hue and in nothing else that lasts: noise, and luma the same for all."""
    draw = np.random.default_rng(0)
    hues = np.array([[200, 60, 80], [50, 130, 60], [70, 90, 255], [150, 90, 20], [120, 60, 230], [0, 120, 160]])
    hues = hues + (115 - hues @ [0.2989, 0.587, 0.114])[:, None]
    pixels = hues[np.arange(240) % 6][:, None, None] + draw.normal(0, 12, (240, 8, 8, 1))
    file = tmp_path_factory.mktemp("color") / "images.npy"
    np.save(file, pixels.clip(0, 255).astype(np.uint8))
    dc.train("tiny-deepcluster", str(file), file.parent / "run", epochs=3, k=6, whiten=8, quiet=True)
    return file.parent / "run"


def rows(folder: Path, **columns: Any) -> None:
    """Puts one value, or one for each epoch, into columns of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for name, values in columns.items():
        for position, line in enumerate(lines):
            line[name] = values[position] if isinstance(values, list) else values
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def steps_done(folder: Path, epochs: int) -> None:
    """As if so many epochs were behind the last checkpoint."""
    file = folder / "checkpoints" / "last.ckpt"
    state = checkpoint.load(file)
    state["progress"]["step"] = epochs * state["progress"]["steps_per_epoch"]
    torch.save(state, file)


def keep_rows(folder: Path, epochs: int) -> None:
    """As if only so many epochs had been noted."""
    file = folder / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:epochs]))


def longer(folder: Path) -> None:
    """As if the run had gone on with the same curves once more."""
    file = folder / "metrics.jsonl"
    file.write_text(2 * file.read_text())


def configure(folder: Path, **values: Any) -> None:
    """Changes settings in run.json."""
    file = folder / "run.json"
    config = json.loads(file.read_text())
    run = settings.override(settings.from_dict(config["settings"]), values)
    file.write_text(json.dumps(config | {"settings": settings.as_dict(run)}))


def assign(folder: Path, cluster: np.ndarray) -> None:
    np.save(folder / "assignment.npy", cluster.astype(np.int64))


def model(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes one tensor of model.safetensors."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as handle:
        tensors, metadata = {key: handle.get_tensor(key) for key in handle.keys()}, handle.metadata()  # noqa: SIM118
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, metadata)


def head(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes one tensor of the last checkpoint."""
    file = folder / "checkpoints" / "last.ckpt"
    state = checkpoint.load(file)
    state["method"][name] = change(state["method"][name])
    torch.save(state, file)


def zeroed(axis: int, keep: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Zeros all but the first `keep` rows or columns."""

    def change(table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        (table if axis == 0 else table.T)[keep:] = 0
        return table

    return change


def spoil(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = math.nan
    return tensor


def in_turn(*changes: Change) -> Change:
    """Several changes, one after another."""

    def change(folder: Path) -> None:
        for step in changes:
            step(folder)

    return change


def ramp(first: float, last: float) -> list[float]:
    return [float(value) for value in np.linspace(first, last, EPOCHS)]


def previous(values: list[float]) -> list[float | None]:
    """The first epoch has no clustering before it."""
    return [None, *values[1:]]


LN_K = math.log(K)
index = np.arange(N)


def reset_backbone(folder: Path) -> None:
    """As if the optimizer had never stepped the backbone."""
    file = folder / "checkpoints" / "last.ckpt"
    state = checkpoint.load(file)
    initial = untrained(json.loads((folder / "run.json").read_text()))
    state["method"] |= {f"backbone.{name}": value for name, value in initial.state_dict().items()}
    torch.save(state, file)


#: check -> (how to alter a healthy run so that it speaks, the severity, words that must be in what is seen).
TRIGGERS: dict[str, tuple[Change, str, str]] = {
    "damaged": (lambda run: (run / "model.safetensors").write_bytes(b"x"), "bad", "model.safetensors cannot be read"),
    "not_numbers": (lambda run: model(run, "centroids", spoil), "bad", "holds NaN or infinity, first centroids"),
    "frozen_backbone": (reset_backbone, "bad", "exactly those it started with"),
    "views_strong": (
        lambda run: configure(run, crop_scale=(0.01, 0.03), rotate=180, translate=0.5), "bad", "of the training views"
    ),
    "views_weak": (
        lambda run: configure(run, rotate=0, translate=0.0, zoom=(1.0, 1.0), shear=0), "warning", "100% of the training"
    ),
    "color_reliance": (lambda run: None, "warning", "Without color"),  # on the colored run as it is
    "loss_stuck": (lambda run: rows(run, loss=LN_K), "bad", "ln 20 = 3.00"),
    "loss_above_guessing": (lambda run: rows(run, loss=1.5 * LN_K), "bad", "The loss is 4.49"),
    "loss_near_zero": (lambda run: rows(run, loss=ramp(2, 0.04)), "warning", "0.040"),
    "loss_rising": (lambda run: rows(run, loss=[2.0, 1.5, 1, 1, 1, 1.2, 1.3, 1.4, 1.5]), "warning", "1.00 to 1.40"),
    "swallowed": (lambda run: assign(run, np.where(index < 1600, 3, index % K)), "bad", "of 1,797 images (90%)"),
    "one_cluster": (
        in_turn(
            lambda run: model(run, "centroids", lambda table: table[:1]), lambda run: assign(run, 0 * index)
        ), "bad", "one cluster.",
    ),
    "empty_clusters": (lambda run: assign(run, index % 10), "warning", "10 of 20 clusters are empty"),
    "uneven_sizes": (
        lambda run: assign(run, np.searchsorted(N * (1 - 0.6 ** np.arange(1, K)), index)), "note", "only as even as"
    ),
    "few_images": (lambda run: assign(run, index // 5), "warning", "5.0 each"),
    "under_segmented": (
        in_turn(
            lambda run: model(run, "centroids", lambda table: table[:8]), lambda run: assign(run, index % 8)
        ),
        "warning", "8 clusters for 10 labelled classes",
    ),
    "nmi_by_chance": (lambda run: rows(run, nmi_previous=0.05), "bad", "is 0.05"),
    "nmi_falling": (lambda run: rows(run, nmi_previous=previous(ramp(0.8, 0.5))), "warning", "to 0.54"),
    "nmi_flat": (lambda run: rows(run, nmi_previous=0.4), "warning", "0.40 now"),
    "settled": (
        in_turn(longer, lambda run: configure(run, epochs=2 * EPOCHS), lambda run: rows(run, nmi_previous=0.85)),
        "ok", "levelled off at 0.85",
    ),
    "labels_drift": (
        lambda run: rows(run, nmi_labels=ramp(0.5, 0.3), nmi_previous=previous(ramp(0.5, 0.7))),
        "warning", "NMI with the labels has fallen",
    ),
    "reassigned": (lambda run: rows(run, reassigned=0.7), "note", "70% of the images"),
    "dead_features": (lambda run: model(run, "embedding.0.components", zeroed(1, 40)), "warning", "88 of 128 features"),
    "rank_collapse": (lambda run: model(run, "embedding.0.components", zeroed(0, 5)), "warning", "in 5 of 32"),
    "unused_outputs": (lambda run: head(run, "assignments", lambda a: a % 8), "warning", "48 of the classifier's 80"),
    "bad_images": (
        lambda run: (run / "bad_images.csv").write_text("index,path,reason\n" + '1,"a, b",no\n' * 90),
        "note", "90 of 1,797 images (5.0%)",
    ),
    "duplicates": (
        lambda run: np.save(run / "distance.npy", np.load(run / "distance.npy") * (index % 2)),
        "warning", "images (49%) are exactly",
    ),
    "clustering_time": (
        lambda run: rows(run, seconds_train=10.0, seconds_features=10.0, seconds_cluster=5.0), "note", "60% of the time"
    ),
    "unfinished": (lambda run: configure(run, epochs=50), "note", "9 of 50 epochs"),
    "curves_lost": (
        lambda run: keep_rows(run, 1),
        "warning", "metrics.jsonl has 1 of the 9 finished epochs",
    ),
    "few_epochs": (
        in_turn(lambda run: steps_done(run, 2), lambda run: keep_rows(run, 2), lambda run: configure(run, epochs=2)),
        "note", "Only 2 epochs",
    ),
}  # fmt: skip

VIEWS = ("views_strong", "views_weak", "color_reliance")


Altered = Callable[[str], RunDiagnostics]


@pytest.fixture(scope="module")
def altered(healthy: Path, colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Altered:
    """What is measured of a copy that is altered as TRIGGERS says; once for all tests."""

    @cache
    def measured(name: str) -> RunDiagnostics:
        run = tmp_path_factory.mktemp(name) / "run"
        shutil.copytree(colored if name == "color_reliance" else healthy, run)
        TRIGGERS[name][0](run)
        found = collect(load_run(run, "cpu"), sample=SAMPLE if name in VIEWS else 0)
        shutil.rmtree(run)
        return found

    return measured


# ------------------------------------------------------------------------------------------------------------- checks


def test_every_check_has_a_trigger_and_words() -> None:
    folder = Path(doctor.__file__).parent
    source = (folder / "checks.py").read_text()
    names = re.findall(r'finding\(\s*run,\s*"(\w+)"', source)
    assert sorted(names) == sorted(TRIGGERS)
    assert sorted(names) == sorted(re.findall(r"^\[(\w+)\]$", (folder / "findings.ini").read_text(), re.M))


def test_no_findings_on_a_healthy_run(facts: RunDiagnostics) -> None:
    assert [finding for finding in run_checks(facts) if finding.severity != "ok"] == []
    assert facts.agreement is not None and not facts.missing and not facts.damaged


def find(name: str, run: RunDiagnostics) -> Finding | None:
    """What the checks say under this name."""
    return next((finding for finding in run_checks(run) if finding.check == name), None)


@pytest.mark.parametrize("name", TRIGGERS)
def test_each_check_finds_its_fault(name: str, altered: Altered) -> None:
    _, severity, words = TRIGGERS[name]
    found = {finding.check: finding for finding in run_checks(altered(name))}
    assert name in found, found
    assert (found[name].severity, words in found[name].seen) == (severity, True), found[name]
    assert found[name].meaning.endswith(".") and found[name].change and found[name].values
    # one thing was altered; what else is said may only be what follows from it
    worse = [other for other in found.values() if other.severity == "bad" and other.check != name]
    assert not worse or name == "damaged", worse


@pytest.mark.parametrize("name", TRIGGERS)
def test_advised_options_exist_and_accept_their_values(name: str, altered: Altered) -> None:
    from deepcluster.cli.parse import parse
    from deepcluster.config import TrainRun

    known = {f"--{option.replace('_', '-')}" for option in settings.names()}
    known |= {"--resume", "--data", "--k", "--overwrite"}
    for finding in run_checks(altered(name)):
        said = set(re.findall(r"--[\w.-]*\w", finding.change))
        assert said <= known, (finding.check, said - known)
        typed = re.findall(
            r"(--[a-z]+\.[\w-]+) ([\d.e-]*\d(?: \d)?|cosine|uniform|previous|paper|k-means\+\+)", finding.change
        )
        words = [word for option, text in dict(typed).items() for word in (option, *text.split())]
        parse(TrainRun, words, prog="train")  # raises where a value does not fit


THRESHOLDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # check, facts on which it is silent, facts a little further on which it speaks
    ("bad_images", {"bad": 17}, {"bad": 18}),
    ("duplicates", {"duplicates": 89}, {"duplicates": 91}),
    ("empty_clusters", {"sizes": np.array([9] * 19 + [0])}, {"sizes": np.array([9] * 18 + [0, 0])}),
    ("few_images", {"sizes": np.full(179, 10)}, {"sizes": np.full(180, 10)}),
    ("under_segmented", {"sizes": np.full(11, 99)}, {"sizes": np.full(10, 99)}),
    ("swallowed", {"sizes": np.array([50, 20, 30])}, {"sizes": np.array([51, 20, 29])}),
    ("swallowed", {"sizes": np.array([19] + [1] * 81)}, {"sizes": np.array([21] + [1] * 79)}),
    ("dead_features", {"features_dead": 64}, {"features_dead": 65}),
    ("rank_collapse", {"directions_alive": 16}, {"directions_alive": 15}),
    ("unused_outputs", {"outputs_unused": 20}, {"outputs_unused": 21}),
]


@pytest.mark.parametrize(("name", "well", "ill"), THRESHOLDS)
def test_thresholds(name: str, well: dict[str, Any], ill: dict[str, Any], facts: RunDiagnostics) -> None:
    assert find(name, dataclasses.replace(facts, **well)) is None
    assert find(name, dataclasses.replace(facts, **ill)) is not None


SEEN = ViewAgreement(images=512, kept=0.6, chance=0.05, passed=0.05, gray_kept=0.9, recognized=0.3)


@pytest.mark.parametrize(
    ("name", "well", "ill"),
    [
        ("views_weak", {"kept": 0.99, "recognized": 0.2}, {"kept": 0.99, "recognized": 0.95}),  # learned, not weak
        ("views_weak", {"kept": 0.9, "recognized": 0.95}, {"kept": 0.96, "recognized": 0.95}),
        ("views_strong", {"kept": 0.05, "passed": 0.06}, {"kept": 0.05, "passed": 0.35}),  # many small clusters
        ("views_strong", {"kept": 0.2, "passed": 0.45}, {"kept": 0.07, "passed": 0.45}),
        ("color_reliance", {"gray_kept": 0.51}, {"gray_kept": 0.49}),
        ("color_reliance", {"gray_kept": 0.3, "kept": 0.2}, {"gray_kept": 0.3, "kept": 0.4}),
    ],
)
def test_thresholds_of_views(name: str, well: dict[str, Any], ill: dict[str, Any], facts: RunDiagnostics) -> None:
    assert find(name, dataclasses.replace(facts, agreement=dataclasses.replace(SEEN, **well))) is None
    assert find(name, dataclasses.replace(facts, agreement=dataclasses.replace(SEEN, **ill))) is not None


@pytest.mark.parametrize(
    ("name", "well", "ill"),
    [
        ("loss_stuck", {"loss": [LN_K, LN_K, 2.9]}, {"loss": [LN_K, LN_K, 2.98]}),
        ("loss_stuck", {"loss": [LN_K]}, {"loss": [LN_K, LN_K]}),
        ("loss_above_guessing", {"loss": [3.0, 3.1]}, {"loss": [3.2, 3.2]}),
        ("loss_near_zero", {"loss": [0.11]}, {"loss": [0.09]}),
        ("loss_rising", {"loss": [1, 1, 1, 1.09, 1.09, 1.09]}, {"loss": [1, 1, 1, 1.12, 1.12, 1.12]}),
        ("nmi_falling", {"nmi_previous": [0.8] * 3 + [0.71] * 3}, {"nmi_previous": [0.8] * 3 + [0.69] * 3}),
        ("nmi_flat", {"nmi_previous": [0.4] * 3 + [0.42] * 3}, {"nmi_previous": [0.4] * 3 + [0.405] * 3}),
        ("nmi_flat", {"nmi_previous": [0.7] * 6}, {"nmi_previous": [0.5] * 6}),
        ("settled", {"nmi_previous": [0.78] * 12}, {"nmi_previous": [0.82] * 12}),
        ("settled", {"nmi_previous": [0.82] * 11}, {"nmi_previous": [0.82] * 12}),
        ("settled", {"nmi_previous": [0.82] * 6 + [0.85] * 6}, {"nmi_previous": [0.82] * 6 + [0.825] * 6}),
        ("reassigned", {"reassigned": [0.49] * 6}, {"reassigned": [0.51] * 6}),
    ],
)  # fmt: skip
def test_thresholds_of_curves(
    name: str, well: dict[str, list[float]], ill: dict[str, list[float]], facts: RunDiagnostics
) -> None:
    for curves, speaks in ((well, False), (ill, True)):
        ((column, values),) = curves.items()
        lines = [{"epoch": epoch, column: value} for epoch, value in enumerate(values)]
        assert (find(name, dataclasses.replace(facts, rows=lines)) is not None) is speaks


def test_chance_nmi_matches_scikit_learn(facts: RunDiagnostics) -> None:
    """The smaller the clusters, the higher the NMI of two clusterings that have nothing in common."""
    from sklearn.metrics import normalized_mutual_info_score

    draw = np.random.default_rng(1)
    assert facts.sizes is not None
    labels = np.repeat(np.arange(K), facts.sizes)
    oracle = np.mean([
        normalized_mutual_info_score(labels, draw.permutation(labels), average_method="geometric") for _ in range(5)
    ])  # fmt: skip
    assert facts.chance_nmi == pytest.approx(oracle, abs=0.01)
    lines = [{"epoch": epoch, "nmi_previous": 0.6} for epoch in range(6)]
    for chance, speaks in ((0.57, False), (0.585, True)):
        told = find("nmi_by_chance", dataclasses.replace(facts, rows=lines, chance_nmi=chance))
        assert (told is not None) is speaks


def test_reassignment_is_only_a_note_in_small_clusters(facts: RunDiagnostics) -> None:
    lines = [{"epoch": epoch, "reassigned": 0.6} for epoch in range(6)]
    for sizes, severity in ((np.full(17, 105), "warning"), (np.full(20, 89), "note")):
        found = find("reassigned", dataclasses.replace(facts, rows=lines, sizes=sizes))
        assert found is not None and found.severity == severity


def test_stuck_loss_blames_the_rate_only_when_it_is_small(facts: RunDiagnostics) -> None:
    lines = [{"epoch": epoch, "loss": LN_K} for epoch in range(4)]

    def change(**values: Any) -> str:
        run = settings.override(settings.from_dict(dict(facts.settings)), values)
        found = find("loss_stuck", dataclasses.replace(facts, rows=lines, classes=None, settings=settings.as_dict(run)))
        assert found is not None
        return found.change

    assert change(optimizer__name="sgd", head_lr=0.002).startswith("Raise its rate, now 0.002: --method.head-lr 0.05")
    assert change(optimizer__name="sgd", head_lr=0.5).startswith("Ask for fewer clusters: --method.k 4")
    run = settings.override(settings.from_dict(dict(facts.settings)), {"head_lr": 0.5})
    few = find("loss_stuck", dataclasses.replace(facts, rows=lines, settings=settings.as_dict(run)))
    assert few is not None and few.change.startswith("Give it more steps")  # twenty clusters for ten classes


@pytest.mark.parametrize(("optimizer", "head_lr"), [("sgd", 1.0), ("adamw", 0.02)])
def test_backbone_that_does_not_move_is_bad(optimizer: str, head_lr: float, tmp_path: Path) -> None:
    """Only the classifier learns at --optimizer.lr 0, and the loss falls all the same."""
    options: dict[str, Any] = {"optimizer.name": optimizer, "optimizer.lr": 0.0, "method.head_lr": head_lr}
    dc.train("tiny-deepcluster", "digits", tmp_path / "run", epochs=1, k=K, quiet=True, **options)
    run = load_run(tmp_path / "run", "cpu")
    found = diagnose(run, sample=0)
    assert run.metrics[-1]["loss"] < 0.99 * LN_K
    assert found.findings[0].check == "frozen_backbone" and found.findings[0].severity == "bad"
    assert found.findings[0].values == {"change": 0.0, "lr": 0.0}
    assert found.first == f"The learning rate is 0: train again with --optimizer.lr {USUAL_LR[optimizer]:g}."


def test_change_of_the_backbone_is_relative_to_its_initial_weights(facts: RunDiagnostics) -> None:
    assert facts.backbone_change is not None and 0.05 < facts.backbone_change < 10
    for change, speaks in ((0.0, True), (9e-5, True), (1.1e-4, False), (None, False)):
        assert (find("frozen_backbone", dataclasses.replace(facts, backbone_change=change)) is not None) is speaks
    short = dataclasses.replace(facts, rows=facts.rows[:2], epochs_done=2, backbone_change=9e-5)
    assert find("frozen_backbone", short) is None  # few steps move little


def test_initial_weights_of_a_file_count_as_unmoved(healthy: Path, tmp_path: Path) -> None:
    weights = str(healthy / "model.safetensors")
    options: dict[str, Any] = {"backbone.weights": weights, "optimizer.lr": 0.0}
    dc.train("tiny-deepcluster", "digits", tmp_path / "run", epochs=1, k=K, quiet=True, **options)
    assert find("frozen_backbone", collect(load_run(tmp_path / "run", "cpu"), sample=0)) is not None


# -------------------------------------------------------------------------------------------------------------- facts


def test_view_agreement_matches_a_loop_over_single_images(colored: Path) -> None:
    """The oracle: each image by itself through the run's own `assign`."""
    run = load_run(colored, "cpu")
    pixels = np.load(colored.parent / "images.npy")
    mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
    luma = np.rint(pixels @ np.array([0.2989, 0.587, 0.114])).astype(np.uint8)
    own, view, gray = (run.assign(x).cluster for x in (pixels, mirrored, np.repeat(luma[..., None], 3, 3)))
    found = view_agreement.measure(
        run.model, run.model.backbone, list(pixels), ViewGroup(size=8, crop_scale=None, flip=1.0)
    )
    assert found.images == len(pixels)
    assert found.kept == pytest.approx((own == view).mean(), abs=0.01)
    assert found.gray_kept == pytest.approx((own == gray).mean(), abs=0.01)
    centroids = run.centroids.numpy()
    passed = []
    for image, other in zip(own, run.whitening.transform(run.features(mirrored)), strict=True):
        distance = np.linalg.norm(centroids - other, axis=1)
        passed.append((distance < distance[image]).sum() / (len(centroids) - 1))
    assert found.passed == pytest.approx(np.mean(passed), abs=0.01)
    shares = [np.bincount(group, minlength=6) / len(own) for group in (own, view)]
    assert found.chance == pytest.approx((shares[0] * shares[1]).sum(), abs=0.01)


def test_recognized_is_one_for_copies_and_low_for_unrelated_features() -> None:
    draw = np.random.default_rng(0)
    table = draw.normal(size=(200, 12)).astype(np.float32)
    assert view_agreement.recognized(table, table, 8) == 1
    assert view_agreement.recognized(table, draw.normal(size=(200, 12)).astype(np.float32), 8) < 0.1


def test_constant_features_are_counted_as_dead(healthy: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(300, 128)).astype(np.float32)
    features[:, ::4] = 3.0
    shutil.copytree(healthy, tmp_path / "run")
    model(
        tmp_path / "run", "embedding.0.components", lambda _: torch.as_tensor(Whitening(32).fit(features).components_)
    )
    found = collect(load_run(tmp_path / "run", "cpu"), sample=0)
    assert (found.features_dead, found.features, found.directions_alive) == (32, 128, 32)


def test_duplicates_match_brute_force(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "run")
    assignment, distance = np.load(healthy / "assignment.npy"), np.load(healthy / "distance.npy")
    assignment[:3], distance[:2] = -1, np.nan
    distance[100:150] = distance[100]
    np.save(tmp_path / "run/assignment.npy", assignment)
    np.save(tmp_path / "run/distance.npy", distance)
    seen: set[tuple[int, float]] = set()
    twins = 0
    for pair in zip(assignment[3:].tolist(), distance[3:].tolist(), strict=True):
        twins += pair in seen
        seen.add(pair)
    found = collect(load_run(tmp_path / "run", "cpu"), sample=0)
    assert found.duplicates == twins > 10
    assert found.sizes is not None and found.sizes.sum() == N - 3


# ------------------------------------------------------------------------------------------------------ broken folders


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("metrics.jsonl", "metrics.jsonl has 0 of the 9 finished epochs"),
        ("model.safetensors", "There is no model.safetensors"),
        ("assignment.npy", "There is no assignment.npy"),
        ("checkpoints/last.ckpt", "There is no checkpoints/last.ckpt"),
        ("distance.npy", ""),
        ("bad_images.csv", ""),
    ],
)
def test_missing_file_is_reported(gone: str, said: str, healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "run")
    (tmp_path / "run" / gone).unlink()
    found = diagnose(load_run(tmp_path / "run", "cpu"), sample=0)
    assert said in " ".join([*found.missing, *(finding.seen for finding in found.findings)])
    assert not [finding for finding in found.findings if finding.severity == "bad"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "assignment.npy", "distance.npy", "checkpoints/last.ckpt"])
def test_damaged_file_is_reported_with_its_repair(name: str, healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"{ this is not it")
    found = diagnose(load_run(tmp_path / "run", "cpu"), sample=0)
    assert found.findings[0].check == "damaged" and found.findings[0].values == {"files": [name]}
    if name == "metrics.jsonl":
        assert found.first == "Delete the broken lines of metrics.jsonl"
    elif name.endswith("ckpt"):  # the preset keeps none of nine epochs
        assert found.first.startswith("There is no earlier checkpoint") and "--overwrite" in found.first
    else:
        assert found.first == f"Write {name} again from the last checkpoint: deepcluster train --resume {tmp_path}/run"


def test_latest_checkpoint_replaces_a_damaged_one(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "run")
    for number in (3, 5):
        shutil.copy(tmp_path / "run/checkpoints/last.ckpt", tmp_path / f"run/checkpoints/epoch-{number:04d}.ckpt")
    (tmp_path / "run/checkpoints/last.ckpt").write_bytes(b"x")
    (tmp_path / "run/assignment.npy").write_bytes(b"x")
    first = diagnose(load_run(tmp_path / "run", "cpu"), sample=0).first
    assert first.startswith("Copy checkpoints/epoch-0005.ckpt over checkpoints/last.ckpt and resume from there: ")
    (tmp_path / "run/checkpoints/last.ckpt").unlink()
    first = diagnose(load_run(tmp_path / "run", "cpu"), sample=0).first
    assert "no checkpoint to write them from" in first


def test_lost_curves_of_a_finished_run_advise_more_epochs(healthy: Path, tmp_path: Path) -> None:
    """Resuming a finished run writes no curves: it is to be lengthened, and the command that is named does so."""
    shutil.copytree(healthy, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    found = diagnose(load_run(tmp_path / "run", "cpu"), sample=0)
    assert {finding.check for finding in found.findings} == {"curves_lost"}
    assert found.first.endswith(f"deepcluster train --resume {tmp_path}/run --epochs 18")


def test_advised_command_lengthens_a_short_run(healthy: Path, tmp_path: Path) -> None:
    from deepcluster.cli.main import main

    dc.train("tiny-deepcluster", "digits", tmp_path / "run", epochs=1, k=20, quiet=True)
    found = diagnose(load_run(tmp_path / "run", "cpu"), sample=0)
    (short,) = (finding for finding in found.findings if finding.check == "few_epochs")
    command = short.change.removeprefix("Train longer: deepcluster ")
    assert command == f"train --resume {tmp_path}/run --epochs 30"
    assert main([*command.split()[:-1], "3"]) == 0
    assert "few_epochs" not in {each.check for each in diagnose(load_run(tmp_path / "run", "cpu"), sample=0).findings}


def test_early_stopped_run_is_finished(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "run")
    configure(tmp_path / "run", epochs=50, watch="knn", stop=True)
    found = diagnose(load_run(tmp_path / "run", "cpu"), sample=0)
    assert "unfinished" not in {finding.check for finding in found.findings}


@pytest.mark.parametrize("preset", ["tiny-odc", "tiny-deepcluster-pic"])
def test_runs_of_other_methods_are_read(preset: str, tmp_path: Path) -> None:
    dc.train(preset, "digits", tmp_path / "run", epochs=1, quiet=True)
    assert "unused_outputs" not in {
        finding.check for finding in diagnose(load_run(tmp_path / "run"), sample=0).findings
    }


PIC = {"algorithm": "pic", "k": 0, "clusterings": 1}
OWN = {"algorithm": "custom", "k": 0, "clusterings": 1}


@pytest.mark.parametrize("values", [PIC, OWN, None], ids=["pic", "custom", "odc"])
@pytest.mark.parametrize("name", [name for name in TRIGGERS if name not in VIEWS])
def test_advice_names_only_options_of_the_method(values: dict[str, Any] | None, name: str, altered: Altered) -> None:
    """Only options that the run has and follows: PIC and one's own clusterers find K, ODC has no reassignments."""
    facts = altered(name)
    run = settings.from_dict(dict(facts.settings))
    run = dataclasses.replace(run, method=ODCParams(k=20)) if values is None else settings.override(run, values)
    facts = dataclasses.replace(facts, settings=settings.as_dict(run))
    known = {f"--{option.replace('_', '-')}" for option in settings.names(run)}
    if values is not None:
        known -= {"--method.k", "--method.init", "--method.iterations", "--method.spherical", "--method.backend"}
    found = run_checks(facts)
    assert name in {finding.check for finding in found}
    for text in (*(finding.change for finding in found), how_many(facts)):
        assert set(re.findall(r"--method\.[\w-]*\w", text)) <= known, text


def test_other_images_than_those_of_training_are_noted(colored: Path, tmp_path: Path) -> None:
    run = load_run(colored, "cpu")
    pixels = np.load(colored.parent / "images.npy")
    np.save(tmp_path / "other.npy", 255 - pixels)
    found = diagnose(run, str(tmp_path / "other.npy"), sample=0)
    assert "other.npy is not what the run was trained on" in found.missing[0]
    np.save(tmp_path / "few.npy", pixels[:20])
    with pytest.raises(DeepClusterError, match=r"holds 20 images and .* was trained on 240"):
        diagnose(run, str(tmp_path / "few.npy"))
    assert not diagnose(run, str(colored.parent / "images.npy"), sample=0).missing


def test_folder_with_only_run_json(healthy: Path, tmp_path: Path) -> None:
    shutil.copy(healthy / "run.json", tmp_path)
    found = diagnose(load_run(tmp_path, "cpu"))
    assert [finding.check for finding in found.findings] == ["unfinished"]
    assert len(found.missing) == 3 and "--method.k 100" in found.how_many


def test_moved_images_are_noted_and_can_be_given(colored: Path, tmp_path: Path) -> None:
    shutil.copytree(colored, tmp_path / "run")
    config = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(config | {"data": "/nowhere/photos"}))
    found = diagnose(load_run(tmp_path / "run", "cpu"))
    assert any("/nowhere/photos" in sentence and "--data" in sentence for sentence in found.missing)
    assert "color_reliance" not in {finding.check for finding in found.findings}
    found = diagnose(load_run(tmp_path / "run", "cpu"), str(colored.parent / "images.npy"))
    assert not found.missing and "color_reliance" in {finding.check for finding in found.findings}
    found = diagnose(load_run(tmp_path / "run", "cpu"), str(colored.parent / "images.npy"), sample=20)
    assert "there are 20" in found.missing[0]
    with pytest.raises(DeepClusterError, match="nowhere"):
        diagnose(load_run(colored, "cpu"), "/nowhere")
    with pytest.raises(DeepClusterError, match="--images is -1: give 0 images or more"):
        diagnose(load_run(colored, "cpu"), sample=-1)


def test_diagnosis_changes_no_file(healthy: Path) -> None:
    before = {path: path.read_bytes() for path in healthy.rglob("*") if path.is_file()}
    diagnose(load_run(healthy, "cpu"), sample=SAMPLE)
    assert before == {path: path.read_bytes() for path in healthy.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------- K, and what is said


@pytest.mark.parametrize(
    ("images", "classes", "k"),
    [
        (1_281_167, 1000, 10_000),  # ImageNet: the paper's own
        (50_000, 10, 100),
        (1797, 10, 100),
        (500, 100, 200),  # labels so fine that ten images each are not to be had
        (20_000, None, 200),
        (150, None, 2),
        (20_000, 1, 200),  # one class says nothing
    ],
)
def test_suggested_k(images: int, classes: int | None, k: int) -> None:
    facts = RunDiagnostics("run", {}, images, classes=classes)
    assert suggested_k(facts) == k
    assert f"--method.k {k}" in how_many(facts)


def test_how_many_judges_the_number_of_the_run() -> None:
    def said(sizes: list[int], classes: int | None) -> str:
        return how_many(RunDiagnostics("run", {}, sum(sizes), classes=classes, sizes=np.array(sizes)))

    assert said([100] * 100, 10).endswith("a good number.")
    assert said([500] * 20, 10).endswith("it can work.")
    assert said([1000] * 10, 10).endswith("change it.")
    assert said([3] * 900, None).endswith("change it.")
    assert how_many(RunDiagnostics("run", {}, 0)) == "How many clusters cannot be said without images."


def test_worst_finding_comes_first(facts: RunDiagnostics) -> None:
    lines = [{"epoch": epoch, "loss": LN_K} for epoch in range(3)]
    found = run_checks(dataclasses.replace(facts, rows=lines, bad=100, sizes=np.full(500, 3)))
    order = [SEVERITIES.index(finding.severity) for finding in found]
    assert order == sorted(order) and len(set(order)) == 2  # warning before note; 20 is not 500
    seen = Diagnosis("run", found, "", 2, [])
    assert seen.first == found[0].change
    assert Diagnosis("run", [], "", None, []).first == "Nothing has to be changed."
    notes = [dataclasses.replace(finding, severity="note") for finding in found]
    assert Diagnosis("run", notes, "", None, []).first == f"Nothing is wrong. {found[0].change}"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Diagnosis("run", notes[:1] * 2, "", None, []).table())
    assert "run: nothing wrong, 2 notes" in console.export_text()


def test_table_and_json_agree(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "run")
    TRIGGERS["loss_stuck"][0](tmp_path / "run")
    found = diagnose(load_run(tmp_path / "run", "cpu"), sample=0)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    text = " ".join(console.export_text().split())
    for finding in found.findings:
        assert f"{finding.seen} {finding.meaning} → {finding.change}" in text
    assert found.how_many in text and f"What to try first: {found.first}" in text and "1 bad" in text
    file = found.save(tmp_path / "run")
    assert file == tmp_path / "run/evaluation/doctor.json" and file.read_text() == found.json() + "\n"
    content = json.loads(file.read_text())
    assert set(content["findings"][0]) == {"check", "severity", "seen", "meaning", "change", "values"}
    assert content["findings"][0]["check"] == "loss_stuck" and content["first"] == found.first
    console.print(diagnose(load_run(healthy, "cpu"), sample=0).table())
    assert "looks healthy" in console.export_text()


def test_doctor_command(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepcluster.cli.main import main

    assert main(["doctor", str(healthy), "--images", "0", "--device", "cpu"]) == 0
    assert "looks healthy" in capsys.readouterr().out
    assert main(["doctor", str(healthy), "--json", "--images", str(SAMPLE)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out) == json.loads((healthy / "evaluation/doctor.json").read_text())
    shutil.rmtree(healthy / "evaluation")
    assert main(["doctor", str(healthy.parent)]) == 2
    assert main(["doctor", str(healthy), "--data", "/nowhere"]) == 2
    assert "Traceback" not in capsys.readouterr().err

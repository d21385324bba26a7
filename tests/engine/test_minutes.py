"""Runs that were given minutes: how many epochs follow, that measuring leaves no trace, and the time that is left."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcluster.config import override
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import checkpoint, train
from deepcluster.engine.build import build_method
from deepcluster.engine.clock import Clock, clusterings_due, duration, known_seconds
from deepcluster.engine.log import Screen
from deepcluster.engine.speed import Later, Speed, clustered
from deepcluster.errors import DeepClusterError
from deepcluster.presets import find_preset
from processes import together
from restarts import differing, fit, images, settings

METHODS: dict[str, dict[str, Any]] = {
    "deepcluster": {"reassign": 0.5, "ema_decay": 0.9, "clusterings": 2},
    "odc": {"k": 5, "feature_dim": 8, "hidden": 16},
    "deepercluster": {"k": 6, "whiten": 8},
}


def run_of(method: str, **values: Any) -> Any:
    small = {"epochs": 2, "batch_size": 16, "image_size": 12, "keep_every": 1}
    return override(find_preset(f"tiny-{method}").run, {"k": 5} | small | METHODS[method] | values)


@pytest.mark.parametrize("reassign", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("later", [Later(True, True, True), Later(False, True, True), Later(False, False, False)])
def test_epochs_are_the_most_that_fit(reassign: float, later: Later) -> None:
    """Compared with adding up one epoch after another."""
    method, per_epoch = build_method(settings(reassign=reassign), 1), 7
    speed = Speed(step=0.5, clustering=2.5, features=1.5, epoch=0.25, start=4.0, later=later)

    def oracle(epochs: int) -> float:
        seconds, first = 4.0 + 0.25, True
        for step in range(epochs * per_epoch):
            if method.due(step, per_epoch):
                seconds += 1.5 * (first or later.features) + 2.5 * (first or later.clusters)
                first = False
            seconds += 0.5
        return seconds + epochs * 0.25 + 1.5 * later.last + 2.5 * later.clusters

    for seconds in (0.0, 10.0, 33.3, 100.0, 1_000.0):
        fitting = [epochs for epochs in range(1, 400) if oracle(epochs) <= seconds]
        epochs, whole = speed.epochs_within(seconds, method, per_epoch)
        assert epochs == max(fitting, default=1)
        assert whole == pytest.approx(oracle(epochs))


@pytest.mark.parametrize(
    ("preset", "values", "later"),
    [
        ("tiny-deepcluster", {}, Later(True, True, True)),
        ("tiny-deepcluster", {"features": "remembered"}, Later(False, True, True)),
        ("tiny-deepercluster", {"super_clusters": 1}, Later(True, True, True)),
        ("tiny-deepcluster-v2", {}, Later(False, True, True)),
        ("tiny-swav", {}, Later(True, True, True)),
        ("tiny-odc", {}, Later(False, False, False)),
    ],
)
def test_what_later_clusterings_take(preset: str, values: dict[str, Any], later: Later) -> None:
    method = build_method(override(find_preset(preset).run, {"k": 5, "image_size": 12} | values), 64)
    clustered(method, 64)
    assert Later.of(method) == later
    assert later.counts(due=10) == (1 + 9 * later.features + later.last, 1 + 10 * later.clusters)


@pytest.mark.parametrize("method", METHODS)
def test_measuring_leaves_no_trace(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the run that was given the epochs."""
    monkeypatch.setattr(Speed, "epochs_within", lambda *_: (2, 1.0))
    given = fit(tmp_path / "given", run_of(method))
    found = fit(tmp_path / "found", run_of(method, epochs=77, minutes=5.0))
    assert differing(given, found) == []
    config = json.loads((tmp_path / "found/run.json").read_text())["settings"]
    assert (config["epochs"], config["minutes"]) == (2, 5.0)
    names = [sorted(path.name for path in (tmp_path / each).iterdir()) for each in ("given", "found")]
    assert names[0] == names[1]


def test_a_killed_run_goes_on_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its learning rates and all else are those of the run that was not killed, bit for bit."""
    cosine = {"optimizer.schedule": "cosine", "minutes": 5.0}
    monkeypatch.setattr(Speed, "epochs_within", lambda *_: (3, 1.0))
    whole = fit(tmp_path / "whole", settings(**cosine))
    original: Any = checkpoint.save

    class Killed(Exception):
        pass

    def save(file: Path, *state: Any) -> None:
        original(file, *state)
        if file.name == "last.ckpt":
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", settings(**cosine))
    monkeypatch.setattr(checkpoint, "save", original)
    monkeypatch.setattr(train, "measure", lambda *_: pytest.fail("it was measured again"))
    run = train.train_again(tmp_path / "cut", images(), Screen(quiet=True))
    assert len(run.metrics) == 3 and run.config["settings"]["epochs"] == 3
    assert differing(whole, checkpoint.load(tmp_path / "cut/checkpoints/last.ckpt")) == []


def test_at_least_one_epoch_is_trained_and_its_length_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train.train(settings(minutes=1e-4), images(), tmp_path / "run", screen=Screen())
    assert len(run.metrics) == 1
    assert "--minutes 0.0001 is too short for a single epoch, which is trained all the same" in capsys.readouterr().out


@pytest.mark.slow
def test_the_estimate_is_on_screen_before_the_first_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.train(settings(minutes=0.15, batch_size=64), images(), tmp_path / "run", screen=Screen())
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("epoch 1/"))
    assert lines[0] == "measuring the speed of this machine"
    assert any(" left: " in line and " epochs of " in line for line in lines[:first]) or "too short" in lines[1]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert all(line.endswith(" left") for line in epochs[:-1]) and not epochs[-1].endswith("left")


def test_mistakes_are_found_while_measuring_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="There are 64 images for 65 clusters"):
        fit(tmp_path / "run", settings(minutes=1.0, k=65))
    assert not (tmp_path / "run").exists()


def _fit(group: ProcessGroup, folder: str) -> tuple[int, np.ndarray]:
    run = train.train(
        settings(minutes=0.05, batch_size=32, precision="32"), images(1100), Path(folder), screen=Screen(quiet=True)
    )
    return run.config["settings"]["epochs"], run.assignment


@pytest.mark.slow
def test_processes_agree_on_the_epochs(tmp_path: Path) -> None:
    one, two = together(_fit, 2, str(tmp_path / "run"))
    assert one[0] == two[0] >= 1
    np.testing.assert_array_equal(one[1], two[1])


def test_the_time_that_is_left_is_the_sum_of_what_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Clock(build_method(settings(reassign=1.0), 1), 3, 4)
    assert watch.left(0) == 0  # nothing is known yet

    def lap(kind: str, seconds: float) -> None:
        now[0] += seconds
        watch.lap(kind)

    lap("clustering", 2.0)
    lap("step", 5.0)  # the first one compiles
    assert watch.first_word(1) == ""
    lap("step", 1.0)
    assert watch.left(2) == pytest.approx(10 * 1.0 + 3 * 2.0)  # before epochs 2 and 3, and at the end
    lap("step", 3.0)
    lap("step", 3.0)
    assert watch.first_word(4) == "about 22 s left: 3 epochs of 4 steps" and watch.first_word(4) == ""
    lap("epoch", 0.5)
    assert watch.left(4) == pytest.approx(8 * 2.0 + 3 * 2.0 + 2 * 0.5)
    assert watch.left(12) == pytest.approx(2.0)  # the last clustering


def test_a_resumed_run_knows_its_clusterings() -> None:
    rows = [{"seconds_features": 3.0, "seconds_cluster": 1.0}, {"seconds_features": 0.0}, {"seconds_cluster": 2.0}]
    assert known_seconds(rows) == {"clustering": 3.0} and known_seconds([]) == {}


def test_clusterings_are_counted_as_they_are_due() -> None:
    method = build_method(settings(reassign=0.4), 1)
    due = clusterings_due(method, 3, 5)
    np.testing.assert_allclose(due, [step / 5 for step in range(15) if method.due(step, 5)])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "0.2 s"),
        (59.6, "60 s"),
        (100, "1.7 minutes"),
        (1200, "20 minutes"),
        (7200, "2.0 hours"),
        (9e5, "10 days"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words

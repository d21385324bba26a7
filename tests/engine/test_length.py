"""A finished run that is made longer is the run that was long from the beginning; and what a finished run says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.config import override
from deepcluster.engine import checkpoint, train
from deepcluster.engine.length import epochs_done, is_finished
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterError
from restarts import differing, fit, images, settings, stop_after

QUIET = Screen(quiet=True)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, finished, on images that lie on disk."""
    folder = tmp_path_factory.mktemp("short")
    np.save(folder / "images.npy", images())
    train.train(settings(), str(folder / "images.npy"), folder / "run", screen=QUIET)
    return folder / "run"


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    shutil.copytree(short, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, marks=pytest.mark.slow, id="plain"),
        pytest.param({"reassign": 0.4, "optimizer.name": "adamw"}, id="fractional"),
    ],
)
def test_a_run_made_longer_is_the_long_run(values: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, where the learning rate does not depend on the length."""
    values = {"optimizer.schedule": "constant", **values}
    whole = fit(tmp_path / "whole", settings(**values, epochs=3))
    fit(tmp_path / "short", settings(**values, epochs=1))
    longer = train.train_again(tmp_path / "short", images(), QUIET, epochs=3)
    assert differing(whole, checkpoint.load(tmp_path / "short/checkpoints/last.ckpt")) == []
    np.testing.assert_array_equal(longer.assignment, load_run(tmp_path / "whole").assignment)
    assert longer.config["settings"]["epochs"] == 3 and longer.config["finished"]


def test_the_schedule_follows_the_new_length(tmp_path: Path) -> None:
    cosine = {"optimizer.schedule": "cosine", "method.head_lr": 0.1}
    fit(tmp_path / "run", settings(**cosine, epochs=2))
    fit(tmp_path / "whole", settings(**cosine, epochs=4))
    rates = [row["lr"] for row in train.train_again(tmp_path / "run", images(), QUIET, epochs=4).metrics]
    whole = [row["lr"] for row in load_run(tmp_path / "whole").metrics]
    assert rates[2:] == whole[2:] and rates[1] < rates[2]  # it had fallen to the end, and is back on the longer curve


def test_a_run_that_was_stopped_can_be_made_shorter_but_not_than_it_is(tmp_path: Path) -> None:
    stop_after(tmp_path / "cut", settings(epochs=5), 6)  # four steps an epoch
    assert epochs_done(tmp_path / "cut") == 1.5
    before = (tmp_path / "cut/run.json").read_text()
    with pytest.raises(DeepClusterError, match=r"1\.5 epochs behind it .* --epochs 2 or more"):
        train.train_again(tmp_path / "cut", images(), QUIET, epochs=1)
    assert (tmp_path / "cut/run.json").read_text() == before
    assert len(train.train_again(tmp_path / "cut", images(), QUIET, epochs=2).metrics) == 2


def test_a_run_that_ended_itself_goes_on_when_it_is_told_to(tmp_path: Path) -> None:
    for number, pixels in enumerate(images(32)):
        file = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    still = {"lr": 0.0, "optimizer.weight_decay": 0.0, "head_lr": 0.0, "watch": "knn", "patience": 1, "stop": True}
    run = train.train(settings(**still, epochs=9), str(tmp_path / "data"), tmp_path / "run", screen=QUIET)
    done = len(run.metrics)
    assert done < 9 and is_finished(run.folder)
    longer = train.train_again(run.folder, screen=QUIET, epochs=done + 1)
    assert len(longer.metrics) == done + 1 and longer.config["settings"]["stop"] is False


def test_a_finished_run_says_so_and_how_to_lengthen_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert main(["train", "--resume", str(run)]) == 0
    assert f"is finished after 2 epochs. To train it longer: deepcluster train --resume {run} --epochs 4" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == files
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 2
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    assert "epoch 3/3" in capsys.readouterr().out and len(load_run(run).metrics) == 3
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 2
    assert "--epochs 3 or more" in capsys.readouterr().err


def test_a_finished_run_with_a_damaged_file_is_made_whole(run: Path) -> None:
    whole = np.load(run / "assignment.npy")
    assert is_finished(run)
    (run / "assignment.npy").write_bytes((run / "assignment.npy").read_bytes()[:-8])
    assert not is_finished(run)
    assert main(["train", "--resume", str(run)]) == 0
    np.testing.assert_array_equal(np.load(run / "assignment.npy"), whole)


def test_an_earlier_checkpoint_in_the_place_of_the_last_is_gone_on_from(run: Path) -> None:
    shutil.copy(run / "checkpoints/epoch-0000.ckpt", run / "checkpoints/last.ckpt")
    assert not is_finished(run) and epochs_done(run) == 1
    assert main(["train", "--resume", str(run)]) == 0
    assert is_finished(run)


def test_epochs_as_they_are_change_nothing(run: Path) -> None:
    config = load_run(run).config
    assert override(settings(), {"epochs": 2}).epochs == config["settings"]["epochs"]
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    assert load_run(run).config == config


def test_python_lengthens_a_run_and_changes_nothing_else(tmp_path: Path) -> None:
    dc.train(settings(epochs=1), images(), tmp_path / "run", quiet=True)
    longer = dc.train(settings(epochs=1), images(), tmp_path / "run", resume=True, quiet=True, epochs=2)
    assert [row["epoch"] for row in longer.metrics] == [0, 1]
    with pytest.raises(DeepClusterError, match="other settings"):
        dc.train(settings(epochs=3, seed=5), images(), tmp_path / "run", resume=True, quiet=True)

"""A run that goes on with another setting than it was trained with: refused in a sentence, or applied and noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.config import TrainRun, from_dict, names
from deepcluster.engine import checkpoint, train
from deepcluster.engine.log import Screen
from deepcluster.engine.run_folder import ELSEWHERE, IDENTITY
from deepcluster.errors import DeepClusterError
from restarts import SMALL, images, settings

QUIET = Screen(quiet=True)
APPLIED = {
    name for name in names() if name.partition(".")[0] not in IDENTITY or name in {f"data.{each}" for each in ELSEWHERE}
} | {"optimizer.lr"}
"""What says how a run is computed, watched or saved, and not which run it is."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "images.npy", images())
    return dc.train(settings(), str(folder / "images.npy"), folder / "run", quiet=True).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def another(run: TrainRun, name: str) -> Any:
    """A value of a setting that a run does not have."""
    group, _, part = name.rpartition(".")
    target = getattr(run, group) if group else run
    value, kind = getattr(target, part), get_type_hints(type(target))[part]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if value is None:
        return (0.5, 0.75) if "tuple" in str(kind) else 0.5
    other: dict[type, Any] = {dict: {"widths": [8] * 5}, tuple: (0.5, 0.75), str: f"{value}x"}
    if name in ("device", "backbone.name"):
        return {"device": "cpu", "backbone.name": "resnet18"}[name]
    return other.get(type(value)) or (not value if isinstance(value, bool) else value + type(value)(1))


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and "tensorboard" not in file.parts)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def said(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


@pytest.mark.parametrize("name", names())
def test_in_python_another_setting_is_refused_by_its_name(name: str, run: Path) -> None:
    value, before = another(from_dict(said(run)["settings"]), name), content(run)
    if name in ("epochs", "optimizer.lr"):
        assert dc.train(None, said(run)["data"], run, resume=True, quiet=True, **{name: value}).config["settings"]
        group, _, part = name.rpartition(".")
        found = said(run)["settings"]
        assert (found[group] if group else found)[part] == value
        return
    with pytest.raises(DeepClusterError) as found:
        dc.train(None, said(run)["data"], run, resume=True, quiet=True, **{name: value})
    assert f"other settings than these ({name})" in str(found.value)
    assert content(run) == before


def test_options_of_the_command_are_those_that_are_applied(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    for name in set(names()) - {"epochs", "processes", "optimizer.lr"}:
        value = str(another(from_dict(said(run)["settings"]), name))
        option = f"--{name.replace('_', '-')}"
        assert main(["train", "--resume", str(run), option, value]) == 2, name
        assert option[2:] in capsys.readouterr().err
    assert content(run) == before


@pytest.mark.parametrize("name", sorted(set(names()) - {"compile", "processes", "epochs", "stop", "minutes", "watch"}))
def test_in_run_json_another_setting_is_refused_or_applied(name: str, run: Path, tmp_path: Path) -> None:
    config = said(run)
    value = another(from_dict(config["settings"]), name)
    group, _, part = name.rpartition(".")
    (config["settings"][group] if group else config["settings"])[part] = value
    (run / "run.json").write_text(json.dumps(config))
    before = content(run)
    if name in APPLIED:
        train.train_again(run, screen=QUIET)
        assert "finished" in said(run)
        return
    with pytest.raises(DeepClusterError):
        train.train_again(run, screen=QUIET)
    assert content(run) == before


def test_what_is_applied_is_noted(run: Path) -> None:
    changed = settings(**{"optimizer.lr": 0.5, "save_minutes": 3.0, "epochs": 3})
    train.train(changed, said(run)["data"], run, resume=True, screen=QUIET)
    found = said(run)
    assert {(each["setting"], each["before"], each["after"]) for each in found["changes"]} == {
        ("optimizer.lr", settings().optimizer.lr, 0.5),
        ("save_minutes", settings().save_minutes, 3.0),
    }
    assert all(each["epochs_done"] == 2.0 for each in found["changes"])
    assert (found["settings"]["save_minutes"], found["settings"]["epochs"]) == (3.0, 3)


@pytest.mark.parametrize("other", [{"seed": 1}, {"optimizer.momentum": 0.5}])
def test_a_checkpoint_of_another_run_is_refused(other: dict[str, Any], run: Path, tmp_path: Path) -> None:
    dc.train(settings(**other), said(run)["data"], tmp_path / "other", quiet=True)
    file, before = tmp_path / "other/checkpoints/last.ckpt", content(run)
    with pytest.raises(DeepClusterError, match=f"The checkpoint {file} belongs to another run"):
        train.train_again(run, screen=QUIET, start=file)
    assert content(run) == before
    shutil.copy(file, run / "checkpoints/last.ckpt")
    with pytest.raises(DeepClusterError, match="belongs to another run"):
        train.train_again(run, screen=QUIET, epochs=3)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(run: Path) -> None:
    import torch

    last = run / "checkpoints/last.ckpt"
    state = checkpoint.load(last)
    del state["run"]
    torch.save(state, last)
    assert len(train.train_again(run, screen=QUIET, epochs=3).metrics) == 3


def test_resume_in_python_takes_a_checkpoint_and_replaces_nothing(run: Path) -> None:
    with pytest.raises(DeepClusterError, match="leave one of them out"):
        dc.train(None, said(run)["data"], run, resume=True, overwrite=True)
    first = run / "checkpoints/epoch-0000.ckpt"
    again = dc.train(None, said(run)["data"], run, resume=True, quiet=True, from_=first, lr=1e-9)
    assert [each["epochs_done"] for each in again.config["changes"]] == [1.0]
    assert SMALL["epochs"] == len(again.metrics)

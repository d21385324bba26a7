"""A loss that is no number is never saved, and a run goes on from before it with a lower rate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.engine import checkpoint, loop
from deepcluster.errors import DeepClusterError
from restarts import images

SMALL: dict[str, Any] = {"k": 4, "whiten": 8, "image_size": 8, "batch_size": 16, "quiet": True}


@pytest.mark.parametrize(("minutes", "kept"), [(0.0, 6), (60.0, 4)])
def test_a_loss_that_is_no_number_is_not_saved(
    minutes: float, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither after a step nor after an epoch, which both save."""
    real = loop.train_step
    monkeypatch.setattr(
        loop, "train_step", lambda c, f, b, step, s: real(c, f, b, step, s) * (math.nan if step.step >= 6 else 1)
    )
    with pytest.raises(DeepClusterError, match="no longer a number in epoch 2") as found:
        dc.train("tiny-deepcluster", images(64), tmp_path / "run", epochs=3, save_minutes=minutes, **SMALL)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert checkpoint.load(last)["progress"]["step"] == kept
    before = last.with_name("previous.ckpt")
    start = f" --from {before}" if before.exists() else ""
    command = str(found.value).split("`")[1]
    assert command == f"deepcluster train --resume {tmp_path}/run{start} --optimizer.lr X"
    assert bool(start) is (minutes == 0) and len(dc.load_run(tmp_path / "run").metrics) == 1


def test_a_run_goes_on_from_an_earlier_checkpoint_with_another_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    data = tmp_path / "images.npy"
    np.save(data, images(64))
    words = ["--data", str(data), "--method.k", "4", "--epochs", "3", "--keep-every", "1", "--image-size", "8"]
    assert main(["train", "tiny-deepcluster", "--out", folder, *words]) == 0
    before = json.loads((tmp_path / "run/run.json").read_text())["settings"]["optimizer"]["lr"]
    losses = [row["loss"] for row in dc.load_run(folder).metrics]
    first = f"{folder}/checkpoints/epoch-0000.ckpt"
    assert main(["train", "--resume", folder, "--from", first]) == 0
    assert [row["loss"] for row in dc.load_run(folder).metrics] == losses  # the same run once more
    assert main(["train", "--resume", folder, "--from", first, "--optimizer.lr", "1e-9"]) == 0
    again = [row["loss"] for row in dc.load_run(folder).metrics]
    assert again[0] == losses[0] and again[1:] != losses[1:]
    config = json.loads((tmp_path / "run/run.json").read_text())
    assert config["settings"]["optimizer"]["lr"] == 1e-9
    assert config["changes"] == [{"setting": "optimizer.lr", "before": before, "after": 1e-9, "epochs_done": 1.0}]
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    dc.train("tiny-deepcluster", images(64), tmp_path / "other", epochs=1, **SMALL)
    last = tmp_path / "run/checkpoints/last.ckpt"
    kept = last.read_bytes(), (tmp_path / "run/run.json").read_bytes()
    for file in (tmp_path / "text.ckpt", tmp_path / "none.ckpt", tmp_path / "other/checkpoints/last.ckpt"):
        assert main(["train", "--resume", folder, "--from", str(file), "--optimizer.lr", "0.1"]) == 2
        assert str(file) in capsys.readouterr().err
        assert kept == (last.read_bytes(), (tmp_path / "run/run.json").read_bytes())

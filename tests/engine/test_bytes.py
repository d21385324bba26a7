"""Equal runs leave equal bytes, whatever the process; the checkpoint before the last one is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepcluster.engine import checkpoint
from deepcluster.io import write_safetensors, write_torch
from restarts import settings, stop_after

CLOCKED = ("run.json", "metrics.jsonl", "tensorboard")
"""Files that hold the hour, or seconds."""


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    metadata = {f'key {number} ü\u2028\x1f"': "\\\n" * number for number in range(20)}
    for number in range(8):
        tensors = {"a": torch.ones(3, 2).T, "b": torch.arange(3, dtype=torch.int64), "c": torch.zeros(())}
        write_safetensors(tmp_path / f"{number}.safetensors", tensors, metadata)
        write_torch(tmp_path / f"{number}.ckpt", {"tensors": tensors, "names": ["a", 1.5]})
    for ending in ("safetensors", "ckpt"):
        assert len({file.read_bytes() for file in tmp_path.glob(f"*.{ending}")}) == 1
    from safetensors import safe_open

    with safe_open(tmp_path / "0.safetensors", "pt") as handle:
        found = handle.metadata()
        assert len(found.pop("crc32")) == 8 and found == metadata and torch.equal(handle.get_tensor("a"), tensors["a"])


@pytest.mark.slow
def test_equal_runs_in_two_processes_are_equal_bytes(tmp_path: Path) -> None:
    words = "train tiny-deepcluster --data digits --epochs 2 --keep-every 1 --method.k 5 --batch-size 512 --out"
    runs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "deepcluster.cli.main", *words.split(), str(tmp_path / seed)]
        runs.append(subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.DEVNULL))
    assert [run.wait() for run in runs] == [0, 0]
    one, other = (
        {
            str(file.relative_to(tmp_path / seed)): file.read_bytes()
            for file in (tmp_path / seed).rglob("*")
            if file.is_file() and file.relative_to(tmp_path / seed).parts[0] not in CLOCKED
        }
        for seed in ("1", "2")
    )
    assert one.keys() == other.keys() >= {"model.safetensors", "assignment.npy", "checkpoints/last.ckpt"}
    assert [name for name in one if one[name] != other[name]] == []


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    stop_after(tmp_path / "run", settings(epochs=5), 6)  # four steps an epoch
    kept = tmp_path / "run/checkpoints"
    steps = [checkpoint.load(kept / name)["progress"]["step"] for name in (checkpoint.LAST, checkpoint.PREVIOUS)]
    assert steps == [6, 4] and not list((tmp_path / "run").rglob("*.part"))

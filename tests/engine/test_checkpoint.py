"""Damaged states: the sentence says what, where, and how to go on from the checkpoint before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcluster.engine import checkpoint
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_safetensors, write_torch
from deepcluster.reading import read_tensors
from restarts import settings, stop_after


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after six steps, four of which are an epoch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    stop_after(folder, settings(epochs=5), 6)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "a run"))


def flip(file: Path, content: bytes, place: int) -> None:
    flipped = bytearray(content)
    flipped[place // 8] ^= 1 << place % 8
    file.write_bytes(flipped)


@pytest.mark.parametrize(
    ("name", "read"), [("checkpoints/last.ckpt", checkpoint.load), ("model.safetensors", Model.load)]
)
def test_flipped_bits_are_noticed(run: Path, name: str, read: Callable[[Path], object]) -> None:
    file = run / name
    read(file)
    content = file.read_bytes()
    for place in random.Random(0).sample(range(8 * len(content)), 60):
        flip(file, content, place)
        with pytest.raises(DeepClusterError, match=name):
            read(file)


def test_the_checkpoint_before_is_offered_if_it_is_whole(run: Path) -> None:
    last, previous = (run / "checkpoints" / name for name in (checkpoint.LAST, checkpoint.PREVIOUS))
    flip(last, last.read_bytes(), 9999)
    with pytest.raises(DeepClusterError) as found:
        checkpoint.load(last)
    assert str(found.value).endswith(f"`deepcluster train --resume '{run}' --from '{previous}'`.")
    for other in last.parent.glob("epoch-*.ckpt"):
        other.unlink()
    flip(previous, previous.read_bytes(), 9999)
    with pytest.raises(DeepClusterError, match="no other"):
        checkpoint.load(last)


@pytest.mark.parametrize(
    ("part", "value"),
    [(name, None) for name in checkpoint.PARTS]
    + [("progress", {"steps_per_epoch": 0, "batch_size": 8, "step": 4}), ("progress", {"step": "4"})],
)
def test_states_that_lack_something_are_refused(run: Path, part: str, value: Any) -> None:
    file = run / "checkpoints" / checkpoint.LAST
    state = checkpoint.load(file) | {part: value}
    write_torch(file, {name: each for name, each in state.items() if each is not None})
    with pytest.raises(DeepClusterError, match=r"--from|no deepcluster run"):
        checkpoint.load(file)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("backbone", "{}"), ("backbone", '{"name": 3}'), ("backbone", "[]"), ("embedding", '[{"kind": 1}]'), ("x", "")],
)
def test_changed_headers_of_a_model_are_one_sentence(run: Path, entry: str, value: str) -> None:
    file = run / "model.safetensors"
    metadata, tensors = read_tensors(file)
    if entry == "x":
        del tensors["centroids"]
    write_safetensors(file, tensors, metadata | {entry: value})
    with pytest.raises(DeepClusterError, match="not a model that"):
        Model.load(file)


def test_centroids_of_another_width_are_refused(run: Path) -> None:
    file = run / "model.safetensors"
    metadata, tensors = read_tensors(file)
    write_safetensors(file, tensors | {"centroids": torch.zeros(3, 2)}, metadata)
    with pytest.raises(DeepClusterError, match="not a model that"):
        Model.load(file)


def test_weights_that_are_no_numbers_are_not_gone_on_from(run: Path) -> None:
    file = run / "checkpoints" / checkpoint.LAST
    state = checkpoint.load(file)
    weight = next(value for name, value in state["method"].items() if name.endswith("weight"))
    weight.fill_(float("nan"))
    method = torch.nn.Module()
    method.weight = torch.nn.Parameter(weight)
    state["method"] = {"weight": weight}
    with pytest.raises(DeepClusterError, match="not finite, in weight"):
        checkpoint.restore(state, method, file)  # type: ignore[arg-type]

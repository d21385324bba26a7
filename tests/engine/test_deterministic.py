"""`--deterministic True`: the same bits on 1, 2 and 4 processes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcluster.config import TrainRun, override
from deepcluster.data.open import open_images
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.engine import checkpoint, train
from deepcluster.engine.build import build_method
from deepcluster.engine.deterministic import PARTS, InParts
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.models.sync_batchnorm import SyncBatchNorm
from deepcluster.presets import find_preset
from deepcluster.types import Batch, TrainStep
from processes import together
from restarts import images
from several import RUNS, settings

QUICK = ("weighted", "odc")


def _fit(group: ProcessGroup, name: str, folder: str, n: int, values: dict[str, Any]) -> dict[str, Any]:
    out = Path(folder) / f"{name}-{group.size}"
    data = open_images(images(n))
    data.labels = np.arange(n) % 4
    run = train.train(settings(name, deterministic=True, **values), data, out, screen=Screen(quiet=True))
    timed = ("seconds", "images_per")
    rows = [{key: value for key, value in row.items() if not key.startswith(timed)} for row in run.metrics]
    saved = checkpoint.load(out / "checkpoints" / "last.ckpt")
    state = {key: value for key, value in saved["method"].items() if isinstance(value, Tensor)}
    momenta = [each for part in saved["optimizers"].values() for each in part["state"].values()]
    return {"rows": rows, "assignment": run.assignment, "state": state, "momenta": momenta}


def _same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            _same(left, right, f"{where} {number}")
    elif isinstance(one, (Tensor, np.ndarray)):
        assert np.array_equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_give_the_bits_of_one(tmp_path: Path, name: str) -> None:
    (alone,) = together(_fit, 1, name, str(tmp_path), 1100, {})
    for shared in together(_fit, 2, name, str(tmp_path), 1100, {}):
        _same(alone, shared)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_four_processes_give_the_bits_of_one(tmp_path: Path, name: str) -> None:
    """With 16-bit arithmetic where the processor has it, and with a share of the images for each."""
    values = {"precision": "auto", "batch_size": 126, "epochs": 3}
    (alone,) = together(_fit, 1, name, str(tmp_path), 3300, values)
    for size in (2, 4):
        for shared in together(_fit, size, name, str(tmp_path), 3300, values):
            _same(alone, shared)


def _method(run: TrainRun) -> Any:
    torch.manual_seed(0)
    method = build_method(run, 64, whole_batches=True)
    getattr(method, "assignments", method.assignment)[...] = torch.arange(64) % 4
    return method


@pytest.mark.parametrize("preset", ["tiny-deepcluster", "tiny-swav"])
def test_parts_together_have_the_loss_and_gradients_of_the_batch(preset: str) -> None:
    """Against the plain forward and backward pass of the whole batch."""
    run = override(find_preset(preset).run, {"image_size": 12, "k": 4})
    draw = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(30, 3, 12, 12, generator=draw) for _ in range(2))
    batch = Batch(torch.arange(30), views, torch.arange(30), 30)
    plain, parted = _method(run), _method(run)
    parts = InParts(parted, SINGLE, nullcontext)
    for method in (plain, parted):
        method.train()
    plain.loss(batch, TrainStep(0, 10, 10))["loss"].backward()
    with parts.whole_batch(batch) as whole:
        loss = parted.loss(whole, TrainStep(0, 10, 10))["loss"]
        loss.backward()
    assert torch.isfinite(loss) and any(isinstance(each, SyncBatchNorm) for each in parted.modules())
    theirs = dict(plain.named_parameters())
    for name, weight in parted.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, theirs[name].grad, rtol=1e-3, atol=1e-5, msg=name)
    for name, value in parted.named_buffers():
        torch.testing.assert_close(value, dict(plain.named_buffers())[name], rtol=1e-4, atol=1e-5, msg=name)
    assert "forward" not in parted.backbone.__dict__


def test_an_error_in_one_part_ends_all() -> None:
    run = override(find_preset("tiny-deepcluster").run, {"image_size": 12, "k": 4})
    method = _method(run)
    parts = InParts(method, SINGLE, nullcontext)
    batch = Batch(torch.arange(8), (torch.zeros(8, 3, 12, 12),), torch.arange(8), 8)

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if parts.parts.threads.part == 2:
                raise ValueError("this part")
            return x

    method.backbone.trunk.features.insert(0, Fails())
    for _ in range(2):
        with parts.whole_batch(batch) as whole, pytest.raises(ValueError, match="this part"):
            method.loss(whole, TrainStep(0, 10, 10))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({"compile": True}, "--compile True"), ({"sync_batchnorm": False}, "--sync-batchnorm False")],
)
def test_what_it_does_not_go_together_with(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeepClusterError, match=sentence):
        _fit(SINGLE, "deepcluster", str(tmp_path), 64, values)


def test_three_processes_cannot_share_the_parts() -> None:
    from deepcluster.engine.deterministic import check

    with pytest.raises(DeepClusterError, match="3 processes cannot share"):
        check(TrainRun(deterministic=True), ProcessGroup(0, 3))
    assert PARTS == 4

"""A training step reads nothing back from the device that it runs on, so that a GPU is never waited for.

Two methods must: DeeperCluster, which has a classifier for each super-class, asks which images each of them gets, and
ODC keeps lists of the members of its clusters.

The device is torch's "meta": it has no data, so that reading any is an error, as `set_sync_debug_mode` would have it on
a GPU. Copies to it must be such that a GPU's would not be waited for either.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepcluster.config import override
from deepcluster.distributed import SINGLE
from deepcluster.engine.build import build_method
from deepcluster.engine.fabric import make_fabric
from deepcluster.engine.loop import train_step
from deepcluster.engine.optim import backbone_optimizer
from deepcluster.models.sync_batchnorm import BatchSlice
from deepcluster.presets import find_preset
from deepcluster.types import Batch, TrainStep

N = 40
aten = torch.ops.aten


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses copies to the device that wait for it, and indices that would have to be copied there."""

    copies = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten._to_copy.default and torch.device(kwargs.get("device") or args[0].device).type == "meta":
            self.check(args[0], kwargs.get("non_blocking", False), function)
        elif function is aten.copy_.default and args[0].is_meta:
            self.check(args[1], len(args) > 2 and args[2], function)
        elif function in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default):
            indices = [index for index in args[1] if index is not None]
            assert not args[0].is_meta or all(index.is_meta for index in indices), f"{function} by an index on the CPU"
        return function(*args, **kwargs)

    def check(self, source: Tensor, non_blocking: bool, function: Any) -> None:
        if not source.is_meta and source.ndim:  # single numbers travel with the call
            assert non_blocking, f"{function} of {tuple(source.shape)} waits"
            self.copies += 1


PRESETS: dict[str, dict[str, Any]] = {
    "tiny-deepcluster": {},
    "tiny-deepcluster, several clusterings, weighted": {"method.clusterings": 2, "method.balance": "weight"},
    "tiny-deepcluster, remembered": {"method.features": "remembered"},
    "tiny-deepcluster-v2": {},
    "tiny-swav": {},
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("more", [{}, {"optimizer.clip": 1.0}], ids=["", "clipped"])
def test_a_training_step_waits_for_nothing(name: str, more: dict[str, Any]) -> None:
    preset = find_preset(name.split(",")[0])
    run = override(preset.run, {**PRESETS[name], **more})
    method = build_method(run, N).to("meta")
    size, views = run.data.view_size or run.image_size, run.data.views
    images = torch.empty(8, 3, size, size, device="meta")
    small = torch.empty(8, 3, size // 2, size // 2, device="meta")
    batch = Batch(torch.arange(8) * 3 % N, (images,) * views + (small,) * run.data.small_views, torch.arange(8), 8)
    c: Any = SimpleNamespace(
        run=run,
        method=method,
        optimizer=backbone_optimizer(run.optimizer, method.backbone),
        fabric=make_fabric(override(run, {"device": "cpu"})),
        group=SINGLE,
        batch_slice=BatchSlice(),
        in_parts=None,
    )
    method.train()
    with NoWaiting() as watched:  # type: ignore[no-untyped-call]
        for step in range(2):
            loss = train_step(c, method.loss, batch, TrainStep(step, 5, 10), False)
    assert loss.is_meta and (watched.copies > 0 or "swav" in name)  # which has no table of the images

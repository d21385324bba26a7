"""Exponential moving averages of networks' weights, whose features change more slowly than those of the networks."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError

T = TypeVar("T", bound="Averaged")


class Averaged(nn.Module):
    """A module that may keep averages of networks that are its attributes: that of `NAME` is `ema_NAME`, always in
    evaluation mode, and like all else in the state dict.

    Attributes:
        ema_decay: weight of the old average in each step; 0 = none are kept.
        steps: number of updates.
    """

    ema_decay = 0.0
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_count_from_zero)  # type: ignore[no-untyped-call]

    def keep_averages(self, decay: float, *names: str) -> None:
        """Keeps averages of the networks of these names, as they are now; none where `decay` is 0.

        Raises:
            DeepClusterError: another decay than from 0 to below 1.
        """
        if not 0 <= decay < 1:
            raise DeepClusterError(f"--method.ema-decay is {decay}: give a decay from 0 to below 1.")
        self.ema_decay = decay
        for name in names if decay else ():
            setattr(self, f"ema_{name}", copy.deepcopy(getattr(self, name)).requires_grad_(False).eval())

    def averaged(self, name: str) -> Any:
        """The average of the network of this name, or the network itself where none is kept."""
        return getattr(self, f"ema_{name}", getattr(self, name))

    @torch.no_grad()
    def update_averages(self) -> None:
        """Counts a step and moves the averages' weights and batch-norm statistics; the first steps forget faster."""
        self.steps += 1
        if not self.ema_decay:
            return
        steps = self.steps.float()  # never read by the host, which a GPU would have to be waited for
        change = 1 - ((1 + steps) / (10 + steps)).clamp(max=self.ema_decay)
        for name, average in self._averages():
            now = getattr(self, name).state_dict()
            for part, value in average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(now[part], change.to(value.dtype))
                else:
                    value.copy_(now[part])

    def train(self: T, mode: bool = True) -> T:
        super().train(mode)
        for _, average in self._averages():
            average.eval()
        return self

    def _averages(self) -> list[tuple[str, nn.Module]]:
        return [(name[4:], module) for name, module in self.named_children() if name.startswith("ema_")]


def _count_from_zero(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a checkpoint is loaded whose method did not count its steps."""
    state.setdefault(prefix + "steps", torch.zeros((), dtype=torch.int64))

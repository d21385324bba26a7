"""The small network between backbone and classifier that online clustering trains and then leaves behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.distributed import SINGLE, ProcessGroup


class Neck(nn.Module):
    """(B, dim) -> (B, out): linear, batch-norm, ReLU, dropout, linear, ReLU (ODC, arXiv 2006.10645 §4.1).

    Args:
        dim: width of the backbone's features.
        hidden, out: widths of the two layers.
        dropout: share of the hidden numbers set to zero in training.
        relu: begin with a ReLU, where the backbone left its last one out.

    Attributes:
        config: the arguments that make this neck again.
    """

    def __init__(self, dim: int, hidden: int, out: int, *, dropout: float, relu: bool) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "hidden": hidden, "out": out, "dropout": dropout, "relu": relu}
        self.relu = relu
        self.first = nn.Linear(dim, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, out)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu(features) if self.relu else features
        return F.relu(self.second(self.dropout(F.relu(self.norm(self.first(features))))))

    @torch.no_grad()
    def settle(self, blocks: Iterable[Tensor], group: ProcessGroup = SINGLE) -> None:
        """Sets batch-norm's running statistics to those of all rows of `blocks` of (M, dim), of all processes."""
        count, mean, square = 0, torch.zeros_like(self.first.bias), torch.zeros_like(self.first.bias)
        for block in blocks:
            hidden = self.first(F.relu(block) if self.relu else block)
            count += len(hidden)
            shift = hidden.mean(0) - mean
            # Chan's update of mean and sum of squares by a block
            square += (hidden - hidden.mean(0)).square().sum(0) + shift**2 * len(hidden) * (count - len(hidden)) / count
            mean += shift * len(hidden) / count
        if not group.is_single:
            parts = group.gather(torch.cat([torch.tensor([count]).to(mean), mean, square])[None]).double()
            counts, means, squares = parts[:, :1], parts[:, 1 : len(mean) + 1], parts[:, len(mean) + 1 :]
            count = int(counts.sum())
            whole = (counts * means).sum(0) / max(count, 1)
            square = (squares + counts * (means - whole).square()).sum(0).to(square)
            mean = whole.to(mean)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(square / max(count - 1, 1))

    @torch.no_grad()
    def calm(self, features: Tensor) -> Tensor:
        """The output without dropout and with the running statistics, whatever mode the neck is in."""
        training = self.training
        self.eval()
        try:
            return self(features)
        finally:
            self.train(training)

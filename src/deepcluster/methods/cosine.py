"""A classifier that is set to the clusters it is to tell apart, for runs too short to learn a new one each time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.distributed import SINGLE, ProcessGroup


class CosineHead(nn.Module):
    """(B, D) features -> (B, K) logits: cosine to one direction per cluster, over a temperature.

    At a clustering the directions are set to the clusters' mean directions, so the classifier is right from its
    first step and short runs need not wait for a new one to learn; then they are trained as any classifier.
    """

    def __init__(
        self, dim: int, k: int, relu: bool, temperature: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.relu, self.temperature = relu, temperature
        self.directions = nn.Parameter(F.normalize(torch.randn(k, dim, generator=generator), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.seen(features), dim=1) @ F.normalize(self.directions, dim=1).T / self.temperature

    def seen(self, features: Tensor) -> Tensor:
        """(B, D) features as the classifier reads them."""
        return (F.relu(features) if self.relu else features).float()

    @torch.no_grad()
    def reset_(self, generator: torch.Generator, k: int) -> None:
        """`k` directions drawn anew; a new parameter, for a new optimizer."""
        drawn = F.normalize(torch.randn(k, self.directions.shape[1], generator=generator), dim=1)
        self.directions = nn.Parameter(drawn.to(self.directions))

    @torch.no_grad()
    def set_(self, features: Tensor, labels: Tensor, generator: torch.Generator, group: ProcessGroup = SINGLE) -> None:
        """Points from the mean direction of all to that of each cluster: (N, D) features with (N,) labels, or this
        process's part of them.

        Features after a ReLU have much in common, which would leave the cosines to all clusters nearly alike.
        """
        directions = F.normalize(self.seen(features), dim=1)
        middle = cluster_means(directions, torch.zeros(len(directions), dtype=torch.int64), 1, generator, group)
        means = cluster_means(directions, labels, len(self.directions), generator, group) - middle
        self.directions.copy_(F.normalize(means, dim=1))


def cluster_means(
    x: Tensor, labels: Tensor, k: int, generator: torch.Generator, group: ProcessGroup = SINGLE
) -> Tensor:
    """(K, D) means by label of the (N, D) rows of all processes; an empty or unlabelled cluster takes a random row."""
    known = labels >= 0
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64)
    for start in range(0, len(x), 65536):
        part = slice(start, start + 65536)
        sums.index_add_(0, labels[part][known[part]], x[part][known[part]].double())
    counts = torch.cat([torch.bincount(labels[known], minlength=k), torch.tensor([len(x)])])
    group.sum_(sums)
    total = int(group.sum_(counts)[-1])
    means = (sums / counts[:-1].clamp(min=1)[:, None]).float()
    empty = (counts[:-1] == 0).nonzero().flatten()
    if len(empty):
        means[empty] = group.gather_rows(x, torch.randint(total, (len(empty),), generator=generator)).float()
    return means

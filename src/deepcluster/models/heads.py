"""The linear classifier over pseudo-labels, drawn anew whenever the clusters are.

This file knows nothing of backbones or of how clusters are found.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError

STD = 0.01


class ClusterHead(nn.Module):
    """(B, dim) -> (B, K) logits: a ReLU where the backbone left its last one out, then one linear layer.

    Weights are N(0, .01), biases 0 (arXiv 1807.05520 §3.3: the classifier starts anew with each clustering).
    """

    def __init__(self, dim: int, k: int, *, relu: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.relu = relu
        self.linear = nn.utils.skip_init(nn.Linear, dim, k)
        self.reset_(generator)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.linear.in_features

    @property
    def k(self) -> int:
        """Number of clusters."""
        return self.linear.out_features

    def forward(self, features: Tensor) -> Tensor:
        # Not in place: the features may be read elsewhere, as a tap or by a second head.
        return self.linear(F.relu(features) if self.relu else features)

    @torch.no_grad()
    def reset_(
        self,
        generator: torch.Generator | None = None,
        k: int | None = None,
        centroids: Tensor | None = None,
    ) -> ClusterHead:
        """Draws weights anew; with `k`, for that many clusters; with (K, dim) `centroids`, pointing at them.

        Draws are made on the CPU and copied, so that a seed means the same weights on every device. The rows
        that point at centroids are as long as drawn rows are on average, .01 * sqrt(dim): the head's learning
        rate keeps its meaning. Where K changes, the parameters are new objects: give the head to a new
        optimizer, as the method asks for anyway.

        Raises:
            DeepClusterError: the centroids do not fit the features or `k`.
        """
        if centroids is not None:
            if centroids.ndim != 2 or centroids.shape[1] != self.dim or k not in (None, len(centroids)):
                raise DeepClusterError(
                    f"The head needs centroids of shape ({k or 'K'}, {self.dim}), "
                    f"not {tuple(centroids.shape)}; give directions in the space of the backbone's features."
                )
            weight = F.normalize(centroids.detach().float(), dim=1) * (STD * self.dim**0.5)
            k = len(centroids)
        else:
            k = self.k if k is None else k
            weight = torch.randn(k, self.dim, generator=generator) * STD
        if k != self.k:
            linear = self.linear
            linear.weight = nn.Parameter(linear.weight.new_empty(k, self.dim), linear.weight.requires_grad)
            linear.bias = nn.Parameter(linear.bias.new_empty(k), linear.bias.requires_grad)
            linear.out_features = k
        self.linear.weight.copy_(weight)
        self.linear.bias.zero_()
        return self

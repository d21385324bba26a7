"""The order in which an epoch shows images.

When most images are in few clusters, a network may learn to predict only those: the "trivial parametrization" of
arXiv 1807.05520 §3.3. Sampling uniformly over the clusters prevents it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError

POLICIES = ("uniform", "images", "published")


def epoch_order(assignment: np.ndarray | Tensor, length: int, policy: str, generator: torch.Generator) -> Tensor:
    """(length,) int64 indices of the images of one epoch.

    Args:
        assignment: (N,) int64 cluster of each image; -1 = none, never drawn.
        length: images to draw.
        policy: `uniform`: each non-empty cluster equally often (counts differ by one at most), within a
            cluster without repetition until all its images have been shown, then again (§3.3).
            `images`: each image equally often, counts differing by one at most.
            `published`: what the published code does in effect, see `_published`.
        generator: source of the draw, on the CPU.

    Raises:
        DeepClusterError: the policy is unknown, or no image has a cluster.
    """
    labels = torch.as_tensor(assignment, dtype=torch.int64)
    good = torch.nonzero(labels >= 0).flatten()
    if policy not in POLICIES:
        raise DeepClusterError(f"there is no sampling policy {policy!r}: use one of {', '.join(POLICIES)}")
    if not len(good):
        raise DeepClusterError("no image can be drawn: none has a cluster")
    if policy == "images":
        return good[_permutations(len(good), length, generator)]
    # Images sorted by cluster, then by index; each cluster is a slice of them.
    by_cluster = good[torch.argsort(labels[good], stable=True)]
    sizes = torch.unique_consecutive(labels[by_cluster], return_counts=True)[1]
    if policy == "published":
        return _published(good, by_cluster, sizes, length, generator)
    return _uniform(by_cluster, sizes, length, generator)


def _uniform(by_cluster: Tensor, sizes: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Equally many images of each cluster, in random order."""
    clusters = len(sizes)
    shares = torch.full((clusters,), length // clusters)
    shares[torch.randperm(clusters, generator=generator)[: length % clusters]] += 1
    starts = torch.cumsum(sizes, 0) - sizes
    drawn = [
        start + _permutations(size, share, generator)
        for start, size, share in zip(starts.tolist(), sizes.tolist(), shares.tolist(), strict=True)
    ]
    return by_cluster[torch.cat(drawn)[torch.randperm(length, generator=generator)]]


def _published(good: Tensor, by_cluster: Tensor, sizes: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """The published sampler, with its indexing error.

    It draws int(length / m) + 1 images of each of m non-empty clusters, with replacement if the cluster is not larger
    than that, shuffles, and cuts to `length`, by positions in the original data set. But the data set it indexes lists
    the images cluster by cluster: so clusters keep their natural shares, and some images are repeated many times.
    """
    position = torch.searchsorted(good, by_cluster)  # original positions, bad images left out
    each = length // len(sizes) + 1
    drawn = []
    for part in torch.tensor_split(position, torch.cumsum(sizes, 0)[:-1]):
        if len(part) <= each:
            drawn.append(part[torch.randint(len(part), (each,), generator=generator)])
        else:
            drawn.append(part[torch.randperm(len(part), generator=generator)[:each]])
    pool = torch.cat(drawn)
    pool = pool[torch.randperm(len(pool), generator=generator)][:length]
    return by_cluster[pool]


def _permutations(size: int, length: int, generator: torch.Generator) -> Tensor:
    """(length,) numbers of 0 … size-1, one random permutation after another."""
    rounds = -(-length // size)
    order = [torch.randperm(size, generator=generator) for _ in range(rounds)]
    return torch.cat(order)[:length] if order else torch.zeros(0, dtype=torch.int64)

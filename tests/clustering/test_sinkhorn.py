"""Sinkhorn-Knopp against a loop over rows and columns, and over several processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcluster.clustering.sinkhorn import equal_partition, sinkhorn
from deepcluster.distributed import ProcessGroup
from processes import together


def slow(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """As the paper says it (arXiv 2006.09882 §3.1): the matrix itself is scaled, in turn and in 64 bits."""
    q = np.exp(scores.astype(np.float64) / epsilon).T  # K x B
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        for cluster in range(k):
            q[cluster] /= q[cluster].sum() * k
        for image in range(b):
            q[:, image] /= q[:, image].sum() * b
    codes: np.ndarray = (q * b).T
    return codes


def cosines(rows: int, k: int) -> torch.Tensor:
    z, prototypes = (torch.nn.functional.normalize(torch.randn(m, 16), dim=1) for m in (rows, k))
    return z @ prototypes.T


@pytest.mark.parametrize("epsilon", [0.03, 0.05, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_equals_the_slow_one(epsilon: float, iterations: int) -> None:
    torch.manual_seed(0)
    scores = cosines(40, 7)
    codes = sinkhorn(scores, epsilon, iterations)
    np.testing.assert_allclose(codes.numpy(), slow(scores.numpy(), epsilon, iterations), atol=1e-4)
    torch.testing.assert_close(codes.sum(1), torch.ones(40))


def test_many_iterations_use_all_clusters_equally() -> None:
    torch.manual_seed(0)
    scores = cosines(60, 6) + torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0, -0.3])
    assert sinkhorn(scores, 0.05, 200).sum(0).sub(10).abs().max() < 1e-2
    assert torch.softmax(scores / 0.05, 1).sum(0).sub(10).abs().max() > 5


def test_neither_far_clusters_nor_small_epsilons_give_what_is_no_number() -> None:
    scores = torch.tensor([[0.0, -1.0, -9.0], [0.0, -0.9, -9.5], [0.0, -1.2, -8.8]])
    for epsilon in (1e-3, 1e-2):
        codes = sinkhorn(scores, epsilon, 100)
        assert torch.isfinite(codes).all()
        torch.testing.assert_close(codes.sum(1), torch.ones(3))
        assert sorted(codes.argmax(1).tolist()) == [0, 1, 2]  # one row each


def _codes(group: ProcessGroup, rows: list[int]) -> torch.Tensor:
    torch.manual_seed(0)
    scores = cosines(sum(rows), 5)
    return group.gather(sinkhorn(torch.split(scores, rows)[group.rank], 0.05, 3, group))


@pytest.mark.parametrize("rows", [[13, 17], [0, 30]])
def test_two_processes_give_what_one_does(rows: list[int]) -> None:
    torch.manual_seed(0)
    alone = sinkhorn(cosines(30, 5), 0.05, 3)
    for codes in together(_codes, 2, rows):
        torch.testing.assert_close(codes, alone, atol=1e-6, rtol=1e-5)


def skewed_groups() -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows about four directions, of which one has most, and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=1)
    group = torch.repeat_interleave(torch.arange(4), torch.tensor([70, 20, 20, 10]))
    x = torch.nn.functional.normalize(directions[group] + 0.1 * torch.randn(120, 8, generator=generator), dim=1)
    return x, directions


def test_an_equal_partition_is_nearly_the_cheapest_with_equal_sizes() -> None:
    """The best labels of exactly 30 rows each are those of the Hungarian method with 30 copies of each cluster."""
    from scipy.optimize import linear_sum_assignment

    x, directions = skewed_groups()
    labels, _ = equal_partition(x, directions, rounds=1)
    sizes = torch.bincount(labels, minlength=4)
    assert sizes.min() >= 26 and sizes.max() <= 34
    cost = torch.cdist(x, directions).square()
    row, column = linear_sum_assignment(cost.repeat_interleave(30, dim=1).numpy())
    best = cost[torch.from_numpy(row), torch.from_numpy(column // 30)].sum()
    ours = cost[torch.arange(120), labels].sum()
    assert ours < 1.05 * best
    assert cost.amin(1).sum() < 0.8 * best  # without equal sizes it is cheaper: they are what costs


def test_its_centroids_are_the_means_of_its_labels() -> None:
    x, directions = skewed_groups()
    labels, centroids = equal_partition(x, directions)
    for cluster in range(4):
        torch.testing.assert_close(centroids[cluster], x[labels == cluster].mean(0), atol=1e-6, rtol=1e-5)


def _partition(group: ProcessGroup, rows: list[int]) -> torch.Tensor:
    x, directions = skewed_groups()
    return group.gather(equal_partition(torch.split(x, rows)[group.rank], directions, group)[0])


def test_two_processes_partition_as_one_does() -> None:
    x, directions = skewed_groups()
    alone = equal_partition(x, directions)[0]
    for labels in together(_partition, 2, [50, 70]):
        assert torch.equal(labels, alone)

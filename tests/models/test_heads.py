"""The classifier over pseudo-labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deepcluster.errors import DeepClusterError
from deepcluster.models.heads import ClusterHead
from deepcluster.random import seeded


def test_begins_as_in_the_paper_and_depends_on_the_generator_alone() -> None:
    head = ClusterHead(512, 200, generator=seeded(1))
    weight = head.linear.weight.detach().clone()
    assert weight.std().item() == pytest.approx(0.01, rel=0.01) and abs(weight.mean().item()) < 1e-4
    assert (head.linear.bias == 0).all()
    torch.manual_seed(99)
    assert torch.equal(ClusterHead(512, 200, generator=seeded(1)).linear.weight, weight)
    assert not torch.equal(head.reset_(seeded(2)).linear.weight, weight)
    assert torch.equal(head.reset_(seeded(1)).linear.weight, weight)


def test_relu_comes_first_and_leaves_the_features_alone() -> None:
    features = torch.randn(6, 5)
    before = features.clone()
    plain, with_relu = ClusterHead(5, 3, generator=seeded(0)), ClusterHead(5, 3, relu=True, generator=seeded(0))
    assert torch.equal(with_relu(features), plain(features.clamp(min=0)))
    assert not torch.equal(with_relu(features), plain(features))
    assert torch.equal(features, before)


def test_same_k_keeps_the_parameters_and_another_k_makes_new_ones() -> None:
    head = ClusterHead(4, 3)
    weight = head.linear.weight
    with torch.no_grad():
        head.linear.bias.fill_(5)
    assert head.reset_(seeded(0)).linear.weight is weight
    assert (head.linear.bias == 0).all()
    assert head.reset_(seeded(0), k=7).linear.weight is not weight
    assert (head.k, head.dim) == (7, 4)
    head(torch.randn(2, 4)).sum().backward()
    assert head.linear.weight.grad is not None and head.linear.weight.grad.shape == (7, 4)
    assert head.linear.bias.grad is not None
    fresh = ClusterHead(4, 7)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh.linear.weight, head.linear.weight)


def test_from_centroids_points_at_them_with_the_length_of_a_drawn_row() -> None:
    centroids = torch.randn(6, 256, generator=seeded(4)) * 30
    head = ClusterHead(256, 2)
    drawn = ClusterHead(256, 500, generator=seeded(5)).linear.weight.norm(dim=1).mean()
    head.reset_(centroids=centroids)
    assert head.k == 6
    assert torch.allclose(F.cosine_similarity(head.linear.weight, centroids), torch.ones(6), atol=1e-6)
    assert head.linear.weight.norm(dim=1).mean().item() == pytest.approx(drawn.item(), rel=0.01)
    assert torch.equal(head(centroids).argmax(1), torch.arange(6))
    assert head.linear.weight.is_leaf and head.linear.weight.requires_grad


@pytest.mark.parametrize(("shape", "k"), [((3, 5), None), ((3,), None), ((3, 4), 2)])
def test_centroids_that_do_not_fit(shape: tuple[int, ...], k: int | None) -> None:
    with pytest.raises(DeepClusterError, match="centroids of shape"):
        ClusterHead(4, 3).reset_(k=k, centroids=torch.randn(*shape))

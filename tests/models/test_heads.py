"""The classifier over pseudo-labels."""

from __future__ import annotations

import pytest
import torch

from deepcluster.models.heads import LinearClassifier
from deepcluster.random import seeded


def test_begins_as_in_the_paper_and_depends_on_the_generator_alone() -> None:
    head = LinearClassifier(512, 200, generator=seeded(1))
    weight = head.linear.weight.detach().clone()
    assert weight.std().item() == pytest.approx(0.01, rel=0.01) and abs(weight.mean().item()) < 1e-4
    assert (head.linear.bias == 0).all()
    torch.manual_seed(99)
    assert torch.equal(LinearClassifier(512, 200, generator=seeded(1)).linear.weight, weight)
    assert not torch.equal(head.reset_(seeded(2)).linear.weight, weight)
    assert torch.equal(head.reset_(seeded(1)).linear.weight, weight)


def test_relu_comes_first_and_leaves_the_features_alone() -> None:
    features = torch.randn(6, 5)
    before = features.clone()
    plain, with_relu = (
        LinearClassifier(5, 3, generator=seeded(0)),
        LinearClassifier(5, 3, relu=True, generator=seeded(0)),
    )
    assert torch.equal(with_relu(features), plain(features.clamp(min=0)))
    assert not torch.equal(with_relu(features), plain(features))
    assert torch.equal(features, before)


def test_same_k_keeps_the_parameters_and_another_k_makes_new_ones() -> None:
    head = LinearClassifier(4, 3)
    weight = head.linear.weight
    with torch.no_grad():
        head.linear.bias.fill_(5)
    assert head.reset_(seeded(0)).linear.weight is weight
    assert (head.linear.bias == 0).all()
    assert head.reset_(seeded(0), k=7).linear.weight is not weight
    assert head.k == 7
    head(torch.randn(2, 4)).sum().backward()
    assert head.linear.weight.grad is not None and head.linear.weight.grad.shape == (7, 4)
    assert head.linear.bias.grad is not None
    fresh = LinearClassifier(4, 7)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh.linear.weight, head.linear.weight)

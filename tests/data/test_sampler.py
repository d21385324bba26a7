"""The order of an epoch against its definition, and the published sampler against the shares it was seen to give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.data.sampler import epoch_order
from deepcluster.errors import DeepClusterError
from deepcluster.random import seeded

assignments = st.lists(st.integers(-1, 6), min_size=1, max_size=60).filter(lambda a: max(a) >= 0)


@settings(max_examples=150, deadline=None)
@given(assignments, st.integers(0, 200), st.integers(0, 1000))
def test_uniform_is_even_over_clusters_and_within(assignment: list[int], length: int, seed: int) -> None:
    labels = np.array(assignment)
    order = epoch_order(labels, length, "uniform", seeded(seed)).numpy()
    assert order.shape == (length,) and order.dtype == np.int64
    drawn = labels[order]
    assert (drawn >= 0).all()
    clusters = np.unique(labels[labels >= 0])
    shares = np.array([(drawn == cluster).sum() for cluster in clusters])
    assert shares.max() - shares.min() <= 1 and shares.sum() == length
    for cluster in clusters:
        counts = np.bincount(order, minlength=len(labels))[labels == cluster]
        assert counts.max() - counts.min() <= 1  # nobody again before everybody once


@settings(max_examples=100, deadline=None)
@given(assignments, st.integers(0, 200), st.integers(0, 1000))
def test_images_is_a_permutation_again_and_again(assignment: list[int], length: int, seed: int) -> None:
    labels = np.array(assignment)
    counts = np.bincount(epoch_order(labels, length, "images", seeded(seed)), minlength=len(labels))
    assert counts.sum() == length and (counts[labels < 0] == 0).all()
    assert np.ptp(counts[labels >= 0]) <= 1


@pytest.mark.parametrize("policy", ["uniform", "images", "published"])
def test_seed_decides(policy: str) -> None:
    labels = np.random.default_rng(0).integers(0, 9, 500)
    first, again, other = (epoch_order(labels, 700, policy, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and len(first) == 700


def test_remainder_goes_to_random_clusters() -> None:
    labels = np.arange(10)
    seen = np.concatenate([epoch_order(labels, 3, "uniform", seeded(s)).numpy() for s in range(600)])
    assert (np.abs(np.bincount(seen, minlength=10) - 180) < 60).all()


SHARES = np.array([0.5, 0.25, 0.1, 0.05, 0.05, 0.025, 0.015, 0.005, 0.003, 0.002])


def published_by_hand(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The published procedure step by step: lists of images, draws, and a lookup in the wrong list."""
    lists = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    per_cluster = int(len(labels) / len(lists)) + 1
    drawn = np.concatenate([rng.choice(one, per_cluster, replace=len(one) <= per_cluster) for one in lists])
    rng.shuffle(drawn)
    relabelled = np.concatenate(lists)
    return np.asarray(relabelled[drawn[: len(labels)]])


def test_published_gives_the_natural_shares_with_repetition() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), (SHARES * 20_000).astype(int)))
    order = epoch_order(labels, len(labels), "published", seeded(3)).numpy()
    hand = published_by_hand(labels, np.random.default_rng(1))
    shares = np.bincount(labels[order], minlength=10) / len(order)
    # Small clusters are drawn over and over, so a few images dominate: shares scatter about the natural ones.
    np.testing.assert_allclose(shares, SHARES, atol=0.03)
    np.testing.assert_allclose(shares, np.bincount(labels[hand], minlength=10) / len(hand), atol=0.04)
    repeats, by_hand = np.bincount(order).max(), np.bincount(hand).max()
    assert repeats > 50 and 0.5 < repeats / by_hand < 2
    even = np.bincount(labels[epoch_order(labels, len(labels), "uniform", seeded(3))], minlength=10) / len(labels)
    np.testing.assert_allclose(even, 0.1, atol=1e-4)


def test_published_never_draws_bad_images() -> None:
    labels = np.array([-1, 0, 0, -1, 1, 1, 1, -1, 2])
    for seed in range(20):
        assert (labels[epoch_order(labels, 40, "published", seeded(seed))] >= 0).all()


def test_mistakes() -> None:
    with pytest.raises(DeepClusterError, match="no sampling policy 'even'"):
        epoch_order(np.zeros(3, int), 3, "even", seeded(0))
    with pytest.raises(DeepClusterError, match="no image can be drawn"):
        epoch_order(np.full(3, -1), 3, "uniform", seeded(0))

"""DeepCluster's method against its paper: targets, balance, heads, refreshes, and hard small cases."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepcluster.engine.optim import set_rate
from deepcluster.errors import DeepClusterError
from deepcluster.methods.base import Features
from deepcluster.random import seeded
from groups import STEP, batch, described, method


def test_groups_become_pseudo_labels() -> None:
    learner = method()
    clustering = learner.refresh(described, (0, 0))
    for group in range(4):
        assert len(set(clustering.assignment[group::4])) == 1
    assert sorted(clustering.sizes) == [16, 16, 16, 16]
    assert torch.equal(learner.assignment, torch.from_numpy(clustering.assignment))


@pytest.mark.parametrize("balance", ["uniform", "weight", "none", "published"])
@pytest.mark.parametrize("head", ["redraw", "centroids"])
def test_first_step_has_a_finite_loss_and_a_gradient_everywhere(balance: str, head: str) -> None:
    learner = method(balance=balance, head=head)
    learner.refresh(described, (0, 0))
    loss = learner.loss(batch(), STEP)["loss"]
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_loss_is_cross_entropy_to_the_clusters() -> None:
    learner = method(balance="none").eval()
    learner.refresh(described, (0, 0))
    one = batch()
    logits = learner.heads[0](learner.backbone(one.views[0]))
    expected = F.cross_entropy(logits, learner.assignment[:8])
    torch.testing.assert_close(learner.loss(one, STEP)["loss"], expected)


def test_two_views_share_a_label_and_average() -> None:
    learner = method().eval()
    learner.refresh(described, (0, 0))
    both = batch(views=2)
    apart = [learner.loss(replace(both, views=(view,)), STEP)["loss"] for view in both.views]
    torch.testing.assert_close(learner.loss(both, STEP)["loss"], (apart[0] + apart[1]) / 2)


def test_weighting_the_loss_equals_sampling_uniformly_in_expectation() -> None:
    """Section 3.2: each cluster contributes alike, whether drawn alike or weighed."""
    learner = method(balance="weight")
    clustering = learner.refresh(functools.partial(described, skewed=True), (0, 0))
    share = np.bincount(clustering.assignment, learner.weights[0][clustering.assignment].numpy(), 4)
    np.testing.assert_allclose(share, 16.0, rtol=1e-5)
    drawn = method(balance="uniform")
    drawn.refresh(functools.partial(described, skewed=True), (0, 0))
    order = drawn.order(4000, seeded(0))
    counts = Counter(drawn.assignment[order].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_published_sampling_keeps_the_natural_frequencies() -> None:
    learner = method(balance="published")
    sizes = learner.refresh(functools.partial(described, skewed=True), (0, 0)).sizes
    counts = np.bincount(learner.assignment[learner.order(8000, seeded(0))].numpy(), minlength=4)
    assert abs(counts[sizes.argmax()] / 8000 - sizes.max() / 64) < 0.15


def test_head_and_optimizer_are_made_anew() -> None:
    learner = method()
    learner.refresh(described, (0, 0))
    head: Any = learner.heads[0]
    before, optimizer = head.linear.weight.clone(), learner.own_optimizers["head"]
    learner.refresh(described, (0, 1))
    assert learner.own_optimizers["head"] is not optimizer
    head = learner.heads[0]
    assert not torch.equal(before, head.linear.weight)
    assert learner.own_optimizers["head"].param_groups[0]["params"][0] is head.linear.weight


def test_previous_centroids_keep_the_names_of_clusters() -> None:
    learner = method(init="previous")
    first = learner.refresh(described, (0, 0)).assignment.copy()
    np.testing.assert_array_equal(learner.refresh(described, (0, 1)).assignment, first)


def test_images_that_cannot_be_decoded_stay_out() -> None:
    learner = method()
    clustering = learner.refresh(functools.partial(described, missing=(3, 17)), (0, 0))
    assert clustering.assignment[3] == clustering.assignment[17] == -1
    assert np.isnan(clustering.distance[3])
    order = learner.order(640, seeded(0))
    assert not {3, 17} & set(order.tolist())


@pytest.mark.parametrize(
    ("reassign", "due"),
    [
        (1.0, [0, 10, 20]),
        (0.5, [0, 5, 10, 15, 20, 25]),
        (2.0, [0, 20]),
        (1.5, [0, 15]),
        (0.3, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (0.01, list(range(30))),
    ],
)
def test_refreshes_come_every_so_many_epochs(reassign: float, due: list[int]) -> None:
    learner = method(reassign=reassign)
    assert [step for step in range(30) if learner.due(step, 10)] == due


def test_one_image_per_cluster() -> None:
    rng = np.random.default_rng(0)
    table = Features(np.arange(16), rng.normal(size=(16, 128)).astype(np.float32))
    learner = method(n=16, k=16)
    clustering = learner.refresh(lambda: table, (0, 0))
    assert (clustering.sizes == 1).all()
    assert torch.isfinite(learner.loss(batch(8), STEP)["loss"])


def test_more_clusters_than_images_is_a_sentence() -> None:
    with pytest.raises(DeepClusterError, match=r"64 images for 100 clusters.*--method.k"):
        method(k=100).refresh(described, (0, 0))


def test_images_that_all_look_the_same_are_a_sentence() -> None:
    same = Features(np.arange(64), np.ones((64, 128), np.float32))
    with pytest.raises(DeepClusterError, match="same features"):
        method().refresh(lambda: same, (0, 0))


def test_state_travels_whole() -> None:
    learner = method()
    learner.refresh(described, (0, 0))
    other = method()
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.assignment, learner.assignment)
    assert torch.equal(other.whitening.components_, learner.whitening.components_)
    one = batch()
    torch.testing.assert_close(other.eval().loss(one, STEP)["loss"], learner.eval().loss(one, STEP)["loss"])


@pytest.mark.parametrize(("head", "rate"), [("redraw", 0.05), ("centroids", 0.005)])
def test_a_classifier_drawn_anew_keeps_its_rate(head: str, rate: float) -> None:
    """It must learn everything between two clusterings, late in a run as well."""
    learner = method(head=head)
    learner.refresh(described, (0, 0))
    set_rate(learner.optimizers().values(), 0.1)
    assert learner.own_optimizers["head"].param_groups[0]["lr"] == pytest.approx(rate)


def test_sela_divides_the_images_equally() -> None:
    rows = (np.random.default_rng(0).exponential(size=(64, 128)) ** 3).astype(np.float32)
    sizes = {}
    for algorithm in ("kmeans", "sela"):
        learner = method(algorithm=algorithm, init="random")
        found = learner.refresh(lambda: Features(np.arange(64), rows), (0, 0))
        sizes[algorithm] = sorted(found.sizes.tolist())
        np.testing.assert_array_equal(learner.assignment, found.assignment)
    assert sizes["sela"][0] >= 12 and sizes["sela"][-1] <= 20 < 30 < sizes["kmeans"][-1]


def never() -> Features:
    raise AssertionError("features were extracted")


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_remembered_features_are_those_of_the_last_views_and_need_no_pass(ema_decay: float) -> None:
    learner = method(features="remembered", ema_decay=ema_decay)
    learner.refresh(lambda: described(missing=(9,)), (0, 0))
    first = learner.memory.clone()
    assert np.array_equal(first[learner.kept_images].numpy(), described(missing=(9,)).features)
    shown = replace(batch(views=2), index=torch.tensor([5, 7, 5, 60, 1, 2, 3, 4]))
    learner.loss(shown, STEP)
    learner.after_step(shown)
    view = shown.views[0]
    seen = learner.averaged("backbone")(view) if ema_decay else learner.backbone(view)
    if not ema_decay:  # the average has moved since by a step without a gradient, which changes batch-norm alone
        torch.testing.assert_close(learner.memory[[7, 5, 60]], seen[1:4].detach(), atol=1e-5, rtol=1e-4)
    others = [image for image in range(64) if image not in shown.index]
    assert torch.equal(learner.memory[others], first[others])
    assert not torch.equal(learner.memory[5], first[5])

    clustering = learner.refresh(never, (0, 1))
    index = learner.kept_images.numpy()
    assert 9 not in index and len(index) == 63
    oracle = method(ema_decay=ema_decay)
    expected = oracle.refresh(lambda: Features(index, learner.memory[index].numpy()), (0, 1))
    assert np.array_equal(clustering.assignment, expected.assignment)
    assert torch.equal(clustering.centroids, expected.centroids)


def test_a_run_with_remembered_features_ends_with_those_of_all_images() -> None:
    learner = method(features="remembered")
    learner.refresh(described, (0, 0))
    learner.memory.normal_(generator=seeded(0))
    learner.refresh(never, (0, 1))
    found = learner.finish(described, (0, 2))
    assert np.array_equal(found.assignment, method().refresh(described, (0, 2)).assignment)

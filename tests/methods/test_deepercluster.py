"""DeeperCluster alone: turns, two levels of classes, its special cases, against slow and obvious versions."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepcluster.errors import DeepClusterError
from deepcluster.methods.deepcluster import DeepCluster
from deepcluster.methods.deepercluster import DeeperCluster, rotate
from deepcluster.methods.params import DeeperClusterParams
from deepcluster.models.heads import LinearClassifier
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded
from groups import STEP, batch, described, sgd
from groups import method as deepcluster


def method(n: int = 64, k: int = 8, super_clusters: int = 2, **values: object) -> DeeperCluster:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=12)
    params = DeeperClusterParams(k=k, super_clusters=super_clusters, whiten=3, **values)  # type: ignore[arg-type]
    return DeeperCluster(backbone, params, n=n, make_optimizer=sgd)


def test_turned_is_numpys_rot90_of_each() -> None:
    images = torch.randn(9, 3, 5, 5).to(memory_format=torch.channels_last)
    turn = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 1])
    before = images.clone()
    out = rotate(images, turn)
    for one, image, times in zip(out, images, turn.tolist(), strict=True):
        np.testing.assert_array_equal(one.numpy(), np.rot90(image.numpy(), times, (1, 2)))
    assert torch.equal(images, before)


def test_loss_is_that_of_each_image_by_itself() -> None:
    learner = method().eval()
    learner.refresh(described, (1,))
    some = batch(11, views=2)
    total = 0.0
    for view in some.views:
        for place, (index, image) in enumerate(zip(some.index.tolist(), view, strict=True)):
            label, turn = int(learner.assignment[index]), place % 4
            features = learner.backbone(torch.rot90(image, turn, (1, 2))[None])
            super_class = label // 4 * 4 + turn
            above = learner.super_head(features)
            within = learner.sub_heads[str(super_class)](features)
            total += F.cross_entropy(above, torch.tensor([super_class])).item()
            total += F.cross_entropy(within, torch.tensor([label % 4])).item()
    assert learner.loss(some, STEP)["loss"].item() == pytest.approx(total / 22, rel=1e-4)


def test_the_first_step_guesses_and_teaches() -> None:
    learner = method().train()
    learner.refresh(described, (1,))
    loss = learner.loss(batch(32), STEP)["loss"]
    assert loss.item() == pytest.approx(math.log(8) + math.log(4), abs=0.3)
    torch.autograd.backward(loss)
    for name, parameter in learner.named_parameters():
        if not name.startswith("sub_heads"):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_classifiers_that_are_aimed_are_right_from_the_first_step() -> None:
    learner = method(head="centroids", temperature=0.1).eval()
    found = described()
    learner.refresh(lambda: found, (1,))
    label, features = learner.assignment, torch.from_numpy(found.features)
    for turn in range(4):
        guessed = learner.super_head(features)[:, turn::4].argmax(1)  # all turns alike to begin with
        assert (guessed == label // 4).float().mean() > 0.95
        for number in range(2):
            rows = label // 4 == number
            within = learner.sub_heads[str(4 * number + turn)](features[rows]).argmax(1)
            assert (within == label[rows] % 4).float().mean() > 0.7  # of groups that are noise within
    alone = method(k=1, super_clusters=1, head="centroids")
    alone.refresh(described, (1,))
    loss = alone.train().loss(batch(8), STEP)["loss"]
    torch.autograd.backward(loss)
    assert torch.isfinite(loss) and all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in alone.backbone.parameters()
    )


def test_learning_raises_the_three_accuracies() -> None:
    learner = method().train()
    learner.refresh(described, (1,))
    optimizer = sgd(learner.backbone.parameters())
    learner.epoch_stats()
    shares = []
    for _ in range(60):
        for each in (optimizer, *learner.optimizers().values()):
            each.zero_grad()
        torch.autograd.backward(learner.loss(batch(16), STEP)["loss"])
        for each in (optimizer, *learner.optimizers().values()):
            each.step()
        shares.append(learner.epoch_stats())
    assert set(shares[0]) == {"accuracy_super", "accuracy_sub", "accuracy_joint"}
    assert all(shares[-1][name] > 0.9 for name in shares[0])
    assert all(share["accuracy_joint"] <= min(share["accuracy_super"], share["accuracy_sub"]) for share in shares)
    assert learner.epoch_stats() == dict.fromkeys(shares[0], 0.0)


def test_one_super_cluster_without_turns_is_deepcluster() -> None:
    deeper, deep = method(k=4, super_clusters=1, rotations=False), deepcluster(k=4)
    deeper.refresh(described, (1,))
    deep.refresh(described, (1,))
    pairs = Counter(zip(deeper.assignment.tolist(), deep.assignment.tolist(), strict=True))
    assert len(pairs) == 4  # the same groups, by other numbers
    deep.assignments[0] = deeper.assignment
    head, same = deeper.sub_heads["0"], deep.heads[0]
    assert isinstance(head, LinearClassifier) and isinstance(same, LinearClassifier) and isinstance(deep, DeepCluster)
    same.load_state_dict(head.state_dict())
    deep.backbone.load_state_dict(deeper.backbone.state_dict())
    assert deeper.loss(batch(16), STEP)["loss"].item() == pytest.approx(
        deep.loss(batch(16), STEP)["loss"].item(), rel=1e-5
    )
    assert len(deeper.order(64, seeded(0))) == 64


def test_one_cluster_with_turns_is_rotnet() -> None:
    learner = method(k=1, super_clusters=1).eval()
    learner.refresh(described, (1,))
    assert learner.super_classes == 4 and set(learner.assignment.tolist()) == {0}
    some = batch(12)
    turns = torch.arange(12) % 4
    features = learner.backbone(rotate(some.views[0], turns))
    expected = F.cross_entropy(learner.super_head(features), turns)
    assert learner.loss(some, STEP)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert [step for step in range(40) if learner.due(step, 4)] == [0]


def test_all_super_classes_and_within_them_all_sub_clusters_are_equally_many() -> None:
    learner = method(n=96, k=6, super_clusters=2)
    # one huge sub-cluster, two small ones and an empty one in the first super-cluster; bad images
    sizes = {0: 50, 1: 3, 3: 20, 4: 15, 5: 5}
    learner.assignment[: sum(sizes.values())] = torch.cat([torch.full((size,), c) for c, size in sizes.items()])
    order = learner.order(480, seeded(4))
    label = learner.assignment[order]
    assert (label >= 0).all()
    classes = Counter(zip((label // 3).tolist(), (torch.arange(480) % 4).tolist(), strict=True))
    assert set(classes.values()) == {60} and len(classes) == 8
    within = Counter(label.tolist())
    assert within[0] == within[1] == 120 and within[3] == within[4] == within[5] == 80
    again = learner.order(480, seeded(4))
    assert torch.equal(order, again) and not torch.equal(order, learner.order(480, seeded(5)))


def test_refresh_draws_classifiers_and_their_optimizers_anew() -> None:
    learner = method()
    learner.refresh(described, (1,))
    heads: list[Any] = [learner.super_head, *learner.sub_heads.values()]
    weights = [head.linear.weight.clone() for head in heads]
    optimizers = learner.optimizers()
    assert len(optimizers) == 1 + 8 and all(o.param_groups[0]["momentum"] == 0.9 for o in optimizers.values())
    clustering = learner.refresh(described, (2,))
    heads = [learner.super_head, *learner.sub_heads.values()]
    fresh = [head.linear.weight for head in heads]
    assert not any(torch.equal(a, b) for a, b in zip(weights, fresh, strict=True))
    assert not torch.equal(fresh[1], fresh[2])
    assert all(a is not b for a, b in zip(optimizers.values(), learner.optimizers().values(), strict=True))
    np.testing.assert_array_equal(clustering.assignment, learner.assignment)
    assert clustering.centroids.shape == (8, 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"k": 7}, "a multiple of --method.super-clusters"),
        ({"k": 8, "super_clusters": 0}, "super-clusters"),
        ({"reassign": 0.0}, "--method.reassign is 0.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(DeepClusterError, match=said):
        method(**values)


def test_fewer_images_than_clusters() -> None:
    with pytest.raises(DeepClusterError, match=r"64 images for 66 clusters.*--method.k 6\b"):
        method(k=66).refresh(described, (1,))

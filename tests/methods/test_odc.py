"""ODC's memories against a slow version that counts everything anew, and their invariants over many steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.errors import DeepClusterError
from deepcluster.methods.base import Features
from deepcluster.methods.odc import ODC, split_in_two
from deepcluster.methods.params import ODCParams
from deepcluster.methods.rows import occurrences
from deepcluster.models import heads
from deepcluster.models.zoo import build_backbone
from deepcluster.types import Batch
from groups import STEP, batch, described, sgd

WIDTH = 6


def odc(n: int = 64, k: int = 4, **values: object) -> ODC:
    torch.manual_seed(0)
    params = ODCParams(k=k, **({"feature_dim": WIDTH, "hidden": 16, "min_size": 3} | values))  # type: ignore[arg-type]
    return ODC(build_backbone("convnet", image_size=12), params, n=n, make_optimizer=sgd)


def begun(features: np.ndarray, k: int, missing: tuple[int, ...] = (), **values: object) -> ODC:
    """ODC whose memory begins with `features` (N, D) as they are: the neck is left out of it."""
    learner = odc(len(features), k, **{"feature_dim": features.shape[1], **values})
    learner.neck = Straight()  # type: ignore[assignment]
    index = np.setdiff1d(np.arange(len(features)), missing)
    learner.refresh(lambda: Features(index, features[index].astype(np.float32)), (0, 0))
    return learner


class Straight(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    project = forward

    def transform(self, features: np.ndarray) -> np.ndarray:
        return F.normalize(torch.as_tensor(features), dim=1).numpy()

    def fit_running_stats(self, features: object, group: object = None) -> None:
        pass


def step(learner: ODC, index: np.ndarray, seen: np.ndarray) -> None:
    """What `after_step` does once `loss` saw these features."""
    learner._step_features = [torch.from_numpy(seen.astype(np.float32))]
    learner.after_step(Batch(torch.from_numpy(index), (torch.empty(0),), torch.arange(len(index)), len(index)))


def check(learner: ODC) -> None:
    """What must hold after every step."""
    label = learner.assignment.numpy()
    good = label >= 0
    sizes = np.bincount(label[good], minlength=learner.k)
    np.testing.assert_array_equal(learner.members.sizes, sizes)
    assert sizes.sum() == good.sum()
    assert sizes.min() >= learner.threshold >= 1
    sums = np.zeros(learner.sums.shape)
    np.add.at(sums, label[good], learner.features.numpy()[good].astype(np.float64))
    np.testing.assert_allclose(learner.sums.numpy(), sums, atol=1e-9)
    for cluster in range(learner.k):
        np.testing.assert_array_equal(learner.members.of(cluster), np.flatnonzero(label == cluster))
    assert torch.isfinite(learner.centroids).all() and torch.isfinite(learner.features).all()


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 12),
    kind=st.sampled_from(["noise", "alike", "two"]),
    minimum=st.integers(1, 30),
    nearest=st.sampled_from(["euclidean", "cosine", "dot"]),
    seed=st.integers(0, 99),
)
def test_invariants_hold_over_hundreds_of_steps(
    n: int, k: int, kind: str, minimum: int, nearest: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = {"noise": rng.normal(size=(n, 5)), "alike": np.ones((n, 5)), "two": np.eye(5)[np.arange(n) % 2]}[kind]
    if n < k:
        with pytest.raises(DeepClusterError, match=f"{n} images? for {k} clusters?"):
            begun(features, k)
        return
    learner = begun(features, k, min_size=minimum, nearest=nearest, centroid_every=3)
    check(learner)
    for turn in range(80):
        size = int(rng.integers(1, 9))
        index = rng.integers(0, n, size)  # with repetition
        seen = {"noise": rng.normal(size=(size, 5)), "alike": np.ones((size, 5)), "two": np.eye(5)[index % 2]}[kind]
        step(learner, index, seen)
        check(learner)
        if (turn + 1) % 3 == 0:
            fresh = learner._means(torch.arange(k))
            torch.testing.assert_close(fresh, (learner.sums / torch.from_numpy(learner.members.sizes)[:, None]).float())


def test_all_images_in_one_cluster_are_spread_again() -> None:
    rng = np.random.default_rng(0)
    learner = begun(rng.normal(size=(200, 5)), 8, min_size=10)
    everyone = torch.arange(200)
    learner._relabel(everyone, torch.zeros(200, dtype=torch.int64))
    assert learner.members.sizes.tolist() == [200] + [0] * 7
    learner._handle_small()
    check(learner)
    assert learner.members.sizes.min() >= 10


class Slow:
    """One step of ODC's memories in NumPy, everything counted anew, image by image; no small clusters."""

    def __init__(self, features: np.ndarray, label: np.ndarray, centroids: np.ndarray, momentum: float) -> None:
        self.features, self.label = features.copy(), label.copy()
        self.centroids, self.momentum, self.steps = centroids.copy(), momentum, 0

    def step(self, index: np.ndarray, seen: np.ndarray, every: int) -> None:
        for image, z in zip(index, seen, strict=True):
            mixed = self.momentum * z / np.linalg.norm(z) + (1 - self.momentum) * self.features[image]
            self.features[image] = mixed / np.linalg.norm(mixed)
            self.label[image] = np.linalg.norm(self.centroids - self.features[image], axis=1).argmin()
        self.steps += 1
        if self.steps % every == 0:
            for cluster in range(len(self.centroids)):
                if (self.label == cluster).any():
                    self.centroids[cluster] = self.features[self.label == cluster].mean(0)


@pytest.mark.parametrize("every", [1, 4])
def test_memories_equal_the_slow_ones(every: int) -> None:
    rng = np.random.default_rng(1)
    learner = begun(rng.normal(size=(80, 5)), 3, min_size=1, centroid_every=every, missing=(5, 17))
    slow = Slow(learner.features.numpy(), learner.assignment.numpy(), learner.centroids.numpy(), 0.5)
    usable = np.setdiff1d(np.arange(80), (5, 17))
    for _ in range(60):
        index, seen = rng.choice(usable, 10), rng.normal(size=(10, 5))
        step(learner, index, seen)
        slow.step(index, seen.astype(np.float32), every)
        assert learner.members.sizes.min() >= 1  # else the slow one would have to split
        np.testing.assert_array_equal(learner.assignment.numpy(), slow.label)
        np.testing.assert_allclose(learner.features.numpy(), slow.features, atol=1e-5)
        np.testing.assert_allclose(learner.centroids.numpy(), slow.centroids, atol=1e-5)
    assert learner.assignment[5] == learner.assignment[17] == -1


def test_an_image_that_occurs_twice_is_taken_twice_in_order() -> None:
    assert [part.tolist() for part in occurrences(torch.tensor([4, 7, 4, 4, 7]))] == [[0, 1], [2, 4], [3]]
    rng = np.random.default_rng(0)
    features, seen = rng.normal(size=(20, 5)), rng.normal(size=(2, 5))
    together, apart = begun(features, 2, min_size=1), begun(features, 2, min_size=1)
    step(together, np.array([3, 3]), seen)
    step(apart, np.array([3]), seen[:1])
    step(apart, np.array([3]), seen[1:])
    torch.testing.assert_close(together.features, apart.features)
    other = begun(features, 2, min_size=1)
    step(other, np.array([3, 3]), seen[::-1].copy())
    assert not torch.allclose(together.features, other.features)


def test_small_clusters_join_their_nearest_and_the_largest_is_split() -> None:
    """Three tight groups of 40, 20 and 2 images: the third joins the second, the first is cut where it is thinnest."""
    rng = np.random.default_rng(0)
    angle = np.concatenate(
        [0.0 + rng.normal(0, 0.01, 20), 0.3 + rng.normal(0, 0.01, 20), np.full(20, 1.4), [1.2, 1.25]]
    )
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    learner = begun(points, 3, min_size=5, feature_dim=2)
    label = torch.tensor([0] * 40 + [1] * 20 + [2] * 2)
    learner._relabel(torch.arange(62), label)
    learner.centroids.copy_(learner._means(torch.arange(3)))
    learner._handle_small()
    assert learner.members.sizes.tolist() == [20, 22, 20]
    found = learner.assignment.tolist()
    assert found[40:] == [1] * 22 and len(set(found[:20])) == len(set(found[20:40])) == 1 and found[0] != found[20]
    torch.testing.assert_close(learner.centroids[[0, 2]], learner._means(torch.tensor([0, 2])))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 99), st.booleans())
def test_halves_are_never_smaller_than_asked(n: int, least: int, seed: int, alike: bool) -> None:
    rng = np.random.default_rng(seed)
    x = np.ones((n, 3)) if alike else rng.normal(size=(n, 3)) * rng.choice([1, 50], (n, 1))
    second = split_in_two(torch.from_numpy(x).float(), least)
    assert min(int(second.sum()), n - int(second.sum())) >= min(least, n // 2)


def test_halves_are_two_means() -> None:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 4)), rng.normal(size=(35, 4)) + 3]).astype(np.float32)
    theirs = KMeans(2, random_state=0, n_init=10).fit_predict(x)
    ours = split_in_two(torch.from_numpy(x), 5).numpy()
    assert (ours == theirs).all() or (ours != theirs).all()


@pytest.mark.parametrize("memory", ["forward", "eval"])
@pytest.mark.parametrize("start", ["neck", "whitened"])
@pytest.mark.parametrize("views", [1, 2])
def test_first_step_has_a_finite_loss_and_a_gradient_everywhere(memory: str, start: str, views: int) -> None:
    learner = odc(memory=memory, start=start)
    learner.refresh(described, (0, 0))
    loss = learner.loss(batch(views=views), STEP)["loss"]
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    for name, parameter in learner.named_parameters():
        # a bias before batch-norm has no effect
        if parameter.requires_grad and name != "neck.first.bias":
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    before = learner.features.clone()
    learner.after_step(batch(views=views))
    assert not torch.equal(before[:8], learner.features[:8]) and torch.equal(before[8:], learner.features[8:])


def test_the_loss_weighs_images_by_the_size_of_their_cluster() -> None:
    learner = odc()
    learner.refresh(lambda: described(skewed=True), (0, 0))
    learner.neck.dropout.p = 0.0
    shown = batch()
    loss = learner.loss(shown, STEP)["loss"]
    label = learner.assignment[shown.index]
    logits = learner.head(learner.neck(learner.backbone(shown.views[0])))
    weights = torch.from_numpy(learner.members.sizes).float() ** -0.5
    torch.testing.assert_close(loss, F.cross_entropy(logits, label, weight=weights), atol=1e-4, rtol=1e-4)


def test_dropout_stays_out_of_a_calm_memory() -> None:
    kept = []
    for memory in ("forward", "eval"):
        learner = odc(memory=memory)
        learner.refresh(described, (0, 0))
        learner.neck.norm.momentum = 0.0
        torch.manual_seed(1)
        learner.loss(batch(), STEP)
        first = learner._step_features[0]
        torch.manual_seed(2)
        learner.loss(batch(), STEP)
        kept.append(torch.allclose(first, learner._step_features[0], atol=1e-6))
        assert learner.neck.training
    assert kept == [False, True]


def test_state_is_whole_after_loading() -> None:
    one, other = odc(), odc()
    one.refresh(described, (0, 0))
    for _ in range(12):
        one.loss(batch(), STEP)
        one.after_step(batch())
    _ = other.members
    other.load_state_dict(one.state_dict())
    check(other)
    for learner in (one, other):
        torch.manual_seed(5)
        learner.loss(batch(), STEP)
        learner.after_step(batch())
    assert torch.equal(one.features, other.features) and torch.equal(one.assignment, other.assignment)
    assert torch.equal(one.centroids, other.centroids) and torch.equal(one.sums, other.sums)


def test_replacement_is_drawn_only_when_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    for replace in (False, True):
        learner = odc(replace=replace)
        learner.refresh(lambda: described(missing=(3,)), (0, 0))
        drawn = learner.order(63, generator)
        assert 3 not in drawn.tolist()
        assert (len(set(drawn.tolist())) == 63) is not replace


def test_the_neck_settles_on_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "ALIGN", 7)
    neck, rows = odc().neck, torch.randn(50, 128) * 3 + 1
    neck.fit_running_stats(rows.numpy())
    hidden = neck.first(rows)
    torch.testing.assert_close(neck.norm.running_mean, hidden.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(neck.norm.running_var, hidden.var(0), atol=1e-4, rtol=1e-4)

"""Self-labelling heads against the paper's formulas, written out one number after the other."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from deepcluster.clustering import TEMI, Whitening, metrics
from deepcluster.clustering import temi as module
from deepcluster.clustering.assign import group_means
from deepcluster.clustering.spectral import neighbor_graph, spectral_embedding
from deepcluster.engine.model import EMBEDDINGS
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, normalize_rows


def blobs(n: int = 240, d: int = 12, groups: int = 6, seed: int = 0, spread: float = 0.2) -> tuple[np.ndarray, Any]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % groups
    return (rng.normal(size=(groups, d))[label] + spread * rng.normal(size=(n, d))).astype("f4"), label


def rings(n: int = 400, seed: int = 0) -> tuple[np.ndarray, Any]:
    """Two caps around one axis on the sphere, the second a ring about the first: not separable by two centroids."""
    rng = np.random.default_rng(seed)
    turn, label = rng.uniform(0, 2 * np.pi, n), np.arange(n) % 2
    height = np.where(label == 0, rng.uniform(0, 0.2, n), rng.uniform(0.9, 1, n))
    x = np.stack([np.cos(turn) * height, np.sin(turn) * height, np.sqrt(1 - height**2)], 1)
    return x.astype("f4"), label


def by_hand(student: Tensor, teacher: Tensor, prior: Tensor, beta: float) -> list[float]:
    """Section 3 of the paper: one pair, one head and one cluster at a time; probabilities, no logarithms."""
    heads, rows, k = student.shape
    pairs = rows // 2
    weight = [0.0] * pairs
    for b in range(pairs):
        for h in range(heads):
            weight[b] += sum(float(teacher[h, b, c] * teacher[h, b + pairs, c]) for c in range(k)) / heads
    losses = []
    for h in range(heads):
        total = 0.0
        for b in range(pairs):
            for one, other in ((b, b + pairs), (b + pairs, b)):
                shares = [
                    float(student[h, one, c] * teacher[h, other, c]) ** beta / float(prior[h, c]) for c in range(k)
                ]
                total -= weight[b] * math.log(sum(shares)) / 2
        losses.append(total / pairs)
    return losses


@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_the_loss_equals_the_papers_formula(beta: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 10, 4, generator=draw).double().softmax(-1) for _ in range(2))
    prior = torch.rand(3, 4, generator=draw).double() + 0.1
    found = module.pair_losses(student.log(), teacher.log(), prior, beta)
    np.testing.assert_allclose(found, by_hand(student, teacher, prior, beta), rtol=1e-10)


def test_labels_are_a_softmax_of_cosines_over_the_temperature() -> None:
    draw = torch.Generator().manual_seed(0)
    x = normalize_rows(torch.randn(5, 7, generator=draw))
    heads = torch.randn(2, 3, 7, generator=draw)
    found = module.log_labels(x.double(), heads.double(), 0.1).exp()
    for h in range(2):
        for b in range(5):
            cosine = [float(x[b].double() @ w.double() / w.double().norm()) for w in heads[h]]
            ballots = [math.exp(each / 0.1) for each in cosine]
            np.testing.assert_allclose(found[h, b], np.array(ballots) / sum(ballots), rtol=1e-8)


@pytest.mark.parametrize("n", [60, 700])
def test_the_spectral_embedding_spans_the_leading_eigenvectors(n: int) -> None:
    """For few rows by all eigenvectors, for many by Lanczos: both against a dense matrix written from the formula."""
    rng = np.random.default_rng(0)
    near = np.stack([rng.permutation(np.delete(np.arange(n), i))[:4] for i in range(n)])
    dense = np.zeros((n, n))
    for i in range(n):
        for j in near[i]:
            dense[i, j] += 0.5
            dense[j, i] += 0.5
    np.testing.assert_array_equal(neighbor_graph(near).toarray(), dense)
    degree = dense.sum(1)
    scaled = dense / np.sqrt(degree[:, None] * degree[None, :])
    leading = np.linalg.eigh(scaled)[1][:, -3:]
    leading = np.linalg.matrix_power(scaled, 6) @ leading  # where walks of six steps end
    leading /= np.linalg.norm(leading, axis=1, keepdims=True)
    found = spectral_embedding(near, 3, seed=0)
    # eigenvectors have no sign, and those of equal values no order: what is their own is who lies how far from whom
    np.testing.assert_allclose(found @ found.T, leading @ leading.T, atol=1e-4)


def test_rows_that_are_all_neighbors_are_still_told_apart() -> None:
    """Walks of six steps end anywhere; a direction counts for no less than (1/2)^6 of the first."""
    near = np.array([[j for j in range(8) if j != i] for i in range(8)])
    found = spectral_embedding(near, 8, seed=0)
    rows = np.full((8, 8), 1 / 8) + (np.eye(8) - 1 / 8) / 2**6  # the first direction, and the others by their least
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, atol=1e-6)


@pytest.mark.parametrize(("n", "k", "expected"), [(300, 3, 10), (1398, 73, 5), (240, 10, 6), (4, 2, 3)])
def test_rows_have_a_quarter_of_an_average_cluster_as_neighbors(n: int, k: int, expected: int) -> None:
    assert TEMI(k)._neighbors(n) == expected


@pytest.mark.parametrize("init", ["spectral", "k-means"])
def test_clear_groups_are_found(init: str) -> None:
    x, label = blobs()
    fitted = TEMI(6, init=init, max_iter=60, random_state=0).fit(x)
    assert metrics.ari(fitted.labels_, label) == 1
    again, other = blobs(seed=0, spread=0.21)
    assert metrics.ari(fitted.predict(again), other) == 1


def test_groups_of_unlike_size_are_kept() -> None:
    x, label = blobs(600, groups=3)
    keep = np.concatenate([np.flatnonzero(label == c)[:count] for c, count in enumerate((200, 60, 20))])
    fitted = TEMI(3, random_state=0).fit(x[keep])
    assert metrics.ari(fitted.labels_, label[keep]) == 1


def test_training_lowers_the_loss_and_the_best_head_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(spread=0.8)
    trained: list[Tensor] = []
    train = TEMI._train

    def keep(self: TEMI, *given: Any) -> Any:
        heads, losses = train(self, *given)
        trained.append(heads)
        return heads, losses

    monkeypatch.setattr(TEMI, "_train", keep)
    short, long = (TEMI(6, init="random", max_iter=steps, random_state=0).fit(x) for steps in (3, 300))
    assert long.losses_.shape == (8,) and long.n_iter_ == 300
    assert (long.losses_ < short.losses_).all()
    np.testing.assert_array_equal(long.cluster_centers_, trained[1][int(long.losses_.argmin())])


@pytest.mark.slow
def test_each_argument_changes_the_result() -> None:
    x, _ = blobs(spread=0.8)
    base: dict[str, Any] = {"n_clusters": 6, "max_iter": 30, "random_state": 0}
    reference = TEMI(**base).fit(x).cluster_centers_
    changes: list[dict[str, Any]] = [
        {"init": "k-means"},
        {"n_heads": 2},
        {"n_neighbors": 20},
        {"temperature": 0.3},
        {"beta": 0.6},
        {"momentum": 0.9},
        {"learning_rate": 0.1},
        {"max_iter": 10},
        {"batch_size": 50},
        {"random_state": 1},
    ]
    for change in changes:
        assert not np.allclose(TEMI(**{**base, **change}).fit(x).cluster_centers_, reference, atol=1e-4), change
    np.testing.assert_array_equal(TEMI(**base).fit(x).cluster_centers_, reference)


def test_without_steps_the_head_is_the_mean_of_its_starting_groups() -> None:
    x, label = blobs()
    fitted = TEMI(6, max_iter=0, random_state=0).fit(x)
    assert fitted.losses_.shape == (0,) and fitted.n_iter_ == 0
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[label == c].mean(0) for c in range(6)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    order = (fitted.cluster_centers_ @ means.T).argmax(1)
    np.testing.assert_allclose(fitted.cluster_centers_, means[order], atol=1e-5)


def test_the_spectral_start_follows_neighbors_where_k_means_follows_distance() -> None:
    x, label = rings()
    near = module.neighbors(Rows(x), 8).numpy()
    embedded = spectral_embedding(near, 2, seed=0)
    from sklearn.cluster import KMeans

    def score(table: np.ndarray) -> float:
        return metrics.ari(KMeans(2, n_init=5, random_state=0).fit_predict(table), label)

    assert score(embedded) == 1
    assert score(x) < 0.5


def test_a_label_is_the_nearest_centroid_of_unit_rows() -> None:
    """What assigns by centroids, such as a run's model, needs the centroids alone."""
    x, _ = blobs(spread=0.8)
    fitted = TEMI(6, max_iter=40, random_state=0).fit(x)
    fresh, _ = blobs(seed=1, spread=0.8)
    unit = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
    squared = np.square(unit[:, None].astype(np.float64) - fitted.cluster_centers_[None]).sum(2)
    np.testing.assert_array_equal(fitted.predict(fresh), squared.argmin(1))
    np.testing.assert_array_equal(fitted.predict(7 * fresh), squared.argmin(1))
    np.testing.assert_array_equal(fitted.predict(x), fitted.labels_)
    np.testing.assert_allclose(np.linalg.norm(fitted.cluster_centers_, axis=1), 1, atol=1e-6)
    most_likely = module.log_labels(torch.from_numpy(unit), torch.from_numpy(fitted.cluster_centers_)[None], 0.1)
    np.testing.assert_array_equal(most_likely[0].argmax(1), squared.argmin(1))


def test_a_saved_model_assigns_like_the_head(tmp_path: Path) -> None:
    from deepcluster.engine.model import Model
    from deepcluster.models.zoo import build_backbone

    x, _ = blobs(d=128, spread=0.8)
    step = Whitening(8, whiten=False).fit(x)
    fitted = TEMI(6, max_iter=20, random_state=0).fit(step.transform(x))
    assert isinstance(step, EMBEDDINGS["whitening"])
    backbone = build_backbone("convnet", image_size=32)
    Model(backbone, torch.from_numpy(fitted.cluster_centers_), [step]).save(tmp_path / "model.safetensors")
    cluster, distance = Model.load(tmp_path / "model.safetensors").nearest(x)
    np.testing.assert_array_equal(cluster, fitted.labels_)
    assert float(np.square(distance.astype(np.float64)).sum()) == pytest.approx(fitted.inertia_, rel=1e-5)


def test_few_equal_and_single_rows() -> None:
    same = np.tile(np.array([1, 2, 3], np.float32), (30, 1))
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(1\) found smaller than n_clusters \(4\)"):
        fitted = TEMI(4, max_iter=10, random_state=0).fit(same)
    assert len(set(fitted.labels_)) == 1 and np.isfinite(fitted.cluster_centers_).all()
    with pytest.raises(DeepClusterError, match="29 rows cannot make 30 clusters"):
        TEMI(30).fit(same[:29])
    each: np.ndarray = np.eye(8, dtype=np.float32)
    for init in ("spectral", "k-means"):
        assert sorted(TEMI(8, init=init, max_iter=0, random_state=0).fit(each).labels_) == list(range(8))
    assert list(TEMI(1, random_state=0).fit(each[:1]).labels_) == [0]
    twice = np.repeat(blobs(60)[0], 2, 0)
    labels = TEMI(6, max_iter=20, random_state=0).fit(twice).labels_
    np.testing.assert_array_equal(labels[::2], labels[1::2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        zeros = TEMI(2, max_iter=5, random_state=0).fit(np.zeros((20, 3), np.float32))
    assert np.isfinite(zeros.cluster_centers_).all()


@pytest.mark.parametrize("init", ["spectral", "k-means"])
def test_starts_come_from_a_sample_where_rows_are_many(monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    x, label = blobs(900)
    monkeypatch.setattr(module, "START_ROWS", 300)
    seen: list[int] = []

    def means(rows: Rows, labels: Tensor, k: int) -> Tensor:
        seen.append(rows.n)
        return group_means(rows, labels, k)

    monkeypatch.setattr(module, "group_means", means)
    fitted = TEMI(6, init=init, max_iter=20, random_state=0).fit(x)
    assert metrics.ari(fitted.labels_, label) == 1 and len(fitted.labels_) == 900 and set(seen) == {300}


def test_rows_in_a_file_give_the_same_head(tmp_path: Path) -> None:
    x, _ = blobs(spread=0.6)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    heads = [TEMI(6, max_iter=20, random_state=0).fit(table) for table in (x, mapped, torch.from_numpy(x))]
    assert isinstance(heads[2].labels_, Tensor)
    for other in heads[1:]:
        np.testing.assert_array_equal(np.asarray(other.labels_), heads[0].labels_)
        np.testing.assert_array_equal(np.asarray(other.cluster_centers_), heads[0].cluster_centers_)


def test_wrong_arguments_are_told_in_a_sentence() -> None:
    x, _ = blobs(40)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n_clusters": 0}, "n_clusters must be an integer of at least 1, not 0"),
        ({"init": "best"}, "init must be one of spectral, k-means, random, not 'best'"),
        ({"temperature": 0}, "temperature must be a number above 0, not 0"),
        ({"beta": float("nan")}, "beta must be a number above 0, not nan"),
        ({"momentum": 1.0}, "momentum must be at least 0 and less than 1, not 1.0"),
        ({"max_iter": -1}, "max_iter must be an integer of at least 1, not -1"),
        ({"n_neighbors": 40}, "40 rows have no more than 39 neighbors each, not 40"),
    ]
    for arguments, sentence in wrong:
        with pytest.raises(DeepClusterError, match=sentence):
            TEMI(**arguments).fit(x)
    x[3, 2] = np.nan
    with pytest.raises(DeepClusterError, match="Row 3 of the features holds NaN or infinity"):
        TEMI(4).fit(x)

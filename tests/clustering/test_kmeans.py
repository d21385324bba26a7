"""k-means against a plain NumPy Lloyd, faiss and scikit-learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.clustering.assign import NearestSearch
from deepcluster.clustering.assign_int8 import Int8Search, Rounding, exact_products
from deepcluster.clustering.assign_margins import MarginStep
from deepcluster.clustering.kmeans import KMeans, split
from deepcluster.clustering.points import Points
from deepcluster.clustering.tree import nearest_in_tree
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows

PRECISIONS = ["float32", "bfloat16", "int8"]
NEEDS_INT8 = pytest.mark.skipif(not exact_products(), reason="this CPU adds products of 8-bit integers in 16 bits")


def blobs(n: int = 3000, d: int = 24, groups: int = 30, seed: int = 0, spread: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, d))
    return (centers[rng.integers(groups, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def distances(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    x, c = np.asarray(x, np.float64), np.asarray(c, np.float64)
    return np.stack([np.square(row - c).sum(1) for row in x])


def numpy_lloyd(x: np.ndarray, c: np.ndarray, rounds: int) -> tuple[np.ndarray, list[float]]:
    """Centroids and objectives of Lloyd's iterations that keep empty centroids."""
    c, objectives = c.astype(np.float64), []
    for _ in range(rounds):
        squared = distances(x, c)
        label = squared.argmin(1)
        objectives.append(squared.min(1).sum())
        c = np.stack([x[label == k].mean(0, dtype=np.float64) if (label == k).any() else c[k] for k in range(len(c))])
    return c, objectives


def test_same_centroids_as_plain_lloyd() -> None:
    x = blobs()
    start = x[:40]
    ours = KMeans(40, max_iter=7, init=start, precision="float32").fit(x)
    centroids, objectives = numpy_lloyd(x, start, 7)
    np.testing.assert_allclose(ours.cluster_centers_, centroids, atol=2e-5)
    np.testing.assert_allclose(ours.objectives_, objectives, rtol=1e-6)
    squared = distances(x, ours.cluster_centers_)
    np.testing.assert_array_equal(ours.labels_, squared.argmin(1))
    assert ours.inertia_ == pytest.approx(squared.min(1).sum(), rel=1e-6)
    assert ours.n_iter_ == 7


def test_same_objective_as_scikit_learn() -> None:
    from sklearn.cluster import KMeans as Reference

    x = blobs()
    theirs = Reference(20, init=x[:20], n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x)
    ours = KMeans(20, max_iter=300, init=x[:20]).fit(x)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-4)
    assert (ours.labels_ == theirs.labels_).mean() > 0.999


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spherical", [False, True])
def test_same_objective_as_faiss(precision: str, spherical: bool) -> None:
    x = blobs(8000, 32, 300)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    start = x[:300]
    run: dict[str, Any] = {"init": start, "spherical": spherical, "random_state": 0}
    ours = KMeans(300, precision=precision, **run).fit(x)
    theirs = KMeans(300, backend="faiss", **run).fit(x)
    assert 0.97 * theirs.inertia_ < ours.inertia_ < 1.005 * theirs.inertia_
    assert theirs.inertia_ == pytest.approx(distances(x, theirs.cluster_centers_).min(1).sum(), rel=1e-5)
    if spherical:
        np.testing.assert_allclose(np.linalg.norm(ours.cluster_centers_, axis=1), 1, atol=1e-5)


def test_torch_and_faiss_backends_agree_while_no_cluster_is_empty() -> None:
    x = blobs(4000, 16, 20)
    run: dict[str, Any] = {"init": x[:20], "max_iter": 5}
    ours, theirs = KMeans(20, **run).fit(x), KMeans(20, backend="faiss", **run).fit(x)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-4)
    np.testing.assert_allclose(ours.objectives_, theirs.objectives_, rtol=1e-4)


def test_spherical_is_k_means_by_cosine() -> None:
    x = blobs() * np.random.default_rng(1).uniform(0.1, 10, (3000, 1)).astype(np.float32)
    run = KMeans(10, spherical=True, max_iter=50, random_state=0).fit(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(run.labels_, (unit @ run.cluster_centers_.T).argmax(1))
    for k in range(10):
        mean = unit[run.labels_ == k].sum(0)
        np.testing.assert_allclose(run.cluster_centers_[k], mean / np.linalg.norm(mean), atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_labels_are_what_predict_says(precision: str) -> None:
    x = blobs(5000, 48, 400, spread=1.0)
    run = KMeans(400, precision=precision, random_state=3).fit(x)
    np.testing.assert_array_equal(run.predict(x), run.labels_)
    np.testing.assert_array_equal(run.transform(x).argmin(1), run.labels_)
    label, distance = nearest_in_tree(x, [run.cluster_centers_])
    np.testing.assert_array_equal(label, run.labels_)
    assert np.square(distance, dtype=np.float64).sum() == pytest.approx(run.inertia_, rel=1e-5)
    np.testing.assert_allclose(distance, np.sqrt(distances(x, run.cluster_centers_).min(1)), rtol=1e-4, atol=1e-4)


@NEEDS_INT8
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_int8_search_finds_the_nearest(scale: float) -> None:
    """Rows of very unequal length and coordinates of unequal width, centroids of single rows among means."""
    rng = np.random.default_rng(0)
    rows = blobs(6000, 40, 2000) * rng.uniform(0.2, 3, (6000, 1)) * rng.uniform(0.2, 3, (1, 40)) * scale
    x = torch.from_numpy(rows.astype(np.float32))
    centroids = torch.cat([x[:1000], x[1000:5000].view(4, 1000, 40).mean(0)])
    search = Int8Search(centroids, Rounding(Points(Rows(x))))
    assert search.fits
    found = search(x, 0)[0]
    squared = torch.cdist(x.double(), centroids.double()).square()
    excess = squared.gather(1, found[:, None]).sum() / squared.amin(1).sum() - 1
    assert (found == squared.argmin(1)).double().mean() > 0.995
    assert excess < 1e-5


@NEEDS_INT8
def test_int8_search_is_the_same_by_a_machine_whose_8_bit_products_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(blobs(3000, 40, 300))
    search = Int8Search(x[:300].clone(), Rounding(Points(Rows(x))))
    found = search(x, 0)
    monkeypatch.setattr("deepcluster.clustering.assign_int8.exact_products", lambda: False)
    for one, other in zip(found, search(x, 0), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("int8", [pytest.param(True, marks=NEEDS_INT8), False])
def test_passing_over_settled_points_errs_only_in_close_cases(int8: bool) -> None:
    x = torch.from_numpy(blobs(20000, 32, 300, spread=1.0))
    points = Points(Rows(x))
    step = MarginStep(points, 300, Rounding(points) if int8 else None)
    parts: Any = step.parts
    centroids, passed_over = x[:300].clone(), False
    for _ in range(12):
        step(centroids)
        part = parts.objects[0][1]
        found = part.labels
        passed_over |= part.compared < len(x)
        exact = NearestSearch(centroids)(x)
        far = (x - centroids[found]).square().sum() / (x - centroids[exact]).square().sum()
        assert (found == exact).float().mean() > 0.97
        assert far < 1.001
        centroids = torch.stack([x[found == k].mean(0) for k in range(300)])
    assert passed_over
    part.update(points, centroids, None, True)
    assert part.labels.eq(NearestSearch(centroids)(x)).float().mean() > 0.999


@pytest.mark.parametrize("k", [1, 2, 31, 40, 300, 1500])
def test_margins_are_the_lead_over_the_second_best(k: int) -> None:
    """Of few and many rows, of a part of a tile and of two, the second best in the lane of the best or in another."""
    rng = np.random.default_rng(k)
    x, centroids = (torch.from_numpy(rng.normal(size=(n, 24)).astype(np.float32)) for n in (700, k))
    scores = x.double() @ centroids.double().T - centroids.double().square().sum(1) / 2
    best = scores.topk(min(2, k), dim=1)
    lead = best.values[:, 0] - best.values[:, 1] if k > 1 else torch.full((700,), torch.inf).double()
    for rows in (slice(0, 3), slice(None)):
        labels, margins = NearestSearch(centroids).with_margins(x[rows])
        assert labels.equal(best.indices[rows, 0])
        torch.testing.assert_close(margins.double(), lead[rows], rtol=1e-4, atol=1e-4)


def test_int8_is_float32_on_a_cpu_that_adds_8_bit_products_in_16_bits() -> None:
    script = """
import numpy as np
from deepcluster.clustering import KMeans
from deepcluster.clustering.assign_int8 import exact_products
x = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
int8, float32 = (KMeans(300, init=x[:300], precision=name).fit(x) for name in ("int8", "float32"))
print(exact_products(), abs(int8.inertia_ / float32.inertia_ - 1) < 1e-3)
"""
    old = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=old, capture_output=True, text=True, check=True)
    exact, equal = done.stdout.split()
    assert exact == "True" or equal == "True"


def test_int8_falls_back_to_float32_where_8_bits_cannot_tell() -> None:
    """One coordinate dwarfs all that tells rows apart: float32 has to do it."""
    x = blobs(3000, 32, 300)
    x[:, 0] += np.where(np.arange(3000) % 2, 3e3, -3e3)
    start = x[:300]
    plain = KMeans(300, init=start, precision="float32").fit(x)
    assert KMeans(300, init=start, precision="int8").fit(x).inertia_ == pytest.approx(plain.inertia_, rel=5e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_reach_the_same_objective(precision: str) -> None:
    x = blobs(6000, 64, 500, spread=1.0)
    plain = KMeans(300, init=x[:300], precision="float32").fit(x)
    other = KMeans(300, init=x[:300], precision=precision).fit(x)
    assert other.inertia_ == pytest.approx(plain.inertia_, rel=5e-3)


def test_a_file_is_clustered_like_the_same_rows_in_memory(tmp_path: Path) -> None:
    x = blobs(4000, 32)
    path = tmp_path / "x.npy"
    np.save(path, x)
    for precision in ("float32", "int8"):
        run: dict[str, Any] = {"random_state": 5, "precision": precision, "chunk": 700}
        memory, file = KMeans(300, **run).fit(x), KMeans(300, **run).fit(np.load(path, mmap_mode="r"))
        tensor = KMeans(300, **run).fit(torch.from_numpy(x))
        np.testing.assert_array_equal(memory.labels_, file.labels_)
        np.testing.assert_array_equal(memory.cluster_centers_, file.cluster_centers_)
        assert memory.inertia_ == file.inertia_
        assert torch.equal(tensor.labels_, torch.from_numpy(memory.labels_))


@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_result_depends_on_the_seed_alone(init: str, precision: str) -> None:
    x = blobs(3000)
    once, again, other = (KMeans(260, init=init, random_state=seed, precision=precision).fit(x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once.cluster_centers_, again.cluster_centers_)
    np.testing.assert_array_equal(once.labels_, again.labels_)
    assert not np.array_equal(once.labels_, other.labels_)


@pytest.mark.parametrize("arguments", [{}, {"spherical": True}, {"init": "k-means++"}])
@pytest.mark.parametrize("shift", [0.0, 30.0, 1e7])
def test_a_table_that_stays_on_the_device_gives_the_same(
    arguments: dict[str, Any], shift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_read: list[int]
) -> None:
    """As on a GPU with memory for it: read from its file once."""
    np.save(tmp_path / "x.npy", blobs(2500, 10, 20).astype(np.float64) + shift)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    run = KMeans(20, chunk=1024, random_state=0, **arguments)
    expected = (run.fit(x).labels_, run.cluster_centers_, run.inertia_)
    monkeypatch.setattr("deepcluster.features.resident._budget", lambda device: x.nbytes)
    rows_read.clear()
    run.fit(x)
    assert sum(rows_read) == len(x)
    np.testing.assert_array_equal(run.labels_, expected[0])
    np.testing.assert_array_equal(run.cluster_centers_, expected[1])
    assert run.inertia_ == expected[2]


def test_threads_do_not_change_the_result() -> None:
    x = blobs(20000, 16, 300)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(KMeans(256, random_state=0, precision="int8", max_iter=6).fit(x))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].labels_, other.labels_)


def test_chunks_change_no_more_than_last_digits() -> None:
    x = blobs(3000)
    whole, parts = (KMeans(30, random_state=0, chunk=chunk, precision="float32").fit(x) for chunk in (None, 257))
    assert parts.inertia_ == pytest.approx(whole.inertia_, rel=1e-5)
    assert (whole.labels_ == parts.labels_).mean() > 0.99


def test_k_means_plus_plus_starts_with_lower_inertia_than_random() -> None:
    x = blobs(5000, 16, 100, spread=0.05)
    begun = {
        init: [KMeans(100, init=init, random_state=s, max_iter=1).fit(x).objectives_[0] for s in range(5)]
        for init in ("random", "k-means++")
    }
    from sklearn.cluster import kmeans_plusplus

    theirs = [distances(x, kmeans_plusplus(x, 100, random_state=s, n_local_trials=1)[0]).min(1).sum() for s in range(3)]
    assert np.mean(begun["k-means++"]) < 0.5 * np.mean(begun["random"])
    assert np.mean(begun["k-means++"]) < 2 * np.mean(theirs)


def test_warm_start_continues_the_last_run() -> None:
    x = blobs()
    half = KMeans(20, max_iter=4, random_state=0).fit(x)
    rest = KMeans(20, max_iter=4, init=half.cluster_centers_).fit(x)
    whole = KMeans(20, max_iter=8, random_state=0).fit(x)
    np.testing.assert_allclose(rest.cluster_centers_, whole.cluster_centers_, atol=1e-4)


def test_n_init_keeps_the_best() -> None:
    x = blobs(1000, 4, 12, spread=0.1)
    single = KMeans(12, random_state=0).fit(x).inertia_
    assert KMeans(12, random_state=0, n_init=8).fit(x).inertia_ < single


def test_tol_stops_early_and_zero_runs_until_nothing_moves() -> None:
    x = blobs()
    early = KMeans(20, tol=1e-2, random_state=0, max_iter=300).fit(x)
    full = KMeans(20, random_state=0, max_iter=300).fit(x)
    assert early.n_iter_ < full.n_iter_ < 300
    assert early.objectives_[-2] - early.objectives_[-1] <= 1e-2 * early.objectives_[-2]
    settled = KMeans(20, init=full.cluster_centers_).fit(x)
    assert (settled.labels_ == full.labels_).mean() > 0.999
    assert all(b <= a * (1 + 1e-9) for a, b in zip(full.objectives_, full.objectives_[1:], strict=False))


def test_empty_clusters_take_half_of_another() -> None:
    sizes = torch.tensor([0, 90, 10, 0, 1])
    centroids = torch.arange(20, dtype=torch.float32).view(5, 4) + 1
    new = split(centroids, sizes, torch.Generator().manual_seed(0))
    up = torch.tensor([1 + 1 / 1024, 1 - 1 / 1024] * 2)
    donors = []
    for empty in (0, 3):
        matches = [k for k in (1, 2, 4) if torch.allclose(new[empty], centroids[k] * up)]
        assert len(matches) == 1
        assert torch.allclose(new[matches[0]], centroids[matches[0]] * (2 - up))
        donors += matches
    assert sorted(donors) == [1, 2]  # different ones, and never the cluster of one
    drawn = [
        bool(
            (
                split(centroids, torch.tensor([0, 90, 10, 5, 1]), torch.Generator().manual_seed(s))[2] == centroids[2]
            ).all()
        )
        for s in range(300)
    ]
    assert np.mean(drawn) == pytest.approx(1 - 9 / 102, abs=0.06)  # in proportion to size less one


def test_no_cluster_stays_empty_while_points_differ() -> None:
    x = np.concatenate([np.zeros((500, 8)), np.eye(8) * 5, -np.eye(8) * 3]).astype(np.float32)
    start = np.full((17, 8), 50, np.float32) + np.arange(17)[:, None]
    run = KMeans(17, init=start).fit(x)
    assert (np.bincount(run.labels_, minlength=17) > 0).all()
    assert run.inertia_ == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(run.predict(x), run.labels_)
    kept = KMeans(17, init=start, empty="keep").fit(x)
    assert (np.bincount(kept.labels_, minlength=17) == 0).sum() == 16


@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_identical_points(init: str, value: float) -> None:
    run = KMeans(5, init=init, random_state=0).fit(np.full((50, 6), value, np.float32))
    assert run.inertia_ <= 1e-9 * max(1, value**2)
    assert len(set(run.labels_.tolist())) == 1


def test_duplicates_of_fewer_points_than_clusters() -> None:
    x = np.repeat(blobs(20, 6), 30, axis=0)
    run = KMeans(40, init="k-means++", random_state=0).fit(x)
    assert run.inertia_ == pytest.approx(0, abs=1e-6)
    assert len(np.unique(run.labels_)) >= 20


def test_one_cluster_and_as_many_as_rows() -> None:
    x = blobs(60, 5)
    one = KMeans(1).fit(x)
    np.testing.assert_allclose(one.cluster_centers_[0], x.mean(0), atol=1e-5)
    assert one.inertia_ == pytest.approx(np.square(x - x.mean(0)).sum(), rel=1e-5)
    each = KMeans(60, random_state=0).fit(x)
    assert each.inertia_ == pytest.approx(0, abs=1e-6)
    assert sorted(each.labels_.tolist()) == list(range(60))
    assert KMeans(1).fit(x[:1]).labels_.tolist() == [0]


def test_a_large_common_offset_costs_no_precision() -> None:
    x = blobs(2000, 8, 5).astype(np.float64)
    near = KMeans(5, init=x[:5]).fit(x)
    far = KMeans(5, init=x[:5] + 1000).fit(x + 1000)
    assert far.inertia_ == pytest.approx(near.inertia_, rel=1e-3)
    assert (far.labels_ == near.labels_).mean() > 0.999
    np.testing.assert_array_equal(far.predict(x + 1000), far.labels_)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6), st.integers(0, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_small_table(n: int, k: int, d: int, kind: int, spherical: bool) -> None:
    rng = np.random.default_rng(n * 100 + k)
    x = [rng.normal(size=(n, d)), rng.integers(0, 2, (n, d)), np.zeros((n, d)), rng.normal(size=(n, d)) * 1e-6][kind]
    if n < k:
        with pytest.raises(DeepClusterError, match=r"rows? cannot make"):
            KMeans(k).fit(x)
        return
    run = KMeans(k, random_state=0, spherical=spherical).fit(x)
    assert np.isfinite(run.cluster_centers_).all()
    assert run.labels_.shape == (n,)
    np.testing.assert_array_equal(run.labels_, run.predict(x))
    seen = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) if spherical else x
    exact = distances(seen, run.cluster_centers_)
    assert run.inertia_ == pytest.approx(exact.min(1).sum(), rel=1e-4, abs=1e-6 * np.square(seen).sum() + 1e-30)
    distinct = len(np.unique(seen.astype(np.float32), axis=0))
    if distinct >= k and not spherical and kind < 2:
        assert len(np.unique(run.labels_)) == k


def test_output_is_a_tensor_for_tensors_and_an_array_otherwise() -> None:
    x = blobs(200, 6)
    array, tensor = KMeans(4, random_state=0).fit(x), KMeans(4, random_state=0).fit(torch.from_numpy(x))
    assert isinstance(array.labels_, np.ndarray) and array.labels_.dtype == np.int64
    assert isinstance(tensor.labels_, torch.Tensor) and isinstance(tensor.cluster_centers_, torch.Tensor)
    assert isinstance(array.predict(torch.from_numpy(x)), torch.Tensor)
    assert isinstance(tensor.transform(x), np.ndarray)
    assert KMeans(4, random_state=0).fit(x.tolist()).inertia_ == pytest.approx(array.inertia_)
    half = KMeans(4, random_state=0).fit(x.astype(np.float16))
    assert half.inertia_ == pytest.approx(array.inertia_, rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "x", "words"),
    [
        ({"n_clusters": 11}, np.ones((10, 2)), "10 rows cannot make 11 clusters"),
        ({"n_clusters": 0}, np.ones((10, 2)), "n_clusters must be an integer"),
        ({"init": "best"}, np.ones((10, 2)), "init must be one of"),
        ({"precision": "float8"}, np.ones((10, 2)), "precision must be one of"),
        ({"tol": -1.0}, np.ones((10, 2)), "tol must be"),
        ({"init": np.ones((3, 2))}, np.ones((10, 2)), "init centroids are of shape"),
        ({"init": np.full((2, 2), np.nan)}, np.ones((10, 2)), "init centroids hold NaN"),
        ({}, np.ones(10), "Expected 2D array"),
        ({}, np.ones((0, 3)), "minimum of 1 is required"),
        ({}, np.array([["a", "b"]]), "dtype='numeric' is not compatible"),
        ({}, np.array([[0, 0], [1, 1], [np.nan, 0]]), "Row 2 of the features holds NaN or infinity"),
        ({}, np.array([[0, 0], [np.inf, 1], [1, 0]]), "Row 1 of the features holds NaN or infinity"),
    ],
)
def test_invalid_input_raises(arguments: dict[str, Any], x: np.ndarray, words: str) -> None:
    with pytest.raises(DeepClusterError, match=words):
        KMeans(**{"n_clusters": 2, **arguments}).fit(x)


def test_predict_refuses_another_number_of_columns() -> None:
    with pytest.raises(DeepClusterError, match="is not fitted yet"):
        KMeans(2).predict(np.ones((3, 2)))
    run = KMeans(2, random_state=0).fit(blobs(30, 4))
    with pytest.raises(DeepClusterError, match="X has 3 features, but KMeans is expecting 4"):
        run.predict(np.ones((3, 3)))
    with pytest.raises(DeepClusterError, match="3 columns but the centroids have 4"):
        nearest_in_tree(np.ones((3, 3)), [run.cluster_centers_])

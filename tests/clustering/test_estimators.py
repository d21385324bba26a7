"""The estimators under scikit-learn's own checks, in its pipelines, and with data frames."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepcluster.clustering import PIC, TEMI, HierarchicalKMeans, KMeans, Whitening
from deepcluster.clustering.validation import DegenerateClusters
from deepcluster.errors import DeepClusterError, DeepClusterWarning
from deepcluster.features.knn import nearest_rows

ESTIMATORS = [
    KMeans(random_state=0),
    HierarchicalKMeans(random_state=0),
    PIC(),
    TEMI(random_state=0, max_iter=20),
    Whitening(),
]


def blobs(n: int = 300, d: int = 6, groups: int = 8, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(groups, d))[rng.integers(groups, size=n)] + spread * rng.normal(size=(n, d))).astype("f4")


def expected_failures(estimator: Any) -> dict[str, str]:
    if isinstance(estimator, KMeans):
        why = "init='random' draws rows by their position, so repeated rows start elsewhere than weighted ones"
        return {"check_sample_weight_equivalence_on_dense_data": why}
    if isinstance(estimator, Whitening):
        return {"check_estimators_nan_inf": "rows of images that cannot be decoded are NaN and stay NaN in transform"}
    return {}


every_check: Callable[[Callable[..., None]], Callable[..., None]] = parametrize_with_checks(
    [KMeans(), HierarchicalKMeans(), PIC(), TEMI(max_iter=20), Whitening()], expected_failed_checks=expected_failures
)


@every_check
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_unfitted_estimators_raise_not_fitted(estimator: Any) -> None:
    method = estimator.transform if isinstance(estimator, Whitening) else estimator.predict
    with pytest.raises(NotFittedError, match="is not fitted yet") as caught:
        method(blobs())
    assert isinstance(caught.value, DeepClusterError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_copies_and_pickles_predict_alike(estimator: Any) -> None:
    x = blobs()
    fitted = clone(estimator).fit(x)
    again = pickle.loads(pickle.dumps(fitted))
    method = "transform" if isinstance(estimator, Whitening) else "predict"
    np.testing.assert_array_equal(getattr(again, method)(x), getattr(fitted, method)(x))
    assert fitted.n_features_in_ == 6 and clone(fitted).get_params() == fitted.get_params()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_a_fit_that_fails_leaves_what_was_fitted_before(estimator: Any) -> None:
    """Of other columns, too, with a row that is found not to be finite when much is done."""
    x, other = blobs(), blobs(d=4)
    other[-1, 0] = np.nan
    fitted = clone(estimator).fit(x)
    method = fitted.transform if isinstance(estimator, Whitening) else fitted.predict
    before = method(x)
    for fit in (fitted.fit, getattr(fitted, "partial_fit", fitted.fit)):
        with pytest.raises(DeepClusterError):
            fit(other)
        np.testing.assert_array_equal(method(x), before)
    assert fitted.n_features_in_ == 6


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_in_and_out(library: str) -> None:
    frames = pytest.importorskip(library)
    x = blobs().astype(np.float64)
    frame = frames.DataFrame({f"column {i}": x[:, i] for i in range(6)})
    pipeline = make_pipeline(Whitening(3), KMeans(4, random_state=0)).set_output(transform=library)
    out = pipeline.fit(frame).transform(frame)
    assert isinstance(out, frames.DataFrame) and list(out.columns) == [f"kmeans{i}" for i in range(4)]
    np.testing.assert_array_equal(pipeline.predict(frame), pipeline[-1].labels_)
    names = [f"column {i}" for i in range(6)]
    for estimator in ESTIMATORS:
        fitted = clone(estimator).fit(frame)
        np.testing.assert_array_equal(fitted.feature_names_in_, names)
        with pytest.raises(DeepClusterError, match="feature names should match"):
            (fitted.transform if isinstance(fitted, Whitening) else fitted.predict)(frame[names[::-1]])
    assert list(Whitening(2).fit(frame).get_feature_names_out()) == ["whitening0", "whitening1"]
    np.testing.assert_array_equal(
        KMeans(4, random_state=0).fit_predict(frame), KMeans(4, random_state=0).fit_predict(x)
    )


def test_tables_that_are_not_arrays_stay_what_they_are(tmp_path: Any) -> None:
    """A tensor, a file and a table that reads its own rows are never turned into an array in memory."""
    x = blobs()

    class Lazy:
        shape, dtype, ndim = x.shape, x.dtype, 2

        def read_rows(self, start: int, into: np.ndarray) -> None:
            into[:] = x[start : start + len(into)]

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise AssertionError("converted to an array")

    expected = KMeans(4, random_state=0).fit(x)
    lazy = KMeans(4, random_state=0).fit(Lazy())
    np.testing.assert_array_equal(lazy.labels_, expected.labels_)
    np.testing.assert_array_equal(lazy.predict(Lazy()), expected.labels_)
    np.testing.assert_array_equal(Whitening(3).fit(x).transform(Lazy()), Whitening(3).fit_transform(x))


def test_integer_weights_equal_repeated_rows() -> None:
    x, rng = blobs(400, 5), np.random.default_rng(1)
    weight = rng.integers(0, 4, 400)
    run: dict[str, Any] = {"init": x[weight > 0][:12], "max_iter": 30}
    variants: list[dict[str, Any]] = [{}, {"spherical": True}, {"precision": "int8"}]
    for more in variants:
        weighted = KMeans(12, **run, **more).fit(x, sample_weight=weight)
        repeated = KMeans(12, **run, **more).fit(np.repeat(x, weight, axis=0))
        np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(np.repeat(weighted.labels_, weight), repeated.labels_)
        assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-5)
        assert weighted.score(x, sample_weight=weight) == pytest.approx(-weighted.inertia_, rel=1e-6)
    even, plain = KMeans(12, **run).fit(x, sample_weight=np.full(400, 0.5)), KMeans(12, **run).fit(x)
    np.testing.assert_allclose(even.cluster_centers_, plain.cluster_centers_, atol=1e-5)
    assert even.inertia_ == pytest.approx(plain.inertia_ / 2, rel=1e-5)


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_rows_of_no_weight_are_no_centroids(init: str) -> None:
    x = blobs(200, 3)
    x[100:] += 100
    weight = np.repeat([1.0, 0.0], 100)
    run = KMeans(9, init=init, random_state=0).fit(x, sample_weight=weight)
    assert np.abs(run.cluster_centers_).max() < 50
    assert run.inertia_ == pytest.approx(-run.score(x[:100]), rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.ones(3), "must be of shape"),
        (np.ones((300, 1)), "must be of shape"),
        (-np.ones(300), "at least 0"),
        (np.full(300, np.nan), "finite"),
        (np.zeros(300), "at least one non-zero"),
    ],
)
def test_impossible_weights_are_refused(weight: np.ndarray, words: str) -> None:
    with pytest.raises(DeepClusterError, match=words):
        KMeans(2).fit(blobs(), sample_weight=weight)


def test_random_state_takes_what_scikit_learn_takes() -> None:
    x = blobs()
    by_state = [KMeans(5, random_state=np.random.RandomState(3)).fit(x).cluster_centers_ for _ in range(2)]
    np.testing.assert_array_equal(*by_state)
    state = np.random.RandomState(3)
    first, second = (KMeans(40, random_state=state).fit(x).labels_ for _ in range(2))
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="cannot be used to seed"):
        KMeans(2, random_state="seed").fit(x)


def test_n_init_auto_is_ten_random_starts_or_one_of_another_kind() -> None:
    x = blobs(500, 3, 12, spread=0.1)
    auto = KMeans(12, random_state=0, n_init="auto").fit(x)
    assert auto.inertia_ == KMeans(12, random_state=0, n_init=10).fit(x).inertia_
    plus = KMeans(12, init="k-means++", random_state=0, n_init="auto").fit(x)
    assert plus.inertia_ == KMeans(12, init="k-means++", random_state=0).fit(x).inertia_
    with pytest.raises(DeepClusterError, match="n_init must be an integer"):
        KMeans(2, n_init="many").fit(x)


FEW, SIX = np.repeat(blobs(5), 10, axis=0), np.repeat(blobs(60), 6, axis=0)


@pytest.mark.parametrize(
    ("estimator", "x", "words"),
    [
        (KMeans(8, random_state=0), FEW, r"distinct clusters \(5\) found smaller than n_clusters \(8\)"),
        (KMeans(8, init="k-means++", random_state=0), FEW, r"\(5\) .* fewer distinct rows than clusters"),
        (KMeans(8, backend="faiss", random_state=0), FEW, r"\(5\) .* fewer distinct rows than clusters"),
        (KMeans(2, init=[[0.0] * 6, [1e9] * 6], empty="keep"), blobs(), r"\(1\) .* the others have no rows"),
        (KMeans(3, random_state=0), np.full((50, 4), 1e8), r"\(1\) .* fewer distinct rows"),
        (HierarchicalKMeans(8, branches=(2,), random_state=0), FEW, r"\(5\) .* super-clusters have fewer"),
        (TEMI(8, init="k-means", max_iter=0, random_state=0), np.ones((20, 4)), r"\(1\) .* no row is nearest"),
        (PIC(), SIX, "360 of 360 rows are a cluster of their own"),
        (PIC(), np.ones((50, 4)), "All 50 rows are one cluster"),
    ],
)
def test_degenerate_clusters_warn_in_one_sentence(estimator: Any, x: np.ndarray, words: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        estimator.fit(x)
    assert [(warning.category, warning.filename) for warning in told] == [(DegenerateClusters, __file__)]
    assert re.search(words, str(told[0].message)) and "\n" not in str(told[0].message)
    assert issubclass(DegenerateClusters, DeepClusterWarning) and issubclass(DegenerateClusters, ConvergenceWarning)


FAR = [
    KMeans(12, random_state=0),
    KMeans(12, init="k-means++", random_state=0),
    HierarchicalKMeans(12, random_state=0),
    PIC(sigma=0.3),
]


@pytest.mark.parametrize("kind", ["array", "file", "tensor", "integers"])
@pytest.mark.parametrize("estimator", FAR, ids=lambda each: type(each).__name__)
def test_an_offset_of_1e8_changes_no_cluster(estimator: Any, kind: str, tmp_path: Path) -> None:
    """float32 would round such rows to multiples of 8."""
    near = blobs(600, 4, 12, seed=1, spread=0.1).astype(np.float64)
    if kind == "integers":
        near = np.round(near * 100)
        estimator = PIC(sigma=30.0) if isinstance(estimator, PIC) else estimator
    far: Any = near + 1e8
    if kind == "file":
        np.save(tmp_path / "x.npy", far)
        far = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "tensor":
        far = torch.from_numpy(far)
    elif kind == "integers":
        far = far.astype(np.int64)
    expected, found = (clone(estimator).fit(x) for x in (near, far))
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    np.testing.assert_array_equal(found.predict(far), found.labels_)
    np.testing.assert_allclose(np.asarray(found.cluster_centers_) - 1e8, expected.cluster_centers_, atol=1e-4)
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-5)


def test_an_offset_of_1e8_changes_no_whitening_or_neighbor() -> None:
    near = blobs(600, 4, 12, seed=1, spread=0.1).astype(np.float64)
    far = near + 1e8
    expected, found = Whitening(3).fit(near).transform(near), Whitening(3).fit(far)
    loaded = Whitening(3).load_state_dict(found.state_dict())
    parts = Whitening(3).partial_fit(far[:200]).partial_fit(far[200:])
    for whitening in (found, loaded, parts):
        np.testing.assert_allclose(whitening.transform(far), expected, atol=1e-5)
    for ours, theirs in zip(nearest_rows(far, 5), nearest_rows(near, 5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_score_is_minus_the_inertia() -> None:
    x = blobs()
    for estimator in (KMeans(5, random_state=0), HierarchicalKMeans(6, branches=(2,), random_state=0)):
        fitted = estimator.fit(x)
        assert fitted.score(x) == pytest.approx(-fitted.inertia_, rel=1e-5)
    assert isinstance(fitted.score(torch.from_numpy(x)), float)


def test_greedy_k_means_plus_plus_reaches_the_inertia_of_scikit_learn() -> None:
    """Over 20 sets of blobs, relative to the best known inertia of each."""
    from sklearn.cluster import KMeans as Reference

    ours, theirs = [], []
    for seed in range(20):
        x = blobs(600, 4, 25, seed=seed, spread=0.05)
        mine = [KMeans(25, init="k-means++", random_state=s, max_iter=100).fit(x).inertia_ for s in range(3)]
        peer = [Reference(25, n_init=1, random_state=s, max_iter=100).fit(x).inertia_ for s in range(3)]
        best = min(*mine, *peer, Reference(25, n_init=20, random_state=9).fit(x).inertia_)
        ours.append(np.mean(mine) / best)
        theirs.append(np.mean(peer) / best)
    assert np.mean(ours) < 1.25
    assert np.mean(ours) < 1.1 * np.mean(theirs)


def test_output_of_tensors_stays_tensors_under_default_output() -> None:
    x = torch.from_numpy(blobs())
    with sklearn.config_context(transform_output="default"):
        assert isinstance(make_pipeline(Whitening(3), KMeans(4)).fit(x).transform(x), torch.Tensor)


@pytest.mark.parametrize("kind", [">f8", ">i4", ">f4", "g"])
@pytest.mark.parametrize("estimator", [KMeans(3, random_state=0), PIC(3, sigma=50), Whitening(2)])
def test_numbers_of_other_byte_orders_and_widths(estimator: Any, kind: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 99, (30, 4)).astype(kind)
    np.save(tmp_path / "x.npy", x)
    method = "fit_transform" if isinstance(estimator, Whitening) else "fit_predict"
    wanted = getattr(clone(estimator), method)(x.astype(np.float64))
    for table in (x, np.load(tmp_path / "x.npy", mmap_mode="r")):
        np.testing.assert_allclose(getattr(clone(estimator), method)(table), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"device": "abacus"}, "no device 'abacus'"), ({"random_state": "a"}, "'a' cannot be used.*give random_state")],
)
def test_devices_and_seeds_that_are_none_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeepClusterError, match=words):
        KMeans(2, **options).fit(np.eye(4))


def test_numbers_beyond_float32_are_called_so() -> None:
    with warnings.catch_warnings(), pytest.raises(DeepClusterError, match="beyond float32"):
        warnings.simplefilter("error")
        KMeans(2).fit(np.eye(4) * 1e200)

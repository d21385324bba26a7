"""ImageClusterer, by scikit-learn's rules."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import deepcluster as dc
from deepcluster import DeepClusterError, ImageClusterer
from deepcluster.clustering.validation import NotFittedError
from deepcluster.models.export import export_backbone
from deepcluster.models.zoo import build_backbone

DIGITS = load_digits()
IMAGES, CLASSES = (DIGITS.images * 15.9).astype(np.uint8)[:200], DIGITS.target[:200]
PATCHES: dict[str, Any] = {"backbone": "patches", "random_state": 0}

TABLES = """
    clustering dict_unchanged dont_overwrite_parameters dtype_object estimators_dtypes
    estimators_fit_returns_self estimators_overwrite_params estimators_pickle f_contiguous_array_estimator
    fit2d_predict1d fit_check_is_fitted fit_idempotent fit_score_takes_y methods_sample_order_invariance
    methods_subset_invariance n_features_in n_features_in_after_fitting pipeline_consistency
    readonly_memmap_input transformer_data_not_an_array transformer_general transformer_preserve_dtypes
"""
"""Checks that fit a table (N, D), whose rows are no images: it is refused in a sentence."""
WORDS = """
    complex_data estimator_sparse_array estimator_sparse_matrix estimator_sparse_tag
    estimators_empty_data_messages estimators_nan_inf fit2d_1feature fit2d_1sample positive_only_tag_during_fit
"""
"""Checks of scikit-learn's own words for a table of a wrong kind, where ours say that it holds no images."""


class Tabular(ImageClusterer):
    """Takes part in all checks, of which an estimator of images otherwise has one."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def expected_failures(estimator: Any) -> dict[str, str]:
    reasons = {"it fits a table, whose rows are no images": TABLES, "ours are other words": WORDS}
    return {f"check_{name}": reason for reason, names in reasons.items() for name in names.split()}


every_check: Callable[[Callable[..., None]], Callable[..., None]] = parametrize_with_checks(
    [Tabular(2, backbone="patches", random_state=0)], expected_failed_checks=expected_failures
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of a network that is fast, and has learned nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_backbone("convnet", image_size=16)
    file = export_backbone(network, "safetensors", tmp_path_factory.mktemp("network") / "small.safetensors", {})
    return {"backbone": str(file), "random_state": 0}


@pytest.fixture(scope="module")
def fitted() -> ImageClusterer:
    return ImageClusterer(10, **PATCHES).fit(IMAGES)


@every_check
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_check_estimator() -> None:
    estimator_checks.check_estimator(ImageClusterer())


def test_clusters_of_arrays(fitted: ImageClusterer) -> None:
    assert normalized_mutual_info_score(CLASSES, fitted.labels_) > 0.6
    assert fitted.n_clusters_ == 10 and fitted.n_features_in_ == fitted.model_.backbone.dim
    np.testing.assert_array_equal(fitted.predict(IMAGES), fitted.labels_)
    distances = fitted.transform(IMAGES[:20])
    np.testing.assert_array_equal(distances.argmin(1), fitted.labels_[:20])
    np.testing.assert_allclose(
        distances, np.linalg.norm(fitted.embed(IMAGES[:20])[:, None] - fitted.cluster_centers_, axis=2), rtol=1e-4
    )
    assert fitted.score(IMAGES) == pytest.approx(-np.square(fitted.transform(IMAGES).min(1)).sum(), rel=1e-4)
    assert list(fitted.get_feature_names_out())[:2] == ["imageclusterer0", "imageclusterer1"]


def test_fitted_again_and_cloned_it_is_the_same(fitted: ImageClusterer, small: dict[str, Any]) -> None:
    once = ImageClusterer(10, **small).fit(IMAGES)
    again = clone(once)
    assert not hasattr(again, "labels_")
    for _ in range(2):
        np.testing.assert_array_equal(again.fit_predict(IMAGES), once.labels_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(IMAGES[:30]), fitted.labels_[:30])


def test_columns_of_paths_with_a_broken_file(tmp_path: Path, small: dict[str, Any]) -> None:
    for number, image in enumerate(IMAGES[:40]):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "07.png").write_bytes(b"nothing")
    paths = sorted(str(path) for path in tmp_path.glob("*.png"))
    kinds = (paths, np.array(paths), np.array(paths, object)[:, None], [Path(path) for path in paths])
    labels = [ImageClusterer(4, **small).fit_predict(each) for each in kinds]
    for each in labels:
        np.testing.assert_array_equal(each, labels[0])
    assert (labels[0] == -1).tolist() == [number == 7 for number in range(40)]
    found = ImageClusterer(4, **small).fit(paths)
    assert np.isnan(found.transform(paths)[7]).all() and np.isfinite(found.score(paths))
    assert found.predict(paths)[7] == -1


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_data_frames(library: str, tmp_path: Path, small: dict[str, Any]) -> None:
    Frame = pytest.importorskip(library).DataFrame
    for number, image in enumerate(IMAGES[:20]):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    frame = Frame({"path": sorted(str(path) for path in tmp_path.glob("*.png"))})
    by_column, by_frame = (ImageClusterer(4, **small).fit(each) for each in (frame["path"], frame))
    np.testing.assert_array_equal(by_column.labels_, by_frame.labels_)
    assert by_column.labels_.min() >= 0


def test_pipeline_and_grid_search(small: dict[str, Any]) -> None:
    pipeline = make_pipeline(ImageClusterer(20, **small), StandardScaler(), LogisticRegression())
    assert pipeline.fit(IMAGES, CLASSES).score(IMAGES, CLASSES) > 0.7
    search = GridSearchCV(ImageClusterer(**small), {"n_clusters": [2, 12]}, cv=2).fit(IMAGES)
    assert search.best_params_ == {"n_clusters": 12}  # more centers are nearer


def test_in_processes_of_joblib(fitted: ImageClusterer, tmp_path: Path) -> None:
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    kept = joblib.load(tmp_path / "fitted.joblib")
    parts = joblib.Parallel(2)(joblib.delayed(kept.predict)(IMAGES[start : start + 20]) for start in (0, 20))
    np.testing.assert_array_equal(np.concatenate(parts), fitted.labels_[:40])


@pytest.mark.slow
def test_a_search_in_processes_of_joblib(small: dict[str, Any]) -> None:
    grid = {"n_clusters": [2, 12]}
    alone, both = (GridSearchCV(ImageClusterer(**small), grid, cv=2, n_jobs=jobs).fit(IMAGES) for jobs in (1, 2))
    np.testing.assert_allclose(both.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], rtol=1e-5)


def test_in_a_notebook(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What scikit-learn draws of an estimator, and the page of `explore` in a browser."""
    groups = ImageClusterer(3, out=tmp_path / "run", **small)
    before = groups._repr_html_()
    after = groups.fit(IMAGES)._repr_html_()
    assert "ImageClusterer" in before and "n_clusters" in before and "Not fitted" in before and "Fitted" in after
    served: list[tuple[str, int]] = []

    def serve(explorer: Any, listening: Any, started: Any) -> None:
        started(None, "http://127.0.0.1:1/")
        served.append((str(explorer.run.folder), len(explorer.groups)))

    opened: list[str] = []
    monkeypatch.setattr("deepcluster.explore.server.serve", serve)
    monkeypatch.setattr("webbrowser.open", opened.append)
    groups.explore()
    assert served == [(str(tmp_path / "run"), len(IMAGES))] and len(opened) == 1
    groups.explore(open=False)
    assert len(served) == 2 and len(opened) == 1


def test_trained_first_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = ImageClusterer(10, method="tiny-deepcluster", epochs=2, random_state=0, out=out)
    labels = trained.fit_predict(IMAGES)
    assert dc.load_run(tmp_path / "run-network").config["preset"] == "tiny-deepcluster"
    np.testing.assert_array_equal(dc.load_run(out).assignment, labels)
    np.testing.assert_array_equal(trained.fit(IMAGES).labels_, labels)  # its own run it replaces
    with pytest.raises(DeepClusterError, match="already holds"):
        clone(trained).fit(IMAGES)
    chosen = ImageClusterer(3, method="deepcluster", epochs=1, settings={"k": 16}, random_state=0).fit(IMAGES)
    assert chosen.n_clusters_ == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_clusters": 0}, 'n_clusters must be "auto" or an integer of at least 1, not 0'),
        ({"n_clusters": "many"}, "not 'many'"),
        ({"epochs": 3}, "epochs is of training: give a method"),
        ({"method": "k-means"}, "k-means"),
        ({"method": "deepcluster", "settings": {"seed": 1}}, "settings hold 'seed'"),
        ({"algorithm": "best"}, "best"),
        ({"n_clusters": 500}, "200"),
    ],
)
def test_mistakes_are_one_sentence(arguments: dict[str, Any], words: str, small: dict[str, Any]) -> None:
    with pytest.raises(DeepClusterError, match=re.escape(words)):
        ImageClusterer(**(small | arguments)).fit(IMAGES)


def test_before_fit_and_without_a_run(small: dict[str, Any]) -> None:
    with pytest.raises(NotFittedError, match="not fitted"):
        ImageClusterer().predict(IMAGES)
    with pytest.raises(DeepClusterError, match="No run was kept"):
        ImageClusterer(2, **small).fit(IMAGES[:20]).explore()

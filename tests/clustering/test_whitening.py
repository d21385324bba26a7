"""Whitening against NumPy's SVD and faiss's PCA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster.clustering.covariance import krylov_directions, mean_and_scatter
from deepcluster.clustering.whitening import Whitening
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows
from deepcluster.features.row_partition import shard_of


def table(n: int = 500, d: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.geomspace(1, 0.05, d)
    return (rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)).astype(np.float32)


def by_svd(x: np.ndarray, width: int, l2: bool = True) -> np.ndarray:
    centered = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    white: np.ndarray = centered @ directions[:width].T / singular[:width] * np.sqrt(len(x))
    if l2:
        white /= np.linalg.norm(white, axis=1, keepdims=True)
    return white


def up_to_sign(a: np.ndarray, b: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(a * np.sign((a * b).sum(0)), b, atol=atol)


@pytest.mark.parametrize("l2", [True, False])
def test_equals_numpy_svd(l2: bool) -> None:
    x = table()
    up_to_sign(Whitening(10, l2=l2).fit_transform(x), by_svd(x, 10, l2), 1e-4)


def test_equals_faiss() -> None:
    import faiss

    x = table()
    pca = faiss.PCAMatrix(24, 10, -0.5)
    pca.train(x)
    theirs = pca.apply(x)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    up_to_sign(Whitening(10).fit_transform(x), theirs, 1e-3)


def test_whitened_rows_have_unit_covariance() -> None:
    x = table(2000)
    white = Whitening(8, l2=False).fit_transform(x)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(8), atol=1e-3)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    plain = Whitening(8, l2=False, whiten=False).fit_transform(x)
    variances = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True))[::-1][:8]
    np.testing.assert_allclose(np.var(plain, axis=0), variances, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(Whitening(8).fit_transform(x), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("exact_dim", "tolerance"), [(1024, 1e-12), (8, 1e-5)])
def test_covariance_equals_numpy(exact_dim: int, tolerance: float) -> None:
    """In float64 and, for wide features, by float32 products."""
    x = table()
    rows = Rows(x)
    mean, scatter = mean_and_scatter(rows, shard_of(rows), exact_dim)
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-10)
    expected = np.cov(x.T.astype(np.float64), bias=True) * len(x)
    np.testing.assert_allclose(scatter, expected, atol=tolerance * expected.max())


@pytest.mark.parametrize("rank", [300, 40, 1, 0])
def test_few_directions_of_many_equal_the_direct_solution(rank: int) -> None:
    """Slowly falling, rank-deficient and empty spectra, far fewer directions wanted than there are."""
    dim, count = 600, 64
    rng = np.random.default_rng(rank)
    directions = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    spectrum = np.where(np.arange(dim) < rank, np.geomspace(1, 0.02, dim), 0)
    covariance = torch.from_numpy((directions * spectrum) @ directions.T)
    values, found = krylov_directions(covariance, count)
    torch.testing.assert_close(values, torch.from_numpy(spectrum[:count]), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(found @ found.T, torch.eye(count, dtype=torch.float64), atol=1e-10, rtol=0)
    alive = min(rank, count)
    cosine = (found * torch.from_numpy(directions.T[:count].copy())).sum(1).abs()
    assert (cosine[:alive] > 1 - 1e-5).all()


def test_partial_fit_and_files_equal_fit_in_memory(tmp_path: Path) -> None:
    x = table(3000) + 100
    whole = Whitening(10).fit(x)
    parts = Whitening(10)
    for part in np.split(x, [1, 50, 1700]):
        parts.partial_fit(part)
    np.testing.assert_allclose(parts.components_, whole.components_, atol=1e-3)
    path = tmp_path / "x.npy"
    np.save(path, x)
    mapped = np.load(path, mmap_mode="r")
    file = Whitening(10).fit(mapped)
    assert torch.equal(file.components_, whole.components_)
    out = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (3000, 10))
    assert file.transform(mapped, out=out) is out
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), whole.transform(x))


def test_signs_of_directions_are_fixed() -> None:
    x = table()
    one, turned = Whitening(10).fit(x), Whitening(10).fit(x[::-1].copy())
    np.testing.assert_allclose(one.components_, turned.components_, atol=1e-3)
    peak = one.components_.gather(1, one.components_.abs().argmax(1, keepdim=True))
    assert (peak > 0).all()


def test_directions_without_variance_give_zero() -> None:
    x = table(400, 6)
    full = Whitening(6).fit_transform(x)
    padded = np.concatenate([x, x[:, :3], np.full((400, 4), 7, np.float32), x[:, :2] * 1e-7], axis=1)
    white = Whitening(12, l2=False).fit(padded)
    assert np.isfinite(white.transform(padded)).all()
    assert int((white.components_.abs().sum(1) > 0).sum()) == 6
    assert (white.transform(padded)[:, 6:] == 0).all()
    angle = (full @ full.T) - (lambda z: z @ z.T)(Whitening(12).fit_transform(padded))
    assert np.abs(angle).max() < 1e-2  # the same geometry, up to a rotation


def test_fewer_rows_than_dimensions() -> None:
    x = table(5, 40)
    white = Whitening(20).fit_transform(x)
    assert white.shape == (5, 20)
    assert np.isfinite(white).all()
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(white @ white.T, np.full((5, 5), -0.25) + 1.25 * np.eye(5), atol=1e-3)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 16), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_any_table_is_finite(n: int, d: int, width: int, kind: int) -> None:
    rng = np.random.default_rng(n * 31 + d)
    x = [
        rng.normal(size=(n, d)),
        np.full((n, d), 0.1),
        np.full((n, d), 1e6) + rng.integers(0, 2, (n, 1)),
        np.repeat(rng.normal(size=(1, d)), n, 0),
        rng.normal(size=(n, d)) * np.geomspace(1e-12, 1e6, d),
    ][kind].astype(np.float32)
    white = Whitening(width).fit_transform(x)
    assert white.shape == (n, min(width, d))
    assert np.isfinite(white).all()
    length = np.linalg.norm(white, axis=1)
    assert ((np.abs(length - 1) < 1e-4) | (length == 0)).all()
    if kind in (1, 3):
        assert (white == 0).all()


def test_state_dict_round_trip(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    x = table()
    fitted = Whitening(10, l2=False).fit(x)
    save_file(fitted.state_dict(), tmp_path / "w.safetensors")
    again = Whitening().load_state_dict(load_file(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(again.transform(x), fitted.transform(x))
    assert (again.n_features_in_, again.n_components, again.l2) == (24, 10, False)


def test_rows_of_bad_images() -> None:
    x = table()
    fitted = Whitening(10).fit(x)
    x[3, 5] = np.nan
    with pytest.raises(DeepClusterError, match="Row 3 of the features holds NaN"):
        Whitening(10).fit(x)
    white = fitted.transform(x)
    assert np.isnan(white[3]).all()
    assert np.isfinite(np.delete(white, 3, 0)).all()


def test_invalid_input_raises() -> None:
    with pytest.raises(DeepClusterError, match="is not fitted yet"):
        Whitening().transform(table())
    fitted = Whitening(4).fit(table())
    with pytest.raises(DeepClusterError, match="X has 7 features, but Whitening is expecting 24"):
        fitted.transform(table(10, 7))
    with pytest.raises(DeepClusterError, match="X has 7 features, but Whitening is expecting 24"):
        fitted.partial_fit(table(10, 7))
    with pytest.raises(DeepClusterError, match="out must be of shape"):
        fitted.transform(table(), out=np.zeros((3, 4), np.float32))
    with pytest.raises(DeepClusterError, match="n_components"):
        Whitening(0).fit(table())
    with pytest.raises(DeepClusterError, match="lacks components"):
        Whitening().load_state_dict({"mean": torch.zeros(3)})


def test_transform_of_a_tensor_is_a_tensor() -> None:
    x = torch.from_numpy(table())
    white = Whitening(5).fit_transform(x)
    assert isinstance(white, torch.Tensor)
    np.testing.assert_array_equal(white.numpy(), Whitening(5).fit_transform(x.numpy()))

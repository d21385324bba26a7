"""Nearest rows against all distances in float64, and against scikit-learn."""

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

from deepcluster.errors import DeepClusterError
from deepcluster.features import knn
from deepcluster.features.knn import nearest_rows


def oracle(x: np.ndarray, k: int, queries: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All distances by differences, a stable sort, the row itself out by its index."""
    exact = np.asarray(x, np.float32).astype(np.float64)
    asked = exact if queries is None else np.asarray(queries, np.float32).astype(np.float64)
    squared = np.stack([np.square(exact - row).sum(1) for row in asked])
    if queries is None:
        np.fill_diagonal(squared, np.inf)
    index = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(squared, index, 1)


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    rows: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return rows


def tables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "unit rows": unit(901, 33),
        "more columns than a tile": unit(2048 + 77, 6),
        "a lattice full of ties": rng.integers(0, 3, (700, 5)),
        "all alike": np.full((300, 7), 0.1),
        "nine of each": np.repeat(rng.normal(size=(60, 5)), 9, axis=0),
        "one value in most rows": np.where(rng.random((500, 1)) < 0.9, 0.0, rng.normal(size=(500, 4))),
        "far from zero": (rng.normal(size=(600, 8)) * 1e-3 + 100).astype(np.float32),
        "tight groups far apart": rng.normal(size=(20, 8)).repeat(30, 0) + 1e-5 * rng.normal(size=(600, 8)),
        "squares under float32's range": rng.normal(size=(150, 3)) * 1e-22,
        "one column": rng.normal(size=(200, 1)),
    }


@pytest.mark.parametrize("name", tables())
def test_equals_all_distances_sorted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "TILE_WIDTH", 1024)
    x = tables()[name]
    index, squared = nearest_rows(x, 5)
    expected, distance = oracle(x, 5)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(squared, distance.astype(np.float32))
    assert index.dtype == np.int64 and squared.dtype == np.float32


@given(st.integers(2, 60), st.integers(1, 70), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_any_small_table(n: int, k: int, d: int, kind: int) -> None:
    rng = np.random.default_rng(n * 100 + d)
    x = [rng.normal(size=(n, d)), rng.integers(0, 2, (n, d)), np.zeros((n, d)), rng.normal(size=(n, d)) * 1e-6][kind]
    if k >= n:
        with pytest.raises(DeepClusterError, match=rf"{n} rows? ha(ve|s) no more than {n - 1} neighbors?"):
            nearest_rows(x, k)
        return
    index, squared = nearest_rows(x, k)
    expected, distance = oracle(x, k)
    np.testing.assert_array_equal(index, expected)
    # sums of squares of few numbers may be added in another order than NumPy adds them
    np.testing.assert_allclose(squared, distance, rtol=2e-7)


def test_queries_among_the_rows_find_themselves() -> None:
    x, queries = unit(700, 12), np.concatenate([unit(700, 12)[:50], unit(90, 12, 1)])
    index, squared = nearest_rows(x, 4, queries=queries)
    expected, distance = oracle(x, 4, queries)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(squared, distance.astype(np.float32))
    assert (index[:50, 0] == np.arange(50)).all() and (squared[:50, 0] == 0).all()
    assert nearest_rows(x[:1], 1, queries=queries)[0].tolist() == [[0]] * 140
    with pytest.raises(DeepClusterError, match="3 columns but the features have 12"):
        nearest_rows(x, 1, queries=queries[:, :3])
    with pytest.raises(DeepClusterError, match="no more than 700 neighbors each, not 701"):
        nearest_rows(x, 701, queries=queries)


@pytest.mark.parametrize("queries", [False, True])
def test_cosine_equals_all_similarities_sorted(queries: bool) -> None:
    rng = np.random.default_rng(5)
    x = unit(500, 9) * rng.uniform(0.01, 100, (500, 1)).astype(np.float32)
    asked = unit(60, 9, 1) * 7 if queries else None
    index, squared = nearest_rows(x, 5, queries=asked, metric="cosine")
    exact = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    wanted = exact if asked is None else asked.astype(np.float64) / 7
    similarity = wanted @ exact.T
    if asked is None:
        np.fill_diagonal(similarity, -np.inf)
    np.testing.assert_array_equal(index, np.argsort(-similarity, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(1 - squared / 2, np.take_along_axis(similarity, index, 1), atol=1e-6)


def test_same_distances_as_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    x = unit(1200, 32)
    theirs, index = NearestNeighbors(n_neighbors=8, algorithm="brute").fit(x.astype(np.float64)).kneighbors()
    ours, squared = nearest_rows(x, 8)
    np.testing.assert_array_equal(ours, index)
    np.testing.assert_allclose(np.sqrt(squared), theirs, rtol=1e-6)


def test_blocks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([unit(1400, 20), unit(1400, 20)[:300], np.zeros((40, 20), np.float32)])
    whole = nearest_rows(x, 6)
    before = torch.get_num_threads()
    try:
        for threads, block in ((3, 1 << 24), (1, 20 * 1100), (2, 20 * 257)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(knn, "BLOCK_NUMBERS", block)
            monkeypatch.setattr(knn, "TILE_WIDTH", 1024)
            found = nearest_rows(x, 6)
            for one, other in zip(whole, found, strict=True):
                np.testing.assert_array_equal(one, other)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(whole[0], oracle(x, 6)[0])


def test_imprecise_products_do_not_change_the_neighbors() -> None:
    """Products of 8 bits choose the wrong candidates; differences put that right."""
    x = unit(400, 16)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        np.testing.assert_array_equal(nearest_rows(x, 5)[0], oracle(x, 5)[0])
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_file_is_searched_like_the_same_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([unit(800, 24), unit(800, 24)[:100]])
    np.save(tmp_path / "x.npy", x)
    memory = nearest_rows(x, 5)
    monkeypatch.setattr(knn, "BLOCK_NUMBERS", 256 * 24)
    file = nearest_rows(np.load(tmp_path / "x.npy", mmap_mode="r"), 5)
    for one, other in zip(memory, file, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("queries", [False, True])
def test_a_table_that_stays_on_the_device_gives_the_same(
    queries: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_read: list[int]
) -> None:
    """As on a GPU with memory for it: read from its file once, however many blocks of queries there are."""
    x = unit(1300, 24).astype(np.float64) + 1e7
    np.save(tmp_path / "x.npy", x)
    table, asked = np.load(tmp_path / "x.npy", mmap_mode="r"), x[:700] if queries else None
    monkeypatch.setattr(knn, "BLOCK_NUMBERS", 256 * 24)
    expected = nearest_rows(table, 5, queries=asked)
    monkeypatch.setattr("deepcluster.features.resident._budget", lambda device: x.nbytes)
    rows_read.clear()
    found = nearest_rows(table, 5, queries=asked)
    assert sum(rows_read) == len(x)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", tables())
def test_a_gpu_finds_the_same(name: str) -> None:
    x = tables()[name]
    index, squared = nearest_rows(x, 5, device="cuda")
    expected, distance = oracle(x, 5)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(squared, distance.astype(np.float32), rtol=1e-6)


def test_output_is_a_tensor_for_tensors_and_an_array_otherwise() -> None:
    x = unit(50, 6)
    index, squared = nearest_rows(torch.from_numpy(x), 3)
    assert isinstance(index, torch.Tensor) and index.dtype == torch.int64
    assert isinstance(squared, torch.Tensor) and squared.dtype == torch.float32
    np.testing.assert_array_equal(index.numpy(), nearest_rows(x.tolist(), 3)[0])
    assert isinstance(nearest_rows(x, 3, queries=torch.from_numpy(x))[0], torch.Tensor)
    assert isinstance(nearest_rows(torch.from_numpy(x), 3, queries=x)[0], np.ndarray)


@pytest.mark.parametrize(
    ("arguments", "x", "words"),
    [
        ({"k": 0}, np.ones((4, 2)), "at least 1, not 0"),
        ({}, np.array([[0, 0], [np.nan, 1]]), "Row 1 of the features holds NaN"),
        ({"queries": np.array([[np.inf, 0]])}, np.ones((4, 2)), "Row 0 of the queries holds NaN"),
        ({"metric": "manhattan"}, np.ones((4, 2)), "metric must be one of"),
        ({}, np.ones((1, 2)), "1 row has no more than 0 neighbors"),
        ({}, np.ones(4), "must be a table"),
    ],
)
def test_invalid_input_raises(arguments: dict[str, Any], x: np.ndarray, words: str) -> None:
    with pytest.raises(DeepClusterError, match=words):
        nearest_rows(x, **{"k": 1, **arguments})


@pytest.mark.skipif(sys.platform == "win32", reason="it does not count a process's peak memory")
@pytest.mark.slow
def test_temporaries_are_used_again() -> None:
    """Where the C library keeps what is freed, as it does after a while, 8,000 rows once took 500 MiB."""
    script = """
import resource
import sys
import numpy as np
from deepcluster.features.knn import nearest_rows
x = np.random.default_rng(0).standard_normal((8000, 512), dtype=np.float32)
nearest_rows(x[:600], 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for count in (6000, 7000, 8000):
    nearest_rows(x[:count], 5)
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit >> 20)
"""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 26), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250  # MiB

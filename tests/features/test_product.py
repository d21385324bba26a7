"""Products by torch's and NumPy's libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from deepcluster.features import product
from deepcluster.features.parallel import team


@pytest.mark.parametrize("by_numpy", [True, False])
def test_products_are_those_of_float64(by_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "by_numpy", lambda: by_numpy)
    a, b = torch.randn(70, 33), torch.randn(50, 33)
    buffer = torch.empty(80, 50)
    out = product.multiply(a, b.T, buffer[:70])
    assert out.data_ptr() == buffer.data_ptr()
    torch.testing.assert_close(out.double(), a.double() @ b.double().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["Haswell", "SkylakeX"])
def test_numpy_multiplies_only_where_a_row_is_rounded_alike_in_any_place(kernel: str) -> None:
    """OpenBLAS's kernels for AVX2 round every second half dozen of rows in another way."""
    script = """
import numpy as np, torch
from deepcluster.clustering.assign import NearestSearch
from deepcluster.features import product
product._amd = lambda: True
rng = np.random.default_rng(0)
centroids = torch.from_numpy(rng.standard_normal((300, 64), np.float32))
near = centroids[rng.integers(0, 300, 1500)] + centroids[rng.integers(0, 300, 1500)]  # ties, but for rounding
together, order = NearestSearch(centroids)(near), torch.randperm(1500)
print(product.by_numpy(), bool((NearestSearch(centroids)(near[order]) == together[order]).all()))
"""
    environment = os.environ | {"OPENBLAS_CORETYPE": kernel}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "True"


def test_a_team_limits_the_threads_of_numpy_and_gives_them_back() -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in product.blas().info()}

    with product.blas().limit(limits=2):
        with team():
            assert threads() <= {1}
        assert threads() <= {2}

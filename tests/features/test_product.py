"""Products by torch's and NumPy's libraries."""

from __future__ import annotations

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


def test_a_team_limits_the_threads_of_numpy_and_gives_them_back() -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in product.blas().info()}

    with product.blas().limit(limits=2):
        with team():
            assert threads() <= {1}
        assert threads() <= {2}

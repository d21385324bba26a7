"""Products of float32 matrices on a CPU, by the library that is faster there."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a (M, D) times b (D, N) into out (M, N), float32 on the CPU, none of which needs a gradient."""
    if not by_numpy():
        return torch.mm(a, b, out=out)
    np.matmul(a.numpy(), b.numpy(), out=out.numpy())
    return out


def gram(x: Tensor) -> Tensor:
    """(D, D) x^T x of x (M, D), on a CPU by NumPy, which computes one half of it and copies the other."""
    if x.device.type != "cpu":
        return x.T @ x
    values = x.numpy()
    return torch.from_numpy(values.T @ values)


@cache
def by_numpy() -> bool:
    """Whether NumPy multiplies: torch's MKL takes 1.1 to 1.7 times as long on AMD's processors as OpenBLAS.

    The processor decides and not a measurement, which another program could disturb: the two round differently, and
    equal runs are to have equal bits. For their sake OpenBLAS must also round a row alike wherever it stands among
    others, which its kernels for AVX2 do not.
    """
    has_openblas = any(library["internal_api"] == "openblas" for library in blas().info())
    return has_openblas and _amd() and rounds_alike()


def _amd() -> bool:
    capabilities: Mapping[str, str] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "AMD" in capabilities.get("cpu_name", platform.processor()) and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


def rounds_alike() -> bool:
    """Whether NumPy's products of equal rows are equal, in any place of a block."""
    rng = np.random.default_rng(0)
    row, columns = rng.standard_normal((1, 256), np.float32), rng.standard_normal((256, 192), np.float32)
    return all(
        bool((products == products[0]).all())
        for count in (512, 509, 96, 37)
        for products in [np.repeat(row, count, 0) @ columns]
    )


@cache
def blas() -> ThreadpoolController:
    """NumPy's own BLAS, whose threads `team` limits; SciPy has another, whose decompositions are to have all cores."""
    found = ThreadpoolController()
    files = [library["filepath"] for library in found.info() if library["user_api"] == "blas"]
    return found.select(filepath=[file for file in files if "numpy" in Path(file).parent.name])

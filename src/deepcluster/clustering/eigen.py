"""The few largest eigenvalues of a covariance matrix and their directions.

A direct method finds all or none of a large matrix's directions at nearly the same cost; for 256 of 4,096 it is bound
by memory and takes many times as long as the products of matrices of a block Krylov method, which is used there.
Tests compare both.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_DIM = 1024  # width from which few directions are found by the block Krylov method


def main_directions(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues of a (D, D) float64 matrix, descending, and their (count, D) directions."""
    dim = len(covariance)
    if dim > EXACT_DIM and count * 8 <= dim:
        return krylov_directions(covariance, count)
    if covariance.device.type == "cpu":
        # SciPy finds the asked-for directions only
        from scipy.linalg import eigh

        found = eigh(covariance.numpy(), subset_by_index=(dim - count, dim - 1), driver="evr")
        values, vectors = (torch.from_numpy(part) for part in found)
    else:
        values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0)[:count], vectors.flip(1)[:, :count].T


def krylov_directions(covariance: Tensor, count: int, *, rounds: int = 12) -> tuple[Tensor, Tensor]:
    """`main_directions` of a large matrix by a restarted block Krylov method (Musco and Musco 2015).

    Each round spans the blocks X, CX, C^2 X and C^3 X by an orthonormal basis, solves the small problem in it and
    starts the next round from the solution, until no wanted direction leaves a residual |Cv - lv| above a ten
    thousandth of its own l (or a millionth of the floor's share of the largest).
    """
    width = count + max(16, count // 4)  # spare columns: the last wanted ones would converge slowly
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(covariance), width, generator=generator, dtype=torch.float64).to(covariance.device)
    x = torch.linalg.qr(x).Q
    values = torch.zeros(width, dtype=torch.float64, device=covariance.device)
    for _ in range(rounds):
        basis, image = x, covariance @ x
        for _ in range(3):
            block = image[:, -width:]
            for _ in range(2):  # once leaves what rounding put back
                block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
            basis, image = torch.cat([basis, block], 1), torch.cat([image, covariance @ block], 1)
        small = basis.T @ image
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
        x = torch.linalg.qr(basis @ vectors).Q
        residual = image @ vectors[:, :count] - (basis @ vectors[:, :count]) * values[:count]
        residual = torch.linalg.vector_norm(residual, dim=0)
        if bool((residual <= 1e-4 * values[:count].abs() + 1e-11 * values[0].abs()).all()):
            break
    return values[:count], x[:, :count].T

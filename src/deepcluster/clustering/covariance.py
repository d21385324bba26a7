"""Mean and covariance of a table, to the last bit the same in any order of its blocks, and its main directions.

Sums are exact (exact_sum.py), so that any number of processes computes the same whitening. A direct method finds all
or none of a large matrix's directions at nearly the same cost; for 256 of 4,096 it is bound by memory and takes many
times as long as the matrix products of a block Krylov method, which is used there. Tests compare both with NumPy.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from deepcluster.clustering.points import Points
from deepcluster.distributed import ALIGN
from deepcluster.exact_sum import round_
from deepcluster.features.block_reader import Rows, refuse_rows
from deepcluster.features.parallel import over_rows, over_spans, team
from deepcluster.features.product import gram
from deepcluster.features.row_partition import Shard

EXACT_DIM = 1024  # widest covariance that is multiplied in float64 and solved directly
SAMPLE = 1024  # rows from which the mean and the size of the covariance are guessed
KRYLOV_ROUNDS = 12  # restarts at most
HEADROOM = 2.0**10  # how far the guess may be too small before all rows are read again


def mean_and_scatter(rows: Rows, shard: Shard, exact_dim: int = EXACT_DIM) -> tuple[Tensor, Tensor]:
    """(D,) float64 mean and (D, D) float64 sum of outer products about it, of the rows of all processes.

    Widths up to `exact_dim` are multiplied in float64, larger ones in float32. The rows are read once, about a mean
    that is guessed from a sample. Sums are exact in multiples of a unit, and so do not depend on order, as long as they
    stay below a bound that is guessed from the sample too; where the guess was too small, which one row far from all
    others can bring about, the rows are read again.
    """
    stride = -(-shard.total // SAMPLE)
    sample = shard.take(rows, torch.arange(0, shard.total, stride)).double()
    sample = sample[torch.isfinite(sample).all(1)]
    about = sample.mean(0) if len(sample) else torch.zeros(rows.dim, dtype=torch.float64, device=rows.device)
    bound = HEADROOM * shard.total * float((sample - about).square().mean(0).max()) if len(sample) else 0.0
    blocks = int(shard.group.sum_(torch.tensor([-(-rows.n // ALIGN)])))
    while True:
        bound = 2.0 ** math.frexp(max(bound, 2.0**-900))[1]
        with shard.group.collective_section():
            parts = over_rows(_own_moments, [Points(rows, shard=shard)], about, bound, exact_dim)
            sums, largest = sum(part[0] for part in parts), torch.stack([part[1] for part in parts]).amax(0)
        needed = float(shard.group.max_(largest)) * blocks
        if needed <= bound:
            break
        bound = needed
    shard.group.sum_(sums)
    shift = sums[-1] / shard.total
    return about + shift, sums[:-1] - torch.outer(shift, shift) * shard.total


def _own_moments(points: Points, about: Tensor, bound: float, exact_dim: int) -> tuple[Tensor, Tensor]:
    """(D + 1, D) float64: sums of outer products and, last, of these rows, and the largest of a block.

    Both are about `about`, and block by block rounded to what makes them exact up to `bound`.
    """
    rows, shard = points.rows, points.shard
    sums = torch.zeros(rows.dim + 1, rows.dim, dtype=torch.float64, device=rows.device)
    largest = torch.zeros(1, dtype=torch.float64, device=rows.device)
    unit, unit_of_sums = bound * 2.0**-51, (2.0 ** (math.frexp(bound * shard.total)[1] // 2 + 1)) * 2.0**-51
    step = max(ALIGN, rows.block_rows // ALIGN * ALIGN)
    lock = Lock()

    def add(start: int, read: Tensor, first: int, last: int) -> None:
        centered = read[first:last].double() - about
        products, total = gram(centered.float() if rows.dim > exact_dim else centered).double(), centered.sum(0)
        peak = products.diagonal().max()
        if not torch.isfinite(peak):
            refuse_rows(centered, shard.first + start + first)
        round_(products, unit)
        round_(total, unit_of_sums)
        with lock:
            torch.maximum(largest, peak, out=largest)
            sums[:-1] += products
            sums[-1] += total

    with team() if rows.device.type == "cpu" else nullcontext():
        for start, read in rows.blocks(step):
            over_spans(partial(add, start, read), len(read), ALIGN)
    return sums, largest


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


def krylov_directions(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
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
    for _ in range(KRYLOV_ROUNDS):
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

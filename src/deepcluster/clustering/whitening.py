"""PCA-whitening followed by L2 normalization: what the paper does to features before k-means.

This file knows covariances and eigenvectors; it does not know what the rows mean.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepcluster.clustering.exact_sum import round_
from deepcluster.clustering.row_partition import Shard, agreed, shard_of
from deepcluster.distributed import ALIGN, SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, in_kind, write_rows

EXACT_DIM = 1024  # up to this width covariances are multiplied in float64; beyond, in float32 blocks
SAMPLE = 1024  # rows from which the mean and the size of the covariance are guessed
HEADROOM = 2.0**10  # how far the guess may be too small before all rows are read again


class Whitening:
    """Center, project on the main directions, divide each by its deviation, then L2-normalize each row.

    The order is the paper's (arXiv 1807.05520 §3.3, "PCA-reduced to 256 dimensions, whitened and
    l2-normalized"). The covariance is gathered block by block in float64, so the rows may lie in a file
    larger than memory, may come in several `partial_fit` calls, and may be shared out over several processes,
    which tell each other D^2 numbers.

    Directions whose variance is under `floor` times the largest carry rounding noise, or nothing; they
    give zero instead of amplified noise, so constant or duplicate features and fewer rows than
    dimensions are fine. Each direction's sign is fixed: its entry of largest magnitude is positive.

    Args:
        n_components: width of the output; lowered to the width of the input where that is smaller.
        whiten: divide by the standard deviation of each direction.
        l2: L2-normalize the rows of the result; a row of zeros stays a row of zeros.
        floor: smallest variance kept, relative to the largest.
        device: where the work is done; None = where the rows are.
        group: the processes that whiten together. All call `fit`, each with its own rows of one table, of which a
            process may have none; all get the same whitening. Where shares begin at multiples of 1,024 rows it
            does not depend on their number, to the last bit on CPUs. `transform` concerns nobody else.

    Attributes:
        mean: (D,) float32.
        components: (P, D) float32, scaled: the result before L2 is (x - mean) @ components.T.
        variance: (P,) float64, variance along each direction, descending.
        n_features_in_: D.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    n_features_in_: int

    def __init__(
        self,
        n_components: int = 256,
        *,
        whiten: bool = True,
        l2: bool = True,
        floor: float = 1e-5,
        device: torch.device | str | None = None,
        group: ProcessGroup = SINGLE,
    ):
        self.n_components = n_components
        self.whiten = whiten
        self.l2 = l2
        self.floor = floor
        self.device = device
        self.group = group
        self._reset()

    def _reset(self) -> None:
        self._count = 0
        self._center: Tensor | None = None  # (D,) float64, mean of the rows seen so far
        self._scatter: Tensor | None = None  # (D, D) float64, sum of outer products about that mean

    def fit(self, x: Any, y: None = None) -> Whitening:
        """Learn from x (N, D) alone, whatever was seen before.

        Raises:
            DeepClusterError: a row holds NaN or infinity, or x is not a table.
        """
        self._reset()
        return self.partial_fit(x)

    def partial_fit(self, x: Any, y: None = None) -> Whitening:
        """Learn from x (N, D) besides the rows seen before.

        Raises:
            DeepClusterError: a row holds NaN or infinity, x is not a table, or its width changed.
        """
        if self.n_components < 1:
            raise DeepClusterError(f"n_components must be at least 1, not {self.n_components}.")
        rows = agreed(self.group, lambda: Rows(x, self.device, empty=not self.group.is_single))
        shard = shard_of(rows, self.group)
        if self._center is not None and rows.dim != len(self._center):
            raise DeepClusterError(
                f"These features have {rows.dim} columns but the whitening saw {len(self._center)} before; "
                "give features of one network and tap only."
            )
        self._merge(shard.total, *_moments(rows, shard))
        self._solve(shard)
        return self

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Add `count` rows' mean and scatter to those of the rows before (Chan, Golub and LeVeque 1979)."""
        if self._center is None or self._scatter is None:
            self._center, self._scatter = mean, scatter
        else:
            mean, scatter = mean.to(self._center.device), scatter.to(self._center.device)
            total = self._count + count
            shift = mean - self._center
            self._scatter += scatter + torch.outer(shift, shift) * (self._count * count / total)
            self._center += shift * (count / total)
        self._count += count

    def _solve(self, shard: Shard) -> None:
        assert self._center is not None and self._scatter is not None
        covariance = self._scatter / self._count
        values, directions = main_directions((covariance + covariance.T) / 2, min(self.n_components, len(covariance)))
        values = values.clamp_min(0)
        peak = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        directions = directions * torch.where(peak < 0, -1.0, 1.0)
        # a deviation under the last digit of the mean is float32's rounding, not the images'
        rounding = (torch.finfo(torch.float32).eps * self._center.abs().max()) ** 2
        alive = (values > self.floor * values[0]) & (values > rounding)
        scale = values.clamp_min(torch.finfo(torch.float64).tiny).rsqrt() if self.whiten else torch.ones_like(values)
        directions = directions * torch.where(alive, scale, 0.0)[:, None]
        # equal numbers give equal directions, but not on different kinds of machine
        shard.copy_(values)
        directions = shard.copy_(directions.contiguous())
        self.mean = self._center.float()
        self.components = directions.float().contiguous()
        self.variance = values
        self.n_features_in_ = len(self.mean)

    def transform(self, x: Any, out: Any = None) -> Any:
        """(N, P) float32 whitened rows, as a tensor where x is one, else as an array.

        Rows that hold NaN (bad images) come out as NaN. `out` takes the result where it is given, for
        instance a `numpy.memmap` for what does not fit into memory.
        """
        self._require_fit()
        rows = Rows(x, self.device, empty=not self.group.is_single)
        if rows.dim != self.n_features_in_:
            raise DeepClusterError(
                f"These features have {rows.dim} columns but the whitening was fitted on "
                f"{self.n_features_in_}; "
                "use the network and tap it was fitted with."
            )
        width = len(self.components)
        result = out
        if result is None:
            result = torch.empty(rows.n, width, device=rows.device)
        elif tuple(result.shape) != (rows.n, width):
            raise DeepClusterError(f"out must be of shape {(rows.n, width)}, not {tuple(result.shape)}.")
        mean, components = self.mean.to(rows.device), self.components.to(rows.device)
        for start, block in rows.blocks():
            # centered before the product: (x - mean) @ A loses nothing where |mean| is large
            white = (block - mean) @ components.T
            if self.l2:
                white = normalize_rows(white)
            write_rows(result, start, white)
        return in_kind(result, x) if out is None else out

    def fit_transform(self, x: Any, y: None = None, out: Any = None) -> Any:
        """`fit`, then `transform`, of the same rows."""
        return self.fit(x).transform(x, out=out)

    def _require_fit(self) -> None:
        if not hasattr(self, "components"):
            raise DeepClusterError("This whitening has not been fitted; call fit first.")

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors that are all `transform` needs."""
        self._require_fit()
        return {
            "mean": self.mean.cpu().clone(),
            "components": self.components.cpu().clone(),
            "variance": self.variance.cpu().clone(),
            "l2": torch.tensor(self.l2),
            "whiten": torch.tensor(self.whiten),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> Whitening:
        """Take over what `state_dict` gave; the running covariance is not part of it."""
        missing = {"mean", "components"} - state.keys()
        if missing:
            raise DeepClusterError(f"The whitening state lacks {', '.join(sorted(missing))}; save it again.")
        self._reset()
        self.mean = state["mean"].detach().clone().float()
        self.components = state["components"].detach().clone().float()
        self.variance = state.get("variance", torch.ones(len(self.components))).detach().clone().double()
        self.l2 = bool(state.get("l2", self.l2))
        self.whiten = bool(state.get("whiten", self.whiten))
        self.n_components = len(self.components)
        self.n_features_in_ = len(self.mean)
        return self


def _moments(rows: Rows, shard: Shard) -> tuple[Tensor, Tensor]:
    """(D,) float64 mean and (D, D) float64 sum of outer products about it, of the rows of all processes.

    The rows are read once, about a mean that is guessed from a sample. Sums are exact in multiples of a unit, and so
    do not depend on order, as long as they stay below a bound that is guessed from the sample too; where the guess
    was too small, which one row far from all others can bring about, the rows are read again.
    """
    stride = -(-shard.total // SAMPLE)
    sample = shard.take(rows, torch.arange(0, shard.total, stride)).double()
    sample = sample[torch.isfinite(sample).all(1)]
    about = sample.mean(0) if len(sample) else torch.zeros(rows.dim, dtype=torch.float64, device=rows.device)
    bound = HEADROOM * shard.total * float((sample - about).square().mean(0).max()) if len(sample) else 0.0
    blocks = int(shard.sum_(torch.tensor([-(-rows.n // ALIGN)])))
    while True:
        bound = 2.0 ** math.frexp(max(bound, 2.0**-900))[1]
        sums, largest = agreed(shard.group, partial(_own_moments, rows, shard, about, bound))
        needed = float(shard.max_(largest)) * blocks
        if needed <= bound:
            break
        bound = needed
    shard.sum_(sums)
    shift = sums[-1] / shard.total
    return about + shift, sums[:-1] - torch.outer(shift, shift) * shard.total


def _own_moments(rows: Rows, shard: Shard, about: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """(D + 1, D) float64: sums of outer products and, last, of this process's rows, and the largest of a block.

    Both are about `about`, and block by block rounded to what makes them exact up to `bound`.
    """
    sums = torch.zeros(rows.dim + 1, rows.dim, dtype=torch.float64, device=rows.device)
    largest = torch.zeros(1, dtype=torch.float64, device=rows.device)
    unit, unit_of_sums = bound * 2.0**-51, (2.0 ** (math.frexp(bound * shard.total)[1] // 2 + 1)) * 2.0**-51
    step = max(ALIGN, rows.block_rows // ALIGN * ALIGN)
    for start, read in rows.blocks(step):
        for first in range(0, len(read), ALIGN):
            centered = read[first : first + ALIGN].double() - about
            products, total = _products(centered)
            peak = products.diagonal().max()
            if not torch.isfinite(peak):
                bad = int((~torch.isfinite(centered).all(1)).nonzero()[0, 0]) + first + start + shard.first
                raise DeepClusterError(
                    f"Row {bad} of the features holds NaN or infinity; leave out bad images' rows before fitting."
                )
            largest = torch.maximum(largest, peak)
            sums[:-1] += round_(products, unit)
            sums[-1] += round_(total, unit_of_sums)
    return sums, largest


def _products(centered: Tensor) -> tuple[Tensor, Tensor]:
    """(D, D) float64 sum of outer products and (D,) sum of the rows (B, D) float64."""
    factor = centered.float() if centered.shape[1] > EXACT_DIM else centered
    return (factor.T @ factor).double(), centered.sum(0)


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
    thousandth of its own l (or a millionth of the floor's share of the largest). Products of large matrices are
    all it does, where the direct method, bound by memory, takes many times as long for 256 of 4,096 directions.
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


def normalize_rows(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays one of zeros."""
    # the largest magnitude goes out first: squares of very small or very large numbers leave float32
    peak = x.abs().amax(1, keepdim=True)
    x = x / torch.where(peak > 0, peak, 1.0)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)

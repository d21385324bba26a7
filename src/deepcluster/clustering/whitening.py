"""PCA-whitening followed by L2 normalization: what the paper does to features before k-means."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from deepcluster.clustering import validation
from deepcluster.clustering.covariance import main_directions, mean_and_scatter
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows, in_kind, normalize_rows, write_rows
from deepcluster.features.parallel import over_rows
from deepcluster.features.row_partition import centered, shard_of


@dataclass(eq=False, repr=False)
class Whitening(validation.Float32Transformer, BaseEstimator):
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
        group: the processes that whiten together, each with its own rows of one table, as in `KMeans`; all get the
            same whitening.

    Attributes:
        mean_: (D,) float32 tensor, whatever kind X is; float64 where X is and lies so far from zero that float32
            would lose the differences of its rows.
        components_: (P, D) float32 tensor, scaled: the result before L2 is (x - mean_) @ components_.T.
        explained_variance_: (P,) float64 tensor, variance along each direction, descending.
        n_features_in_: D.
        feature_names_in_: (D,) names of the columns, where X is a data frame.
    """

    n_components: int = 256
    _: KW_ONLY
    whiten: bool = True
    l2: bool = True
    floor: float = 1e-5
    device: torch.device | str | None = None
    group: ProcessGroup | None = None

    @validation.all_or_nothing
    def fit(self, X: Any, y: None = None) -> Whitening:
        """Learn from X (N, D) alone, whatever was learned before.

        Raises:
            DeepClusterError: a row holds NaN or infinity, or X is not a table.
        """
        self.__dict__.pop("_center", None)
        return self.partial_fit(X)

    @validation.all_or_nothing
    def partial_fit(self, X: Any, y: None = None) -> Whitening:
        """Learn from X (N, D) in addition to the rows before.

        Raises:
            DeepClusterError: a row holds NaN or infinity, X is not a table, or its width changed.
        """
        validation.check_arguments(self, n_components=validation.count(self.n_components))
        group, first = self.group or SINGLE, not hasattr(self, "_center")
        with group.collective_section():
            rows = validation.read_table(self, X, reset=first)
        shard = shard_of(rows, group)
        if first:
            centered(rows, shard)
        else:
            rows.origin = self._origin
        mean, scatter = mean_and_scatter(rows, shard)
        if first:
            self._origin: Tensor | None = rows.origin
            self._count, self._center, self._scatter = shard.total, mean, scatter
        else:  # added to the mean and scatter of the rows before (Chan, Golub and LeVeque 1979)
            mean, scatter = mean.to(self._center.device), scatter.to(self._center.device)
            shift, total = mean - self._center, self._count + shard.total
            between = torch.outer(shift, shift) * (self._count * shard.total / total)
            # not in place: what was learned before stays where this call fails
            self._scatter = self._scatter + scatter + between
            self._center = self._center + shift * (shard.total / total)
            self._count = total
        self._solve(group)
        return self

    def _solve(self, group: ProcessGroup) -> None:
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
        group.broadcast_(values)
        directions = group.broadcast_(directions.contiguous())
        self.mean_ = self._center.float() if self._origin is None else self._center + self._origin.to(values.device)
        self.components_ = directions.float().contiguous()
        self.explained_variance_ = values

    def transform(self, X: Any, out: Any = None) -> Any:
        """(N, P) float32 whitened rows, as a tensor where X is one, else as an array.

        Rows that hold NaN (bad images) come out as NaN. `out` takes the result where it is given, for
        instance a `numpy.memmap` for what does not fit into memory.
        """
        rows = validation.read_table(self, X)
        shape = (rows.n, len(self.components_))
        result = torch.empty(shape, device=rows.device) if out is None else out
        if tuple(result.shape) != shape:
            raise DeepClusterError(f"out must be of shape {shape}, not {tuple(result.shape)}.")
        mean, components = self.mean_.to(rows.device), self.components_.to(rows.device)
        if mean.dtype == torch.float64:
            rows.origin, mean = mean, mean.new_zeros(()).float()
        if isinstance(out, np.memmap):
            over_rows(_whiten, [rows, out], mean, components, self.l2)
        else:
            _whiten(rows, result, mean, components, self.l2)
        return in_kind(result, X) if out is None else out

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors that are all `transform` needs."""
        validation.require_fitted(self)
        return {
            "mean": self.mean_.cpu().clone(),
            "components": self.components_.cpu().clone(),
            "variance": self.explained_variance_.cpu().clone(),
            "l2": torch.tensor(self.l2),
            "whiten": torch.tensor(self.whiten),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> Whitening:
        """Take over what `state_dict` gave; the running covariance is not part of it."""
        missing = {"mean", "components"} - state.keys()
        if missing:
            raise DeepClusterError(f"The whitening state lacks {', '.join(sorted(missing))}; save it again.")
        self.__dict__.pop("_center", None)
        self.mean_ = state["mean"].detach().clone()
        self.components_ = state["components"].detach().clone().float()
        self.explained_variance_ = state.get("variance", torch.ones(len(self.components_))).detach().clone().double()
        self.l2 = bool(state.get("l2", self.l2))
        self.whiten = bool(state.get("whiten", self.whiten))
        self.n_components, self.n_features_in_ = self.components_.shape
        return self


def _whiten(rows: Rows, into: Any, mean: Tensor, components: Tensor, l2: bool) -> None:
    for start, block in rows.blocks():
        # centered before the product: (x - mean) @ A loses nothing where |mean| is large
        white = (block - mean) @ components.T
        write_rows(into, start, normalize_rows(white) if l2 else white)

"""What all estimators check of the tables they are given, by scikit-learn's rules.

scikit-learn turns whatever it validates into an array in memory. Tensors, memory-mapped files and tables that read
their own rows stay what they are; of these only names and number of columns are checked here, the rest by `Rows`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import sklearn.exceptions
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from deepcluster.distributed import SINGLE
from deepcluster.errors import DeepClusterError, DeepClusterWarning, counted
from deepcluster.features.block_reader import Rows, in_kind

Fit = TypeVar("Fit", bound=Callable[..., Any])


class DegenerateClusters(DeepClusterWarning, sklearn.exceptions.ConvergenceWarning):
    """A clustering says less than was asked of it: clusters without rows, or rows without company."""


class NotFittedError(DeepClusterError, sklearn.exceptions.NotFittedError):
    """An estimator is used before `fit`."""


class Float32Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """A transformer whose output is float32 and whose columns are named after its class and their number."""

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def all_or_nothing(fit: Fit) -> Fit:
    """A method that fits an estimator: where it fails, the estimator is as it was before."""

    @functools.wraps(fit)
    def fitted(self: Any, *arguments: Any, **options: Any) -> Any:
        before = dict(self.__dict__)
        try:
            return fit(self, *arguments, **options)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    return cast(Fit, fitted)


def require_fitted(estimator: Any) -> None:
    """Raises NotFittedError before `fit`."""
    try:
        check_is_fitted(estimator)
    except sklearn.exceptions.NotFittedError as error:
        raise NotFittedError(str(error)) from None


def read_table(estimator: Any, X: Any, *, reset: bool = False, min_samples: int = 1) -> Rows:
    """X (N, D) as rows on the estimator's device; a process of several may have none.

    Args:
        reset: X is what the estimator is fitted to: remember its number and names of columns. False: compare them.
        min_samples: fewest rows, where the estimator works in one process.

    Raises:
        DeepClusterError: X is not a table of real numbers, or its columns are not those of `fit`.
        TypeError: X is sparse, or holds objects that are no numbers.
        NotFittedError: `reset` is False and the estimator has not been fitted.
    """
    if not reset:
        require_fitted(estimator)
    several = not (getattr(estimator, "group", None) or SINGLE).is_single
    stays = isinstance(X, (Tensor, np.memmap, Rows)) or hasattr(X, "read_rows")
    rows = Rows(X, estimator.device, empty=several) if stays else None
    least = 0 if several else min_samples
    try:
        X = validate_data(
            estimator, X, reset=reset, skip_check_array=stays, ensure_all_finite=False, ensure_min_samples=least
        )
    except ValueError as error:
        raise DeepClusterError(str(error)) from error
    return rows or Rows(X, estimator.device, empty=several)


def read_weights(sample_weight: Any, rows: Rows) -> Tensor | None:
    """(N,) float64 weights of the rows; None = 1 for each.

    Raises:
        DeepClusterError: they are not one finite number of at least 0 for each row.
    """
    if sample_weight is None:
        return None
    weight = torch.as_tensor(sample_weight if isinstance(sample_weight, Tensor) else np.array(sample_weight))
    weight = weight.to(rows.device, torch.float64)
    if weight.shape != (rows.n,):
        raise DeepClusterError(f"sample_weight must be of shape {(rows.n,)}, not {tuple(weight.shape)}.")
    if not torch.isfinite(weight).all() or (weight < 0).any():
        raise DeepClusterError("sample_weight must hold finite numbers of at least 0.")
    return weight


def seed_from(random_state: Any) -> int:
    """A seed below 2^31: an int is its own, a `RandomState` or None (NumPy's global one) draws one."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError as error:
        raise DeepClusterError(f"{error}: give random_state an integer, a RandomState or None.") from None


def count(value: Any) -> tuple[bool, str]:
    """For `check_arguments`: whether `value` is an integer of at least 1."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
    return bool(good), "an integer of at least 1"


def positive(value: Any) -> tuple[bool, str]:
    """For `check_arguments`: whether `value` is a finite number above 0."""
    return bool(0 < value < np.inf), "a number above 0"


def choice(value: Any, *choices: str) -> tuple[bool, str]:
    """For `check_arguments`: whether `value` is one of `choices`."""
    return value in choices, f"one of {', '.join(choices)}"


def check_arguments(estimator: Any, **judged: tuple[bool, str]) -> None:
    """Raises DeepClusterError unless each argument is good; of each is told whether, and what it must be."""
    for name, (good, words) in judged.items():
        if not good:
            raise DeepClusterError(f"{name} must be {words}, not {getattr(estimator, name)!r}.")


def fitted_labels(clusterer: Any, rows: np.ndarray) -> np.ndarray:
    """(N,) int64 what `fit_predict` gives for (N, P) rows, all negative labels as -1 = none, as in HDBSCAN.

    Raises:
        DeepClusterError: it gives something else than one integer for each row.
    """
    labels = np.asarray(clusterer.fit_predict(rows))
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
        raise DeepClusterError(
            f"{type(clusterer).__name__}.fit_predict gave {labels.dtype} of shape {labels.shape} for {len(rows)} rows: "
            "it must give one integer for each."
        )
    return np.maximum(labels.astype(np.int64), -1)


def absolute(centroids: Tensor, origin: Tensor | None, like: Any) -> Any:
    """(K, D) centroids about an origin as the user sees them: float64 where float32 could not tell them apart."""
    return in_kind(centroids if origin is None else centroids.double() + origin.to(centroids.device), like)


def warn_of_empty(found: int, k: int, why: str) -> None:
    """Warns where only `found` of `k` clusters have a row; `why` says the cause and what to do."""
    if found < k:
        message = f"Number of distinct clusters ({found}) found smaller than n_clusters ({k}): {why}."
        warnings.warn(message, DegenerateClusters, stacklevel=4)  # of whoever calls fit


def require_rows(rows: int, clusters: int) -> None:
    """Raises DeepClusterError where there are fewer rows than clusters."""
    if rows < clusters:
        raise DeepClusterError(
            f"{counted(rows, 'row')} cannot make {clusters} clusters (n_samples={rows}); ask for at most"
            f" {counted(rows, 'cluster')} or give "
            "more rows."
        )

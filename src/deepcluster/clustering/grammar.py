"""What scikit-learn expects of every clusterer: arguments by name, tags, and `fit_predict`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from deepcluster.errors import DeepClusterError

C = TypeVar("C", bound="Clusterer")


class Clusterer(ABC):
    """The manners of a clusterer whose constructor keeps each argument under its own name."""

    labels_: Any

    @abstractmethod
    def fit(self, x: Any, y: None = None) -> Any:
        """Cluster the rows of x (N, D); returns itself."""

    def fit_predict(self, x: Any, y: None = None) -> Any:
        """`fit(x).labels_`."""
        return self.fit(x).labels_

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self: C, **params: Any) -> C:
        """Change constructor arguments by name."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise DeepClusterError(f"{type(self).__name__} has no argument {name!r}; it has {', '.join(known)}.")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn (from 1.6 on) asks before it puts an estimator into a pipeline."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        transforms = hasattr(self, "transform")
        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float32"]) if transforms else None,
            classifier_tags=None,
            regressor_tags=None,
        )

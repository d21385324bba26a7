"""Descriptors of any pictures by a whitening that the protocol learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepcluster.data.open import open_images
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.retrieval.describe import Describer, Maps, Output
from deepcluster.evaluate.retrieval.pictures import Chosen
from deepcluster.evaluate.retrieval.protocol import describe_part
from deepcluster.evaluate.retrieval.whiten import load_whitening
from deepcluster.features.feature_file import weights_digest

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject


def load_descriptor(subject: Subject, file: str | Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function that makes of M pictures (H, W, 3) uint8 the (M, P) descriptors that the protocol made.

        describe = load_descriptor(dc.load_run("runs/a"), "runs/a/evaluation/retrieval.safetensors")
        similarity = describe([picture]) @ np.load("runs/a/evaluation/retrieval.npy").T

    Raises:
        DeepClusterError: the file holds no whitening, or one of another network's regions.
    """
    whitening, made_by = load_whitening(file)
    if made_by["weights"] != weights_digest(subject.backbone):
        raise DeepClusterError(
            f"The whitening in {file} is for another network than {subject.name}: give the one it was learned with."
        )
    feature_network: Describer
    if made_by["features"] == "pool":
        feature_network = Output(subject, made_by["tap"])
    else:
        options = {name: made_by[name] for name in ("levels", "power") if name in made_by}
        feature_network = Maps(
            subject, made_by["features"], tap=made_by["tap"], long_side=made_by["long_side"], **options
        )

    def describe(pictures: Sequence[np.ndarray]) -> np.ndarray:
        chosen = Chosen(open_images(list(pictures)), np.arange(len(pictures)))
        return describe_part(feature_network, chosen, whitening, 0, len(pictures), lambda images: None)

    return describe

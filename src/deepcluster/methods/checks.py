"""Refusals of settings that a method cannot take, in the same words for all."""

from __future__ import annotations

from deepcluster.errors import DeepClusterError, counted
from deepcluster.methods.params import MethodParams

LEAST = {
    "k": 1, "clusterings": 1, "memory_views": 1, "feature_dim": 1, "hidden": 1, "iterations": 1, "centroid_every": 1,
    "handle_every": 1, "min_size": 1, "whiten": 0, "queue_size": 0, "queue_epoch": 0, "freeze_epochs": 0,
}  # fmt: skip
ABOVE_ZERO = {"reassign", "temperature", "epsilon"}
"""Ranges of parameters that have the same name and meaning in all methods."""


def check_ranges(params: MethodParams) -> None:
    """Refuses the first parameter that is out of its range.

    Raises:
        DeepClusterError: with its name on the command line.
    """
    least = LEAST | {"k": params.least_k}
    for name, value in vars(params).items():
        if name in least:
            good, words = value >= least[name], f"{least[name]} or more"
        elif name in ABOVE_ZERO:
            good, words = value > 0, "a number above 0"
        elif name == "dropout":
            good, words = 0 <= value < 1, "a rate from 0 to below 1"
        elif name == "momentum":
            good, words = 0 < value <= 1, "a weight above 0, at most 1"
        else:
            continue
        if not good:
            raise DeepClusterError(f"--method.{name.replace('_', '-')} is {value}: give {words}.")


def check_enough_images(images: int, k: int, advice: int) -> None:
    """Raises DeepClusterError: fewer images than clusters."""
    if images < k:
        raise DeepClusterError(
            f"There {'is' if images == 1 else 'are'} {counted(images, 'image')} for {counted(k, 'cluster')}: ask for"
            " fewer, such as"
            f" --method.k {advice}."
        )

"""Refusals of settings that a method cannot take, in the same words for all."""

from __future__ import annotations

from deepcluster.errors import DeepClusterError


def check_ranges(*settings: tuple[str, object, bool, str]) -> None:
    """Refuses the first of `settings` (name, value, whether it is in range, the range in words) that is out of range.

    Raises:
        DeepClusterError: with its name on the command line.
    """
    for name, value, good, words in settings:
        if not good:
            raise DeepClusterError(f"--method.{name} is {value}: give {words}.")


def check_enough_images(count: int, k: int, advice: int) -> None:
    """Raises: DeepClusterError: fewer images than clusters."""
    if count < k:
        raise DeepClusterError(
            f"There are {count} images for {k} clusters: ask for fewer, such as --method.k {advice}."
        )

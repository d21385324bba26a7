"""Checks of options that several protocols have; a mistake is one sentence that names the option."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from deepcluster.errors import DeepClusterError


def dashed(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def check_choice(option: str, value: Any, choices: Collection[Any]) -> None:
    """Raises: DeepClusterError: the value of an option is none of its choices."""
    if value not in choices:
        raise DeepClusterError(f"--{option} {value!r} does not exist: choose one of {', '.join(map(str, choices))}.")


def check_counts(least: int = 1, **options: int | Sequence[int] | None) -> None:
    """Raises: DeepClusterError: a number is below `least`."""
    for name, value in options.items():
        for count in value if isinstance(value, tuple | list) else (value,):
            if count is not None and count < least:
                raise DeepClusterError(f"{dashed(name)} {count} is too few: give {least} or more.")


def check_not_given(why: str, **options: Any) -> None:
    """Raises: DeepClusterError: one of these options, which have no effect here, is not None."""
    for name, value in options.items():
        if value is not None:
            raise DeepClusterError(f"{dashed(name)} {why}.")

"""The order and the class names that paths give to images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from deepcluster.data.formats import has_image_ending


def natural_key(path: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Sort key under which `img2` comes before `img10`; equal only for equal paths."""
    parts = re.split(r"(\d+)", path.casefold())
    # Digits and letters alternate, so that a position always compares like with like.
    return tuple((0, int(part)) if k % 2 else (1, part) for k, part in enumerate(parts)), path


def is_image_name(name: str) -> bool:
    """Whether a file or archive member has an image's ending and is not hidden."""
    return has_image_ending(name) and not any(is_hidden(part) for part in PurePosixPath(name).parts)


def is_hidden(part: str) -> bool:
    """Whether one step of a path is a hidden file or folder, or one that an operating system leaves behind."""
    return (part.startswith(".") and part not in (".", "..")) or part in ("__MACOSX", "@eaDir")


def labels_from_parents(paths: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels (N,) int64 and class names from each path's class folder; None where some path has none."""
    return labels_from_names([PurePosixPath(path).parent.name or None for path in paths])


def labels_from_names(names: Sequence[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels (N,) int64, classes in natural order; None for all when one image has no name."""
    if not names or any(name is None for name in names):
        return None, ()
    classes = tuple(sorted({str(name) for name in names}, key=natural_key))
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[str(name)] for name in names], np.int64), classes

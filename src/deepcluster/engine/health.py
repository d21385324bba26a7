"""Sentences about a run that has gone wrong in one of the known ways (arXiv 1807.05520 §3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

SWALLOWED = 0.5
"""Share of the images above which one cluster has swallowed the data."""
UNEQUAL = 1.5
"""Of two clusters one always holds half: it must also hold this many times its equal share."""
STUCK = 0.01
"""How near to ln K, as a share of it, the loss counts as not having learned anything."""


def swallows(sizes: np.ndarray) -> bool:
    """Whether one of several clusters holds most of the (K,) sizes' images."""
    total, largest = int(sizes.sum()), int(sizes.max(initial=0))
    return len(sizes) > 1 and largest > max(SWALLOWED, UNEQUAL / len(sizes)) * total


def stuck(losses: Sequence[float], k: int) -> bool:
    """Whether the mean loss of the last two epochs is still ln K, as for a classifier that guesses.

    Two epochs, because the classifier is re-initialized in each and has hardly learned in the first.
    """
    return k > 1 and len(losses) > 1 and min(losses[-2:]) >= (1 - STUCK) * math.log(k)


def check_clusters(sizes: np.ndarray, warn: Callable[[str], None]) -> None:
    """Warns when one cluster holds most of the (K,) sizes' images, or is the only one."""
    if len(sizes) == 1:
        warn(
            "one cluster alone holds all images, a trivial solution with nothing to tell apart: ask for more clusters"
            " (--method.k, or with PIC a smaller --method.sigma)."
        )
    elif swallows(sizes):
        warn(
            f"one cluster holds {int(sizes.max()):,} of {int(sizes.sum()):,} images, a trivial solution: lower"
            " --optimizer.lr or --method.head-lr, use stronger augmentation, and keep --method.balance uniform."
        )


def check_loss(losses: Sequence[float], k: int, warn: Callable[[str], None]) -> None:
    """Warns when the loss is `stuck` at ln K. Said in the second epoch and in every tenth."""
    if (len(losses) == 2 or len(losses) % 10 == 0) and stuck(losses, k):
        warn(
            f"the loss has stayed at ln {k} = {math.log(k):.2f}, so the classifier predicts nothing yet: raise"
            " --method.head-lr, use fewer clusters (--method.k), or more steps between clusterings"
            " (--method.reassign, a smaller --batch-size)."
        )

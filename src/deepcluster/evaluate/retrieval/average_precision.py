"""From similarities to average precision: where the right images of one query stand, and what that is worth.

All of it works on the ranks of a query's right images, 0 = first, in the list without the images that do not count.
This file does not know any data set.
"""

from __future__ import annotations

import numpy as np


def ranks_of(similarity: np.ndarray, positive: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(P,) int64 ascending: the place of each right image in the ranking by falling similarity.

    Images that are ignored (junk) are taken out first, as if they were not there; one that is both is ignored.
    Of equally similar images the wrong ones stand first, so that features that say nothing are worth nothing,
    however the files are ordered.

    Args:
        similarity: (N,) of the query to each image of the database.
        positive: indices of its right images.
        ignored: indices that do not count.
    """
    kind = np.zeros(len(similarity), np.int8)
    kind[positive] = 1
    kind[ignored] = 2
    right = np.sort(similarity[kind == 1])[::-1]
    wrong = np.sort(similarity[kind == 0])
    before = len(wrong) - np.searchsorted(wrong, right, side="left")
    return before.astype(np.int64) + np.arange(len(right))


def trapezoid_ap(ranks: np.ndarray) -> float:
    """Area under precision over recall by the trapezoid rule; NaN without right images.

    Each step of recall is worth the mean of the precision just before the right image and at it, where the
    precision before the first image of all is 1. This is how the authors of the Oxford buildings compute it
    (Philbin et al., CVPR 2007), and after them Holidays and the revisited sets.

    Args:
        ranks: (P,) ascending places, 0 = first.
    """
    if not len(ranks):
        return float("nan")
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    at = (found + 1) / (ranks + 1)
    return float((before + at).mean() / 2)


def step_ap(ranks: np.ndarray) -> float:
    """The mean of the precision at each right image, which is scikit-learn's; NaN without right images.

    Args:
        ranks: (P,) ascending places, 0 = first.
    """
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).mean()) if len(ranks) else float("nan")


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Share of right images among the first k, or down to the last right one where that comes sooner.

    So a query with fewer than k right images can reach 1 (Radenović et al., CVPR 2018, and their published
    evaluation); NaN without right images.

    Args:
        ranks: (P,) ascending places, 0 = first.
    """
    if not len(ranks):
        return float("nan")
    first = min(int(ranks[-1]) + 1, k)
    return float((ranks < first).sum() / first)

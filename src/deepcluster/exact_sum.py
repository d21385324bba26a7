"""Sums that are the same to the last bit in any order and any grouping, so also for any number of processes.

Additions of float64 lose nothing as long as all numbers are whole multiples of one unit and their sum stays below
2^53 units. Where the largest magnitude is known, numbers are rounded to such a unit first; where it is not, they are
taken apart into digits at fixed places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepcluster.distributed import SINGLE, ProcessGroup

DIGIT = 30  # bits of a digit: 2^23 of them can be added
PLACES = 36  # digits on either side of 1: the range of float64


def unit_for(peak: float, count: int) -> float:
    """The spacing on which sums of `count` numbers of magnitude up to `peak` are exact, a power of two.

    A bit is left for rows that are in two clusters at once while they move.
    """
    if not peak > 0:
        return 1.0
    exponent = math.frexp(peak)[1] + math.ceil(math.log2(max(count, 1))) - 51
    return 2.0 ** max(exponent, -1000)


def round_(values: Tensor, unit: float) -> Tensor:
    """Float64 `values` of any shape, in place: the nearest multiples of `unit`, where they are below 2^51 of it."""
    anchor = 1.5 * 2.0**52 * unit  # the numbers beside it are whole units apart
    return values.add_(anchor).sub_(anchor)


def sums_by_label(x: Tensor, labels: Tensor, k: int, group: ProcessGroup = SINGLE, block: int = 65536) -> Tensor:
    """(K, D) float64 sums by label (M,) of the (M, D) rows of all processes; negative labels count nowhere."""
    peak = x.abs().max() if x.numel() else x.new_zeros(())
    unit = unit_for(group.max_(peak).item(), sum(group.row_counts(len(x))))
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, len(x), block):
        known = (part := labels[start : start + block]) >= 0
        sums.index_add_(0, part[known], round_(x[start : start + block][known].double(), unit))
    return group.sum_(sums)


class Total:
    """Running sums, one for each of `width` columns, of float64 numbers whose size is not known beforehand.

    Each number is cut into digits of 30 bits at places that are the same for all numbers; digits of one place add up
    without error.

    Attributes:
        digits: (2 PLACES, width) float64, what has been added, by place; small places first.
    """

    def __init__(self, width: int, device: torch.device | None = None):
        self.digits = torch.zeros(2 * PLACES, width, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Add the rows of `values` (S, width), up to 2^23 of them in all; NaN and infinity must not be among them."""
        while True:
            largest = float(values.abs().max()) if values.numel() else 0.0
            place = (math.frexp(largest)[1] - 1) // DIGIT  # 2^(30 place) is the highest place not above the largest
            if largest == 0 or place <= -PLACES:
                return
            unit = 2.0 ** (place * DIGIT)
            digit = (values / unit).trunc_()
            self.digits[place + PLACES] += digit.sum(0)
            values = values - digit * unit

    def value(self) -> Tensor:
        """(width,) float64, the sums."""
        total = torch.zeros_like(self.digits[0])
        for place, digit in enumerate(self.digits):
            if digit.any():
                total += digit * 2.0 ** ((place - PLACES) * DIGIT)
        return total


def added(totals: Sequence[Total]) -> Total:
    """The first of several totals, with what the others have added to it."""
    for other in totals[1:]:
        totals[0].digits += other.digits
    return totals[0]

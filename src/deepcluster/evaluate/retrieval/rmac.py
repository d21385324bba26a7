"""R-MAC and simpler pools of the last map of a convolutional network (Tolias, Sicre and Jégou, ICLR 2016).

Maps in, one row for each region out, and rows to one descriptor. This file knows neither files nor rankings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.features.block_reader import normalize_rows

OVERLAP = 0.4
"""Share of a region that the next one along the longer side covers as well, as nearly as may be (§4.2)."""
STEPS = (2, 3, 4, 5, 6, 7)
"""Numbers of regions of the first level along the longer side that are tried."""


def regions(height: int, width: int, levels: int = 3) -> list[tuple[int, list[int], list[int]]]:
    """The grid of R-MAC on a map: for each level the side of its squares, their tops, and their lefts.

    Squares of level l have a side of 2 min(height, width) / (l + 1), rounded down; along the shorter side there are
    l of them, along the longer one more by what makes those of the first level overlap by nearest to 40 %. They begin
    at evenly spaced places, rounded down. A square map has 1, 4, 9, ... of them. Levels whose squares would be empty
    are left out.
    """
    short, long = min(height, width), max(height, width)
    more = 0
    if long > short:
        # what two neighbors of a row of n share, which is 1 - distance / side
        overlaps = [1 - (long - short) / (n - 1) / short for n in STEPS]
        more = min(range(len(STEPS)), key=lambda k: abs(overlaps[k] - OVERLAP)) + 1
    grid = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side:
            tops = _starts(height, side, level + (more if height > width else 0))
            grid.append((side, tops, _starts(width, side, level + (more if width > height else 0))))
    return grid


def _starts(length: int, side: int, count: int) -> list[int]:
    """Where `count` evenly spaced pieces of length `side` begin, the first at 0 and the last at the end."""
    return [0] if count == 1 else [k * (length - side) // (count - 1) for k in range(count)]


def region_max(maps: Tensor, levels: int = 3) -> Tensor:
    """(B, R, C) maxima over the regions of maps (B, C, H, W), level by level, row by row."""
    found = [
        maps[:, :, top : top + side, left : left + side].amax((2, 3))
        for side, tops, lefts in regions(maps.shape[2], maps.shape[3], levels)
        for top in tops
        for left in lefts
    ]
    return torch.stack(found, 2).transpose(1, 2)


def pooled(maps: Tensor, pool: str, *, levels: int = 3, power: float = 3.0) -> Tensor:
    """(B, R, C) rows of length one of maps (B, C, H, W); R = 1 but for R-MAC.

    Args:
        pool: "rmac", the maxima of regions; "mac", the maximum of all (Tolias et al., ICLR 2016, §3); "spoc", the mean
            (Babenko and Lempitsky, ICCV 2015, without their prior for the middle); "gem", the mean of the `power`,
            and its root (Radenović et al., TPAMI 2018, §3.2), of what is above zero.
        levels: of R-MAC.
        power: of gem.
    """
    if pool == "rmac":
        rows = region_max(maps, levels)
    elif pool == "mac":
        rows = maps.amax((2, 3))[:, None]
    elif pool == "spoc":
        rows = maps.mean((2, 3))[:, None]
    else:
        # the largest goes out first: powers of very large or small numbers leave float32
        peak = maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
        mean = (maps.clamp_min(0) / peak).pow(power).mean((2, 3))
        rows = (mean.pow(1 / power) * peak[:, :, 0, 0])[:, None]
    return normalize_rows(rows.flatten(0, 1)).view(rows.shape)


def aggregate(rows: Tensor, whitening: Whitening | None) -> Tensor:
    """(B, P) descriptors of length one, of rows (B, R, C): each row is whitened, made of length one, and added (§4.2).

    Without a whitening P = C and the rows are added as they are.
    """
    if whitening is not None:
        white = whitening.transform(rows.flatten(0, 1))
        rows = white.view(*rows.shape[:2], white.shape[1])
    return normalize_rows(rows.sum(1))

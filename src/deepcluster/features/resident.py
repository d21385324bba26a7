"""Tables that stay on the GPU while they are read again and again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deepcluster.features.parallel import is_spread
from deepcluster.gpu import free_bytes

SHARE = 0.5  # of a GPU's free memory, that one table may take


def held(
    blocks: Iterator[tuple[int, Tensor]], n: int, dim: int, device: torch.device, budget: int | None = None
) -> Tensor | None:
    """(n, dim) float32 tensor of the blocks, (first row, (B, dim)) pairs; None where it is too large to keep.

    Args:
        budget: bytes that it may take. None = half of a GPU's free memory, and nothing on the CPU, where tables lie in
            memory or files as it is, or where an engine's processes read them.
    """
    if budget is None:
        budget = _budget(device)
    if 4 * n * dim > budget:
        return None
    try:
        rows = torch.empty(n, dim, device=device)
    except torch.OutOfMemoryError:  # free, but in pieces, or taken by another process since
        return None
    for start, block in blocks:
        rows[start : start + len(block)] = block
    return rows


def _budget(device: torch.device) -> int:
    return 0 if is_spread() else int(SHARE * free_bytes(device))

"""Random draws that depend on a key alone, such as (seed, epoch, step), and on no generator's history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seeded(*key: int) -> torch.Generator:
    """A CPU generator that depends on `key` alone: a resumed run repeats the draws of an undisturbed one."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """A well-mixed 63-bit seed that depends on `key` alone."""
    state = np.random.SeedSequence([int(part) & 0xFFFFFFFF for part in key]).generate_state(2, np.uint32)
    return (int(state[0]) << 32 | int(state[1])) & 0x7FFFFFFFFFFFFFFF

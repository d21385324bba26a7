"""Processes that tell each other things."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcluster.world import ALONE, World, current
from processes import together


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([1, 7, 1024]))
def test_shares_cover_every_row_once(count: int, size: int, multiple: int) -> None:
    shares = [World(rank, size).share(count, multiple) for rank in range(size)]
    assert [row for first, last in shares for row in range(first, last)] == list(range(count))
    assert all(first % multiple == 0 or first == count for first, _ in shares)
    whole = [-(-(last - first) // multiple) for first, last in shares]
    assert max(whole) - min(whole) <= 1
    assert count == 0 or shares[0][1] > 0


def _tell(world: World) -> dict[str, Any]:
    rows = torch.arange(world.rank * 2, dtype=torch.float32).view(-1, 2) + 10 * world.rank
    return {
        "current": (current().rank, current().size),
        "sum": world.sum_(torch.tensor([1, world.rank])).tolist(),
        "max": world.max_(torch.tensor([world.rank * 0.5])).tolist(),
        "copy": world.copy_(torch.tensor([world.rank]), source=world.size - 1).tolist(),
        "gather": world.gather(rows).tolist(),
        "array": world.gather_array(np.full(world.rank + 1, world.rank)).tolist(),
        "texts": world.gather_texts("é" * world.rank),
        "any": world.any_of(world.rank == world.size - 1, False),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_are_told_the_same(size: int) -> None:
    told = together(_tell, size)
    for rank, one in enumerate(told):
        assert one.pop("current") == (rank, size)
        assert one == {
            "sum": [size, size * (size - 1) // 2],
            "max": [(size - 1) / 2],
            "copy": [size - 1],
            "gather": [[10 * r + 2 * i, 10 * r + 2 * i + 1] for r in range(size) for i in range(r)],
            "array": [r for r in range(size) for _ in range(r + 1)],
            "texts": ["é" * r for r in range(size)],
            "any": [True, False],
        }


def test_alone_everything_stays_as_it_is() -> None:
    rows = torch.rand(3, 2)
    assert current() == ALONE
    assert ALONE.gather(rows) is rows and ALONE.sum_(rows) is rows and ALONE.copy_(rows) is rows
    assert ALONE.share(5) == (0, 5) and ALONE.any_of(True, False) == [True, False] and not ALONE.any(False)

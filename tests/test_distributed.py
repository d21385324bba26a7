"""Processes that tell each other things."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcluster.distributed import SINGLE, ProcessGroup, current
from processes import together


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([1, 7, 1024]))
def test_shares_cover_every_row_once(count: int, size: int, multiple: int) -> None:
    shares = [ProcessGroup(rank, size).row_range(count, multiple) for rank in range(size)]
    assert [row for first, last in shares for row in range(first, last)] == list(range(count))
    assert all(first % multiple == 0 or first == count for first, _ in shares)
    whole = [-(-(last - first) // multiple) for first, last in shares]
    assert max(whole) - min(whole) <= 1
    assert count == 0 or shares[0][1] > 0


def _tell(group: ProcessGroup) -> dict[str, Any]:
    rows = torch.arange(group.rank * 2, dtype=torch.float32).view(-1, 2) + 10 * group.rank
    return {
        "current": (current().rank, current().size),
        "sum": group.sum_(torch.tensor([1, group.rank])).tolist(),
        "max": group.max_(torch.tensor([group.rank * 0.5])).tolist(),
        "copy": group.broadcast_(torch.tensor([group.rank]), source=group.size - 1).tolist(),
        "gather": group.gather(rows).tolist(),
        "array": group.gather_array(np.full(group.rank + 1, group.rank)).tolist(),
        "texts": group.gather_strings("é" * group.rank),
        "any": group.any_of(group.rank == group.size - 1, False),
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
    assert current() == SINGLE
    assert SINGLE.gather(rows) is rows and SINGLE.sum_(rows) is rows and SINGLE.broadcast_(rows) is rows
    assert SINGLE.row_range(5) == (0, 5) and SINGLE.any_of(True, False) == [True, False] and not SINGLE.any(False)

"""Each warning is said when it should be, and only then."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from deepcluster.engine.health import check_clusters, check_loss
from deepcluster.engine.log import read_metrics
from deepcluster.errors import DeepClusterError


@pytest.mark.parametrize(
    ("sizes", "well"),
    [
        ([50, 50], True),
        ([90, 10], False),
        ([55, 45], True),
        ([100], False),
        ([34, 33, 33], True),
        ([0, 0, 9], False),
        ([0, 0], True),
    ],
)
def test_one_cluster_that_swallows_the_data(sizes: list[int], well: bool) -> None:
    said: list[str] = []
    assert check_clusters(np.array(sizes), said.append) is well
    assert bool(said) is not well
    assert all("trivial solution" in line for line in said)


@pytest.mark.parametrize(
    ("losses", "well"),
    [
        ([math.log(10)], True),
        ([math.log(10), math.log(10)], False),
        ([math.log(10), 1.5], True),
        ([math.log(10)] * 3, True),
        ([math.log(10)] * 20, False),
    ],
)
def test_a_loss_at_ln_k(losses: list[float], well: bool) -> None:
    said: list[str] = []
    assert check_loss(losses, 10, said.append) is well
    assert all("ln 10 = 2.30" in line for line in said) and bool(said) is not well


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    with pytest.raises(DeepClusterError, match=r"Line 2 of .*metrics.jsonl cannot be read"):
        read_metrics(tmp_path)

"""Each warning is said when it should be, and only then."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from deepcluster.engine.health import check_clusters, check_loss
from deepcluster.engine.log import Metrics, read_metrics
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
    check_clusters(np.array(sizes), said.append)
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
    check_loss(losses, 10, said.append)
    assert all("ln 10 = 2.30" in line for line in said) and bool(said) is not well


def test_a_row_costs_the_same_in_every_epoch_and_one_cut_by_a_kill_is_done_again(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    written = []
    for epoch in range(50):
        before = (tmp_path / "metrics.jsonl").stat().st_ino if epoch else 0
        metrics.add({"epoch": epoch, "loss": 1.0})
        written.append(before == (tmp_path / "metrics.jsonl").stat().st_ino)
    metrics.close()
    assert all(written[1:])  # put behind the others, not written again with them
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 50, "lo')
    assert [row["epoch"] for row in read_metrics(tmp_path)] == list(range(50))
    again = Metrics(tmp_path, 50)
    again.add({"epoch": 50, "loss": 2.0})
    again.close()
    assert [row["epoch"] for row in read_metrics(tmp_path)] == list(range(51))
    assert again.losses == [1.0] * 50 + [2.0]


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo\n')
    with pytest.raises(DeepClusterError, match=r"Line 2 of .*metrics.jsonl cannot be read"):
        read_metrics(tmp_path)

"""What is read of kept epochs: as it stands on disk, and few at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterError
from deepcluster.explore import history


def test_clusters_of_an_epoch_are_those_of_the_file_as_it_is(trained: Path, tmp_path: Path) -> None:
    run = load_run(trained, device="cpu")
    kept = list(history.kept_epochs(trained).values())
    file = tmp_path / "epoch-7.ckpt"
    found = []
    for source in (kept[0], kept[-1]):
        shutil.copy(source, file)
        clusters = history.clusters_of(run, file)
        expected = history.clusters_of(run, source)
        assert clusters is not None and expected is not None
        np.testing.assert_array_equal(clusters, expected)
        assert history.clusters_of(run, file) is clusters, "read once"
        found.append(clusters)
    assert (found[0] != found[1]).any(), "further training replaced the file"
    file.unlink()
    with pytest.raises(DeepClusterError, match="cannot be read"):
        history.clusters_of(run, file)


def test_few_epochs_are_held(trained: Path, tmp_path: Path) -> None:
    run = load_run(trained, device="cpu")
    source = next(iter(history.kept_epochs(trained).values()))
    for epoch in range(6):
        shutil.copy(source, tmp_path / f"epoch-{epoch}.ckpt")
    first, *_, last = [history.clusters_of(run, tmp_path / f"epoch-{epoch}.ckpt") for epoch in range(6)]
    assert history.clusters_of(run, tmp_path / "epoch-5.ckpt") is last
    assert history.clusters_of(run, tmp_path / "epoch-0.ckpt") is not first


def test_a_number_that_no_table_holds_is_one_cluster() -> None:
    found = history.sizes(np.array([0, 0, 1 << 60, -1]), np.array([0, 0, 1, -1]))
    assert (found["clusters"], found["sizes"]) == (2, [2, 1])

"""A run that the engine trained, scored: the parts fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepcluster.engine.run import Run
from deepcluster.evaluate.clusters import clusters
from deepcluster.evaluate.knn import knn

from .conftest import K, N


def test_scores_of_a_run(trained: Run, tmp_path: Path) -> None:
    near = knn(trained, k=(1, 5), baseline=True)
    assert near.settings["images_data"] == N  # the torn file is left out
    assert near.scores["knn1_top1"] > 0.8 and "untrained_knn5_majority_top1" in near.scores
    own, new = clusters(trained, k="classes"), clusters(trained, trained.source())
    assert own.settings["images"] == N + 1 and own.settings["images_scored"] == N
    labels = trained.source().labels
    assert labels is not None
    members = [labels[trained.assignment == cluster] for cluster in range(K)]
    assert own.scores["purity"] == pytest.approx(sum(np.bincount(each).max() for each in members) / N)
    # the last clustering is of the saved model; where training computes in bf16, a few images go elsewhere
    assert new.scores["nmi"] == pytest.approx(own.scores["nmi"], abs=0.05)
    assert json.loads(own.save(tmp_path).read_text())["scores"] == own.scores


def test_the_untrained_network_differs_and_leaves_the_run_unchanged(trained: Run) -> None:
    before = trained.features(trained.source())
    other = trained.untrained()
    assert np.nanmax(np.abs(other.features(trained.source()) - before)) > 1e-3
    np.testing.assert_array_equal(trained.features(trained.source()), before)

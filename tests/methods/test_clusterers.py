"""Other clusterers in the place of k-means: the number of clusters is theirs and may change with each clustering."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, MiniBatchKMeans

import deepcluster as dc
from deepcluster.clustering.pic import PIC
from deepcluster.engine import build, checkpoint
from deepcluster.errors import DeepClusterError
from groups import STEP, batch, described, method
from restarts import differing, images, settings, stop_after

SMALL: dict[str, Any] = {"epochs": 2, "whiten": 8, "batch_size": 16, "image_size": 12, "clusterings": 1, "quiet": True}


class ByTurns:
    """A clusterer whose number of clusters depends on the rows: 3 or 5, and one row left out."""

    def fit_predict(self, x: np.ndarray, y: None = None) -> np.ndarray:
        k = 3 + 2 * int(x[:, 0].sum() > 0)
        labels = 7 * (np.arange(len(x)) % k)
        labels[0] = -1
        return labels


@pytest.mark.parametrize("head", ["redraw", "centroids"])
def test_the_head_follows_the_number_of_clusters(head: str) -> None:
    learner = method(k=0, clusterer=ByTurns(), head=head)
    seen = set()
    for sign in (1, -1, 1):
        before = described()
        turned = type(before)(before.index, sign * before.features)
        clustering = learner.refresh(partial(copy, turned), (0, 0))
        seen.add(clustering.k)
        assert clustering.assignment[0] == -1 and np.isnan(clustering.distance[0])
        assert set(clustering.assignment[1:]) == set(range(clustering.k))
        assert learner.centroids.shape[1] == learner.weights.shape[1] == clustering.k
        optimizer = learner.optimizers()["head"]
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
            id(p) for p in learner.heads.parameters()
        }
        loss = learner.loss(replace(batch(8), index=torch.arange(1, 9)), STEP)["loss"]
        torch.autograd.backward(loss)
        assert torch.isfinite(loss)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.heads.parameters())
        assert 0 not in learner.order(64, torch.Generator().manual_seed(0)).tolist()
    assert seen <= {3, 5} and len(seen) == 2


def test_centroids_are_the_means_of_their_images() -> None:
    learner = method(k=0, clusterer=AgglomerativeClustering(4))
    clustering = learner.refresh(described, (0, 0))
    z = learner.whitening.transform(described().features)
    for cluster in range(4):
        mine = z[clustering.assignment == cluster]
        np.testing.assert_allclose(clustering.centroids[cluster], mine.mean(0), atol=1e-5)
        np.testing.assert_allclose(
            clustering.distance[clustering.assignment == cluster],
            np.linalg.norm(mine - mine.mean(0), axis=1),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "clusterer",
    [
        AgglomerativeClustering(6),
        MiniBatchKMeans(5, n_init=1),
        HDBSCAN(min_cluster_size=3, copy=True),
        AgglomerativeClustering(None, distance_threshold=1.5),
    ],
    ids=["agglomerative", "mini-batch", "hdbscan", "threshold"],
)
def test_scikit_learns_clusterers_train_and_go_on(tmp_path: Path, clusterer: object) -> None:
    whole = dc.train("tiny-deepcluster", images(), tmp_path / "whole", clusterer=clusterer, **SMALL)
    assert whole.config["settings"]["method"]["algorithm"] == "custom" and whole.config["clusterer"] == repr(clusterer)
    kept = build.at_checkpoint(whole.config, whole.folder / "checkpoints/last.ckpt")
    assert kept.dim == whole.backbone.dim
    assert whole.assignment.max() + 1 == len(whole.centroids) > 1
    assert np.isfinite(whole.metrics[-1]["loss"])
    run = settings(clusterings=1, keep_every=0)
    stop_after(tmp_path / "cut", run, 5, clusterer=clusterer)
    dc.train(run, images(), tmp_path / "cut", resume=True, clusterer=clusterer, quiet=True)
    one, other = (checkpoint.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "cut"))
    assert differing(one, other) == []


def test_a_clusterer_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    run = dc.train("tiny-deepcluster", images(), tmp_path / "run", clusterer=AgglomerativeClustering(3), **SMALL)
    with pytest.raises(DeepClusterError, match="clusterer passed in Python"):
        dc.train("tiny-deepcluster", images(), run.folder, resume=True)
    with pytest.raises(DeepClusterError, match="other settings"):
        dc.train("tiny-deepcluster", images(), run.folder, resume=True, clusterer=AgglomerativeClustering(3), seed=9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(64, -1), "none of 64 images"),
        (np.zeros(3, int), "one integer for each"),
        (np.zeros(64), "one integer for each"),
    ],
)
def test_a_clusterer_that_gives_nonsense(labels: np.ndarray, message: str) -> None:
    class Fixed:
        def fit_predict(self, x: np.ndarray, y: None = None) -> np.ndarray:
            return labels

    with pytest.raises(DeepClusterError, match=message):
        method(k=0, clusterer=Fixed()).refresh(described, (0, 0))


def test_a_number_of_clusters_beside_a_clusterer_is_refused() -> None:
    with pytest.raises(DeepClusterError, match=r"^PIC finds .* set --method.k 0, not 4\.$"):
        method(k=4, clusterer=PIC())
    with pytest.raises(DeepClusterError, match=r"^PIC finds .* set --method.clusterings 1, not 3\.$"):
        method(k=0, clusterings=3, clusterer=PIC())
    with pytest.raises(DeepClusterError, match=r"set --method.k 0, not 4, and --method.clusterings 1, not 3\.$"):
        method(k=4, clusterings=3, clusterer=PIC())
    with pytest.raises(DeepClusterError, match=r"--method.k is 0: give 1 or more"):
        method(k=0)


@pytest.mark.parametrize(("version", "head"), [("paper", "redraw"), ("published", "centroids")])
def test_pic_trains_and_goes_on(tmp_path: Path, version: str, head: str) -> None:
    values = {"algorithm": "pic", "pic_version": version, "sigma": 0.5, "k": 0, "clusterings": 1, "head": head}
    run = settings(**values)
    stop_after(tmp_path / "cut", run, 5)
    dc.train(run, images(), tmp_path / "cut", resume=True, quiet=True)
    dc.train(run, images(), tmp_path / "whole", quiet=True)
    one, other = (checkpoint.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "cut"))
    assert differing(one, other) == []
    finished = dc.load_run(tmp_path / "whole")
    assert finished.assignment.max() + 1 == len(finished.centroids) > 1
    assert finished.assign(images()).cluster.max() < len(finished.centroids)

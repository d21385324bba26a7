"""A method of your own in one file, trained by the whole engine.

    python examples/your_method.py

Images are clustered as in DeepCluster (k-means of whitened features), but the network learns to predict the center of
its image's cluster in place of the cluster's number: near clusters are then near targets. The engine gives it views,
checkpoints, several processes, resuming, and a run folder for `assign`, `explore`, `report` and `evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepcluster as dc
from deepcluster.clustering import Whitening
from deepcluster.data.sampler import epoch_order
from deepcluster.methods.base import ExtractFeatures, WhitenedMethod
from deepcluster.methods.params import METHODS, MethodParams
from deepcluster.types import Batch, Clustering, TrainStep


@dataclass(frozen=True)
class CenterParams(MethodParams):
    """Predicts the center of the cluster that an image is in."""

    k: int = 20
    """Number of clusters."""
    whiten: int = 16
    """Dimensions of the whitened features, and of the centers."""
    reassign: float = 1.0
    """Epochs from one clustering to the next."""
    iterations: int = 20
    """Of k-means."""


class Center(WhitenedMethod):
    """What must survive a restart is a parameter, a buffer or extra state, made in `build`."""

    assignment: Tensor  # (N,) int64, -1 = cannot be decoded
    centers: Tensor  # (K, P)

    def build(self) -> None:
        p = self.params
        self.whitening = Whitening(p.whiten)
        self.head = nn.Linear(self.backbone.dim, p.whiten)
        self.own_optimizers = {"head": self.make_optimizer(self.head.parameters())}
        self.register_buffer("assignment", torch.full((self.n,), -1))
        self.register_buffer("centers", torch.zeros(p.k, p.whiten))

    def order(self, length: int, generator: torch.Generator) -> Tensor:
        """Every cluster equally often, so that none takes all images."""
        return epoch_order(self.assignment.cpu(), length, "uniform", generator)

    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        features = extract_features()
        rows, _ = self.whiten(features, self.params.k)
        centers = torch.as_tensor(self.k_means(rows, key).cluster_centers_)
        clustering = self.nearest_clusters(features, centers)
        self.assignment.copy_(torch.from_numpy(clustering.assignment))
        self.centers.copy_(clustering.centroids)
        return clustering

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        wanted = self.centers[self.assignment[batch.index.to(self.assignment.device)]]
        apart = [1 - F.cosine_similarity(self.head(self.backbone(view).relu()), wanted) for view in batch.views]
        return {"loss": torch.stack([self.batch_group.mean(each) for each in apart]).mean()}


METHODS["center"] = (CenterParams, f"{__name__}:Center")
"""Its name in run.json: what resumes such a run imports this file first."""


def train(out: str | Path, data: Any = "digits", **values: Any) -> dc.Run:
    """A run of it with the other settings of `tiny-deepcluster`; `values` are settings, such as `epochs`."""
    settings = replace(dc.PRESETS["tiny-deepcluster"].run, method=CenterParams())
    return dc.train(settings, data, out, **values)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        run = train(Path(folder) / "run", epochs=8, quiet=True)
        print(f"{len(run.centroids)} clusters, NMI with the labels {run.metrics[-1]['nmi_labels']:.3f}")

"""What is trained on top of a backbone: classifiers over pseudo-labels, and projection heads."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.distributed import ALIGN, SINGLE, ProcessGroup
from deepcluster.exact_sum import sums_by_label

STD = 0.01


class LinearClassifier(nn.Module):
    """(B, dim) -> (B, K) logits: a ReLU where the backbone left its last one out, then one linear layer.

    Weights are N(0, .01), biases 0 (arXiv 1807.05520 §3.3: the classifier is re-initialized at each clustering).
    """

    scheduled = False
    """Its learning rate does not follow the run's schedule: a re-initialized classifier has everything to learn each
    time, at the end of a run as at its beginning."""

    def __init__(self, dim: int, k: int, *, relu: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.relu = relu
        self.linear: nn.Linear = nn.utils.skip_init(nn.Linear, dim, k)  # type: ignore[no-untyped-call]
        self.reset_(generator)

    @property
    def k(self) -> int:
        """Number of clusters."""
        return self.linear.out_features

    def forward(self, features: Tensor) -> Tensor:
        # Not in place: the features may be read elsewhere, as a tap or by a second head.
        logits: Tensor = self.linear(F.relu(features) if self.relu else features)
        return logits

    @torch.no_grad()
    def reset_(self, generator: torch.Generator | None = None, k: int | None = None) -> LinearClassifier:
        """Re-initializes the weights; with `k`, for that many clusters.

        Weights are drawn on the CPU and copied, so that a seed means the same weights on every device. Where K changes,
        the parameters are new objects: give the head to a new optimizer.
        """
        k = self.k if k is None else k
        weight = torch.randn(k, self.linear.in_features, generator=generator) * STD
        if k != self.k:
            linear = self.linear
            linear.weight = nn.Parameter(linear.weight.new_empty(weight.shape), linear.weight.requires_grad)
            linear.bias = nn.Parameter(linear.bias.new_empty(k), linear.bias.requires_grad)
            linear.out_features = k
        self.linear.weight.copy_(weight)
        self.linear.bias.zero_()
        return self

    def fit_(self, features: Tensor, labels: Tensor, generator: torch.Generator, group: ProcessGroup = SINGLE) -> None:
        """Re-initializes the weights, whatever the clusters are."""
        self.reset_(generator)


class CosineClassifier(nn.Module):
    """(B, dim) -> (B, K) logits: cosine to one direction per cluster, over a temperature.

    At a clustering the directions are set to the mean directions of the clusters, so the classifier is right from its
    first step and short runs need not wait for a new one to learn; then they are trained as any classifier.
    """

    scheduled = True

    def __init__(
        self, dim: int, k: int, *, relu: bool, temperature: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.relu, self.temperature = relu, temperature
        self.directions = nn.Parameter(F.normalize(torch.randn(k, dim, generator=generator), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.directions_of(features) @ F.normalize(self.directions, dim=1).T / self.temperature

    def directions_of(self, features: Tensor) -> Tensor:
        """(B, dim) unit rows: the features as the classifier compares them."""
        return F.normalize((F.relu(features) if self.relu else features).float(), dim=1)

    @torch.no_grad()
    def reset_(self, generator: torch.Generator | None = None, k: int | None = None) -> CosineClassifier:
        """Random directions, of `k` clusters where it is given; a new parameter, for a new optimizer."""
        shape = (len(self.directions) if k is None else k, self.directions.shape[1])
        drawn = F.normalize(torch.randn(shape, generator=generator), dim=1)
        self.directions = nn.Parameter(drawn.to(self.directions))
        return self

    @torch.no_grad()
    def fit_(self, features: Tensor, labels: Tensor, generator: torch.Generator, group: ProcessGroup = SINGLE) -> None:
        """Directions from the mean of all images to the mean of each cluster.

        Features after a ReLU have much in common, which would leave the cosines to all clusters nearly equal.

        Args:
            features: (M, dim), this process's rows.
            labels: (M,) int64.
        """
        directions = self.directions_of(features)
        center = cluster_means(directions, torch.zeros(len(directions), dtype=torch.int64), 1, generator, group)
        means = cluster_means(directions, labels, len(self.directions), generator, group) - center
        self.directions.copy_(F.normalize(means, dim=1))


Classifier = LinearClassifier | CosineClassifier


def make_classifier(
    kind: str, dim: int, k: int, *, relu: bool, temperature: float, generator: torch.Generator | None = None
) -> Classifier:
    """The classifier that the setting `head` names: "redraw" or "centroids"."""
    if kind == "redraw":
        return LinearClassifier(dim, k, relu=relu, generator=generator)
    return CosineClassifier(dim, k, relu=relu, temperature=temperature, generator=generator)


def cluster_means(
    x: Tensor, labels: Tensor, k: int, generator: torch.Generator, group: ProcessGroup = SINGLE
) -> Tensor:
    """(K, D) means by label (M,) of the (M, D) rows of all processes; negative labels count nowhere, and an empty
    cluster takes a random row."""
    sums = sums_by_label(x, labels, k, group)
    counts = torch.cat([torch.bincount(labels[labels >= 0], minlength=k), torch.tensor([len(x)])])
    total = int(group.sum_(counts)[-1])
    means = (sums / counts[:-1].clamp(min=1)[:, None]).float()
    empty = (counts[:-1] == 0).nonzero().flatten()
    if len(empty):
        means[empty] = group.gather_rows(x, torch.randint(total, (len(empty),), generator=generator)).float()
    return means


class ProjectionHead(nn.Module):
    """(B, dim) -> (B, out): linear, batch-norm, ReLU, dropout, linear, ReLU (ODC, arXiv 2006.10645 §4.1).

    Args:
        dim: width of the backbone's features.
        hidden, out: widths of the two layers.
        dropout: dropout rate after the hidden layer.
        relu: begin with a ReLU, where the backbone left its last one out.
        last_relu: end with one; SwAV and DeepCluster-v2 do not (arXiv 2006.09882, appendix A).

    Attributes:
        config: the arguments that make this head again.
    """

    def __init__(
        self, dim: int, hidden: int, out: int, *, relu: bool, dropout: float = 0.0, last_relu: bool = True
    ) -> None:
        super().__init__()
        self.config = {
            "dim": dim,
            "hidden": hidden,
            "out": out,
            "dropout": dropout,
            "relu": relu,
            "last_relu": last_relu,
        }
        self.relu, self.last_relu = relu, last_relu
        self.first = nn.Linear(dim, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, out)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu(features) if self.relu else features
        out: Tensor = self.second(self.dropout(F.relu(self.norm(self.first(features)))))
        return F.relu(out) if self.last_relu else out

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """(B, out), without dropout and with the running statistics, whatever mode the head is in."""
        training = self.training
        self.eval()
        try:
            projected: Tensor = self(features)
            return projected
        finally:
            self.train(training)

    def transform(self, features: np.ndarray) -> np.ndarray:
        """(M, out) float32 unit rows of (M, dim) features, in evaluation mode."""
        blocks = torch.split(torch.from_numpy(np.ascontiguousarray(features, np.float32)), ALIGN)
        device = self.first.weight.device
        return torch.cat([F.normalize(self.project(block.to(device)), dim=1).cpu() for block in blocks]).numpy()

    def directions(self, features: Tensor) -> Tensor:
        """(B, out) float32 unit rows, in whatever mode the head is in."""
        return F.normalize(self(features).float(), dim=1)

    @torch.no_grad()
    def fit_running_stats(self, features: np.ndarray, group: ProcessGroup = SINGLE) -> None:
        """Sets batch-norm's running statistics to those of the (M, dim) features, in memory or memory-mapped, of all
        processes."""
        own = [torch.zeros(0, 1 + 2 * len(self.first.bias), dtype=torch.float64)]
        for start in range(0, len(features), ALIGN):
            block = torch.as_tensor(np.array(features[start : start + ALIGN])).to(self.first.weight)
            hidden = self.first(F.relu(block) if self.relu else block).double().cpu()
            mean = hidden.mean(0)
            own.append(torch.cat([mean.new_tensor([len(hidden)]), mean, (hidden - mean).square().sum(0)])[None])
        # As many blocks of the same rows, and so the same sums, for any number of processes.
        blocks = group.gather(torch.cat(own))
        counts, means, squares = torch.split(blocks, [1, *[len(self.first.bias)] * 2], 1)
        count = int(counts.sum())
        mean = (counts * means).sum(0) / max(count, 1)
        square = (squares + counts * (means - mean).square()).sum(0)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(square / max(count - 1, 1))

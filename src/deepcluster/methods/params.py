"""The parameters of every method, and the table of methods.

The command line, its help, the presets and `run.json` need parameters but no network, so this file does not load torch;
the method itself is the other half, in a file of its own. A new method adds a dataclass and a line to `METHODS` here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

from deepcluster.errors import DeepClusterError


class MethodParams:
    """What the rest of the package may ask of any method's parameters."""

    @property
    def rotations_predicted(self) -> int:
        """Number of rotations of an image that the network predicts together with its cluster; 1 = none."""
        return 1

    @property
    def trains(self) -> bool:
        """Whether the network is trained; otherwise the run only groups images by its features."""
        return True

    @property
    def finds_clusters(self) -> bool:
        """Whether the method groups images at all; RotNet predicts rotations only."""
        return True

    @property
    def shards_classifiers(self) -> bool:
        """Whether each process trains classifiers that the others do not have."""
        return False

    @property
    def least_views(self) -> int:
        """Number of views of an image that a step needs."""
        return 1

    @property
    def least_k(self) -> int:
        """Fewest clusters that can be asked for."""
        return 1

    def with_clusterer(self, clusterer: Any) -> MethodParams:
        """These parameters for a clusterer that was passed in Python in place of k-means (None = none was).

        Raises:
            DeepClusterError: the method has no place for one, or needs one and got none.
        """
        if clusterer is not None:
            raise DeepClusterError(
                f"{method_name(self)} clusters images in its own way: leave out clusterer, or train a deepcluster"
                " preset."
            )
        return self


@dataclass(frozen=True, kw_only=True)
class AveragedParams(MethodParams):
    """What methods share that cluster stored features: those may come from an average of the network."""

    ema_decay: float = 0.0
    """Cluster the features of an exponential moving average of the weights with this decay, which changes more slowly
    than the network that is trained; 0 = off. ODC and DeepCluster-v2 then run it on each view as well."""


@dataclass(frozen=True)
class DeepClusterParams(AveragedParams):
    """DeepCluster (Caron et al. 2018, arXiv 1807.05520). Defaults are the paper's for ImageNet."""

    k: int = 10_000
    """Number of clusters. About ten times the number of classes you expect is a good start (§4.1, figure 2c); 0 with
    an algorithm that finds the number itself."""
    algorithm: Literal["kmeans", "sela", "pic", "custom"] = "kmeans"
    """What clusters the features: k-means, k-means followed by labels that divide the images equally over the clusters
    (SeLa, arXiv 1911.05371; it needs N x K numbers in memory), power iteration clustering (the paper's appendix), or
    the clusterer passed in Python."""
    neighbors: int = 5
    """PIC: number of nearest neighbors each image is linked to."""
    sigma: float = 0.2
    """PIC: a link of length d has weight exp(-d^2 / sigma^2); larger values give fewer clusters."""
    alpha: float = 0.001
    """PIC: damping of each power iteration."""
    pic_version: Literal["paper", "published"] = "paper"
    """PIC: the iteration of the paper, or that of the published code."""
    reassign: float = 1.0
    """Epochs between two clusterings; fractions are allowed (§3.3: every epoch on ImageNet)."""
    features: Literal["extracted", "remembered"] = "extracted"
    """What is clustered: the features of all images by the network as it is (the paper), which takes a pass over them,
    or those that each image had when training showed it last, which takes none but at the beginning and the end."""
    whiten: int = 256
    """Features are reduced to this many dimensions by PCA, whitened and L2-normalized before k-means (§3.3)."""
    iterations: int = 20
    """k-means: number of Lloyd iterations."""
    init: Literal["random", "k-means++", "previous"] = "random"
    """k-means: initial centroids: random images (the paper), k-means++, or the mean features of the last clusters."""
    spherical: bool = False
    """k-means: keep the centroids on the unit sphere."""
    backend: Literal["torch", "faiss"] = "torch"
    """k-means: our implementation, or faiss on the CPU."""
    balance: Literal["uniform", "weight", "none", "published"] = "uniform"
    """Against trivial solutions (§3.2): sample images uniformly over clusters; weight the loss by the inverse cluster
    size instead; do neither; or do what the published code does (its sampler indexes a reordered list)."""
    head: Literal["redraw", "centroids"] = "redraw"
    """At each clustering the classifier is re-initialized from N(0, .01) (the paper), or set to the mean directions of
    the clusters (a cosine classifier that is right from its first step, for short runs); both are trained."""
    temperature: float = 0.1
    """Head centroids: cosines are divided by this."""
    clusterings: int = 1
    """Number of k-means runs with different seeds, each with its own classifier; the first one is reported."""
    head_lr: float | None = None
    """Learning rate of the classifier; none = that of the backbone."""

    @property
    def least_k(self) -> int:
        return 0 if self.algorithm in ("pic", "custom") else 1  # they find the number

    def with_clusterer(self, clusterer: Any) -> DeepClusterParams:
        """Raises: DeepClusterError: it has no `fit_predict`, or `algorithm` is "custom" and there is none."""
        if clusterer is None:
            if self.algorithm == "custom":
                raise DeepClusterError(
                    "With --method.algorithm custom the clusters come from a clusterer passed in Python: train by"
                    " deepcluster.train(..., clusterer=...), and resume such a run with resume=True."
                )
            return self
        if isinstance(clusterer, type) or not callable(getattr(clusterer, "fit_predict", None)):
            name = clusterer.__name__ if isinstance(clusterer, type) else ""
            what = f"the class {name}" if name else f"{clusterer!r}, which has no fit_predict"
            raise DeepClusterError(
                f"clusterer is {what}: pass an object with scikit-learn's fit_predict, such as"
                f" {name or 'AgglomerativeClustering'}({'' if name else 50})."
            )
        return replace(self, algorithm="custom", k=0)


@dataclass(frozen=True)
class ODCParams(AveragedParams):
    """Online Deep Clustering (Zhan et al. 2020, arXiv 2006.10645). Defaults are the paper's for ImageNet."""

    k: int = 10_000
    """Number of clusters, which stays fixed. At most the number of images; twenty images or more per cluster are
    better."""
    feature_dim: int = 256
    """Dimensions of the features in memory, the output of the projection head."""
    hidden: int = 512
    """Width of the projection head's hidden layer."""
    dropout: float = 0.5
    """Dropout rate in the projection head."""
    momentum: float = 0.5
    """Weight of the new feature when an image's feature in memory is updated (§3.1)."""
    centroid_every: int = 10
    """Steps between two updates of the centroids (§3.1); only clusters whose members changed are updated."""
    min_size: int = 20
    """Smaller clusters are dissolved into their neighbors and get half of the largest one (§3.3); lowered where there
    are too few images for k clusters of this size."""
    handle_every: int = 1
    """Steps between two checks for small clusters."""
    reweight_power: float = 0.5
    """An image's weight in the loss is the size of its cluster to minus this power (§3.3); 0 = all equal."""
    nearest: Literal["euclidean", "cosine", "dot"] = "euclidean"
    """Which centroid is nearest: by Euclidean distance to the mean (the paper), by angle, or by the dot product with
    the mean (the published code, which favors tight clusters)."""
    memory: Literal["forward", "eval"] = "forward"
    """What is stored in memory: the features of the training pass, dropout included (as published; the paper does not
    say), or those of the same backbone output with the projection head in evaluation mode. An average of the network
    (`ema_decay`) is in evaluation mode in any case."""
    start: Literal["neck", "whitened"] = "neck"
    """The first k-means clusters the features of the projection head (the paper), or the whitened features of the
    backbone, which suits a backbone that is already trained while the head is new."""
    iterations: int = 20
    """Lloyd iterations of the first k-means."""
    replace: bool = False
    """Sample the images of an epoch with replacement, as the published code does."""
    head_lr: float | None = None
    """Learning rate of the classifier; none = that of the backbone."""


@dataclass(frozen=True)
class DeeperClusterParams(AveragedParams):
    """DeeperCluster (Caron et al. 2019, arXiv 1905.01278). Defaults are the paper's for 96 million images."""

    k: int = 320_000
    """Number of second-level clusters over all super-clusters; a multiple of their number. With 1, and 1
    super-cluster, only rotations are predicted (RotNet)."""
    super_clusters: int = 4
    """Number of first-level clusters; each is divided into k / super-clusters."""
    rotations: bool = True
    """Rotate every image by 0, 90, 180 or 270 degrees and predict the rotation together with the cluster."""
    reassign: float = 3.0
    """Epochs between two clusterings; fractions are allowed."""
    whiten: int = 4096
    """Features are reduced to this many dimensions by PCA, whitened and L2-normalized before k-means."""
    iterations: int = 10
    """k-means: number of Lloyd iterations on each level."""
    head: Literal["redraw", "centroids"] = "redraw"
    """At each clustering the classifiers are re-initialized (the paper), or set to the directions of super-clusters and
    clusters, the same for all rotations (cosine classifiers, for short runs); both are trained."""
    temperature: float = 0.1
    """Head centroids: cosines are divided by this."""
    head_lr: float | None = None
    """Learning rate of the classifiers; none = that of the backbone."""

    @property
    def rotations_predicted(self) -> int:
        return 4 if self.rotations else 1

    @property
    def finds_clusters(self) -> bool:
        return self.k > 1 or self.super_clusters > 1 or not self.rotations

    @property
    def shards_classifiers(self) -> bool:
        return True


@dataclass(frozen=True)
class DeepClusterV2Params(AveragedParams):
    """DeepCluster-v2 (Caron et al. 2020, arXiv 2006.09882). Defaults are the paper's for ImageNet."""

    k: int = 3_000
    """Number of clusters."""
    clusterings: int = 3
    """Number of k-means runs with different seeds, each with its own prototypes; the first one is reported."""
    memory_views: int = 2
    """How many large views of each image are remembered; the clusterings take them in turn."""
    feature_dim: int = 128
    """Dimensions of the embeddings, the output of the projection head."""
    hidden: int = 2_048
    """Width of the projection head's hidden layer."""
    temperature: float = 0.1
    """Cosines to the prototypes are divided by this."""
    iterations: int = 10
    """Lloyd iterations of each spherical k-means."""
    reassign: float = 1.0
    """Epochs between two clusterings of the memory; fractions are allowed."""


@dataclass(frozen=True)
class SwAVParams(MethodParams):
    """SwAV (Caron et al. 2020, arXiv 2006.09882). Defaults are the paper's for ImageNet."""

    k: int = 3_000
    """Number of prototypes, which are the clusters."""
    feature_dim: int = 128
    """Dimensions of the embeddings, the output of the projection head."""
    hidden: int = 2_048
    """Width of the projection head's hidden layer."""
    temperature: float = 0.1
    """Cosines to the prototypes are divided by this where a view predicts the code of another."""
    epsilon: float = 0.05
    """Smoothness of the codes: small values assign each view to one prototype, large ones to many (§3.1)."""
    iterations: int = 3
    """Sinkhorn-Knopp iterations that make the codes use all prototypes equally (§3.1)."""
    queue_size: int = 0
    """Embeddings of the last steps that take part when codes are computed, for batches much smaller than the number of
    prototypes (§4.3: 3,840 for batches of 256); 0 = none."""
    queue_epoch: float = 15.0
    """The queue takes part from this epoch on; before, embeddings change too fast."""
    freeze_epochs: float = 1.0
    """Epochs at the beginning in which the prototypes stay as they are."""
    reassign: float = 1.0
    """Epochs between two passes over all images that find their nearest prototypes, for the metrics of the run and for
    `assign`: training needs none but the first."""

    @property
    def least_views(self) -> int:
        return 2


@dataclass(frozen=True)
class FrozenParams(MethodParams):
    """The features of a network that is not trained, grouped once: what `deepcluster cluster` makes of images."""

    k: int = 0
    """Number of clusters; 0 until it is chosen."""
    algorithm: str = "kmeans"
    """What groups the features: a name in `clustering.algorithms`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the algorithm that were given."""
    whiten: int = 0
    """Width that the features are PCA-whitened to; 0 = the default embedding, which does not scale directions."""

    @property
    def trains(self) -> bool:
        return False


METHODS: dict[str, tuple[type[MethodParams], str]] = {
    "deepcluster": (DeepClusterParams, "deepcluster.methods.deepcluster:DeepCluster"),
    "deepercluster": (DeeperClusterParams, "deepcluster.methods.deepercluster:DeeperCluster"),
    "deepcluster-v2": (DeepClusterV2Params, "deepcluster.methods.deepcluster_v2:DeepClusterV2"),
    "odc": (ODCParams, "deepcluster.methods.odc:ODC"),
    "swav": (SwAVParams, "deepcluster.methods.swav:SwAV"),
    "frozen": (FrozenParams, "deepcluster.methods.base:Method"),
}
"""Name in `run.json` -> its parameters, and where its class is."""


def method_name(params: MethodParams) -> str:
    """The name in `METHODS` of the method that `params` belong to."""
    return next(name for name, (kind, _) in METHODS.items() if type(params) is kind)


def method_class(params: MethodParams) -> Any:
    """The `Method` that takes `params`. Loads torch."""
    module, _, name = METHODS[method_name(params)][1].partition(":")
    return getattr(import_module(module), name)

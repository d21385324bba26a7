"""All settings of a training run, as frozen dataclasses with a docstring under every field.

The command line, its help, the presets and `run.json` all come from these. Values only: nothing here loads
torch, so that help and mistakes are answered at once. Constructors elsewhere take plain values; only
`engine.build` and `engine.train` open a `TrainRun`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from deepcluster.errors import DeepClusterError


@dataclass(frozen=True)
class DeepClusterParams:
    """DeepCluster (Caron et al. 2018, arXiv 1807.05520). Defaults are the paper's for ImageNet."""

    k: int = 10_000
    """Clusters. About ten times the number of kinds you expect is a good start (§4.1, figure 2c); 0 with an algorithm
    that finds their number itself."""
    algorithm: Literal["kmeans", "pic", "custom"] = "kmeans"
    """What groups the features: k-means, power iteration clustering (the paper's appendix), or the clusterer that was
    handed over in Python."""
    neighbors: int = 5
    """PIC: each image is linked to so many nearest ones."""
    sigma: float = 0.2
    """PIC: a link of length d weighs exp(-d^2 / sigma^2); wider gives fewer clusters."""
    alpha: float = 0.001
    """PIC: share of the walk in each power iteration."""
    pic_version: Literal["paper", "published"] = "paper"
    """PIC: the paper's iteration, or the published code's."""
    reassign: float = 1.0
    """Epochs between two clusterings; fractions are allowed (§3.3: every epoch on ImageNet)."""
    whiten: int = 256
    """Features are PCA-reduced to this width, whitened and L2-normalized before k-means (§3.3)."""
    iterations: int = 20
    """k-means: Lloyd iterations."""
    init: Literal["random", "k-means++", "previous"] = "random"
    """k-means: first centroids: random images (the paper), k-means++, or the mean features of the last clusters."""
    spherical: bool = False
    """k-means: keep centroids on the unit sphere."""
    backend: Literal["torch", "faiss"] = "torch"
    """k-means: ours, or faiss on the CPU."""
    balance: Literal["uniform", "weight", "none", "published"] = "uniform"
    """Against trivial solutions (§3.2): draw images uniformly over clusters; weigh the loss by the inverse cluster
    size instead; do nothing; or do what the published code does (its sampler indexes a reordered list)."""
    head: Literal["redraw", "centroids"] = "redraw"
    """At each clustering the classifier is drawn anew from N(0, .01) (the paper), or set to the clusters' mean
    directions (a cosine classifier that is right from its first step, for short runs); both are trained."""
    temperature: float = 0.1
    """Head centroids: cosines are divided by this."""
    clusterings: int = 1
    """Several k-means with different draws at once, each with its own classifier; the first one is reported."""
    ema_decay: float = 0.0
    """Features to cluster come from the running average of the weights with this decay, a calmer network; 0 = off."""
    head_lr: float | None = None
    """Learning rate of the classifier's own optimizer; none = the backbone's."""


@dataclass(frozen=True)
class ODCParams:
    """Online Deep Clustering (Zhan et al. 2020, arXiv 2006.10645). Defaults are the paper's for ImageNet."""

    k: int = 10_000
    """Clusters; their number stays fixed. Not more than there are images; twenty images or more for each are better."""
    feature_dim: int = 256
    """Width of the features in memory, the neck's output."""
    hidden: int = 512
    """Width of the neck's hidden layer."""
    dropout: float = 0.5
    """Dropout within the neck."""
    momentum: float = 0.5
    """Share of the new feature when an image's feature in memory is refreshed (§3.1)."""
    centroid_every: int = 10
    """Steps between two updates of the centroids (§3.1); only those whose members changed are touched."""
    min_size: int = 20
    """Smaller clusters are dissolved into their neighbors and take half of the largest (§3.3); lowered where N images
    in K clusters would not allow it."""
    handle_every: int = 1
    """Steps between two looks for small clusters."""
    reweight_power: float = 0.5
    """Images weigh in the loss by the size of their cluster to minus this power (§3.3); 0 = all alike."""
    nearest: Literal["euclidean", "cosine", "dot"] = "euclidean"
    """Which centroid is nearest: by Euclidean distance to the mean (the paper), by angle, or by the dot product with
    the mean (the published code, which favors tight clusters)."""
    memory: Literal["forward", "calm"] = "forward"
    """What enters the memory: the training pass's own features, dropout included (as published; the paper does not
    say), or those of the same backbone output without dropout."""
    start: Literal["neck", "whitened"] = "neck"
    """The first k-means groups the neck's features (the paper), or the backbone's, whitened, which suits a backbone
    that is trained already while the neck is new."""
    iterations: int = 20
    """Lloyd iterations of the first k-means."""
    replace: bool = False
    """Draw each epoch's images with replacement, as the published code does."""
    head_lr: float | None = None
    """Learning rate of the classifier's own optimizer; none = the backbone's."""


@dataclass(frozen=True)
class DeeperClusterParams:
    """DeeperCluster (Caron et al. 2019, arXiv 1905.01278). Defaults are the paper's for 96 million images."""

    k: int = 320_000
    """Clusters of the second level, over all super-clusters; a multiple of their number. With 1, and 1 super-cluster,
    only turns are predicted (RotNet)."""
    super_clusters: int = 4
    """Clusters of the first level; each is divided into k / super-clusters."""
    rotations: bool = True
    """Turn every image by 0, 90, 180 or 270 degrees and predict the turn with the cluster."""
    reassign: float = 3.0
    """Epochs between two clusterings; fractions are allowed."""
    whiten: int = 4096
    """Features are PCA-reduced to this width, whitened and L2-normalized before k-means."""
    iterations: int = 10
    """k-means: Lloyd iterations on each level."""
    head: Literal["redraw", "centroids"] = "redraw"
    """At each clustering the classifiers are drawn anew (the paper), or set to the directions of super-clusters and
    clusters, alike for all turns (cosine classifiers, for short runs); both are trained."""
    temperature: float = 0.1
    """Head centroids: cosines are divided by this."""
    head_lr: float | None = None
    """Learning rate of the classifiers' own optimizers; none = the backbone's."""


METHODS: dict[str, type] = {
    "deepcluster": DeepClusterParams,
    "odc": ODCParams,
    "deepercluster": DeeperClusterParams,
}


@dataclass(frozen=True)
class BackboneParams:
    """The network that is trained."""

    name: str = "resnet18"
    """alexnet, vgg16, resnet18/34/50/101/152, convnet, or any timm model as timm:NAME."""
    sobel: Literal["none", "paper", "deepercluster"] = "none"
    """Fixed Sobel filters in place of color (§3.3), with the paper's or DeeperCluster's padding."""
    weights: str = ""
    """A file to begin with in place of drawn weights: a run's model.safetensors, an exported .safetensors, or a
    checkpoint that DeepCluster's authors released; of the same network and Sobel, and for alexnet, vgg16 and others
    whose layers depend on it of the same image size. A resumed run goes on from its own checkpoint."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that backbone, such as stem small."""


@dataclass(frozen=True)
class DataParams:
    """How images are read and turned into training views."""

    cache_gb: float = 20.0
    """Decoded images are memory-mapped from a cache when they fit in so many gigabytes; else decoded on demand."""
    workers: int = 0
    """Processes that decode; 0 = as many as there are processor cores."""
    describe: Literal["plain", "augmented"] = "plain"
    """What is clustered: each image as it is (the paper), or one random view of it, so that clusters cannot rest on
    what the views vary, such as color."""
    views: int = 1
    """Views of each image in a step; all share its pseudo-label."""
    view_size: int = 0
    """Side of the training views in pixels, where they are to be smaller than the image size; 0 = the same."""
    small_views: int = 0
    """Additional smaller views of each image in a step, which show less of it (multi-crop, arXiv 2006.09882)."""
    small_view_size: int = 0
    """Side of the smaller views in pixels; 0 = 3/7 of the other views' side, the paper's 96 of 224."""
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    """Share of the image's area that a random crop covers; none = no random crop."""
    small_crop_scale: tuple[float, float] | None = (0.05, 0.14)
    """Share of the image's area that a smaller view covers (arXiv 2006.09882: 0.05 to 0.14)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width to height of a random crop."""
    flip: float = 0.5
    """Chance of a horizontal flip."""
    jitter: float = 0.0
    """Chance of color jitter."""
    brightness: float = 0.4
    """Jitter: brightness is multiplied by 1 plus or minus this."""
    contrast: float = 0.4
    """Jitter: contrast is multiplied by 1 plus or minus this."""
    saturation: float = 0.4
    """Jitter: saturation is multiplied by 1 plus or minus this."""
    hue: float = 0.1
    """Jitter: the hue is turned by up to this share of the circle."""
    gray: float = 0.0
    """Chance of turning the view gray."""
    blur: float = 0.0
    """Chance of Gaussian blur."""
    rotate: float = 0.0
    """Largest rotation, in degrees."""
    translate: float = 0.0
    """Largest shift, as a share of the image's side."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of the scale factor."""
    shear: float = 0.0
    """Largest shear, in degrees."""


@dataclass(frozen=True)
class OptimizerParams:
    """How the backbone is stepped."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum (the paper), or AdamW."""
    lr: float = 0.05
    """Base learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, or the first beta of AdamW."""
    weight_decay: float = 1e-5
    """Weight decay."""
    schedule: Literal["constant", "cosine", "step", "bottou"] = "constant"
    """How the learning rate falls over the run."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises from zero."""
    step_epochs: float = 30.0
    """Schedule step: epochs between two drops."""
    step_factor: float = 0.1
    """Schedule step: factor of each drop."""
    clip: float = 0.0
    """Gradients are scaled down to this norm when they exceed it; 0 = never."""


@dataclass(frozen=True)
class TrainRun:
    """One training run, whole: what `deepcluster train` and `deepcluster.train` take."""

    epochs: int = 200
    """Times as many images are drawn as the data holds."""
    batch_size: int = 256
    """Images per optimizer step."""
    seed: int = 0
    """Every random draw follows from it."""
    image_size: int = 224
    """Side of a view, in pixels."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Arithmetic: 32-bit, or mixed with 16 bits; auto = bf16 where the device has it in hardware."""
    processes: int = 1
    """Processes on this machine that share the work, such as one per GPU, with the results of one; where torchrun or
    SLURM starts them, their number comes from there."""
    sync_batchnorm: bool = True
    """Several processes: batch-norm's statistics are those of the whole batch, as in one process, or else of each
    process's own part, which saves messages."""
    compile: bool = False
    """Let torch.compile fuse the backbone."""
    keep_every: int = 10
    """Keep epoch-NNNN.ckpt after every so many epochs; 0 = only last.ckpt."""
    save_minutes: float = 10.0
    """Save last.ckpt at least this often within an epoch too."""
    watch: Literal["none", "knn", "nmi"] = "none"
    """Where labels exist, score the run as it trains and keep the best epoch as checkpoints/best.ckpt: by the kNN of
    the features (on up to 5,000 images, leaving one out), or by NMI(t, labels). The method never sees the labels."""
    watch_every: int = 1
    """Watch after every so many epochs."""
    patience: int = 10
    """Watched values without a rise after which the run says that it has stopped rising."""
    stop: bool = False
    """End the run there."""
    method: DeepClusterParams | ODCParams | DeeperClusterParams = field(default_factory=DeepClusterParams)
    optimizer: OptimizerParams = field(default_factory=OptimizerParams)
    data: DataParams = field(default_factory=DataParams)
    backbone: BackboneParams = field(default_factory=BackboneParams)


GROUPS = ("method", "optimizer", "data", "backbone")


def as_dict(run: TrainRun) -> dict[str, Any]:
    """The run as plain JSON values; the method's group begins with its name."""
    values = dataclasses.asdict(run)
    name = next(name for name, kind in METHODS.items() if type(run.method) is kind)
    return values | {"method": {"name": name} | values["method"]}


def from_dict(values: dict[str, Any]) -> TrainRun:
    """The inverse of `as_dict`; unknown names are refused.

    Raises:
        DeepClusterError: a name that this version does not know.
    """
    method = dict(values.get("method", {}))
    name = method.pop("name", "deepcluster")
    if name not in METHODS:
        raise DeepClusterError(f"There is no method {name!r}.{nearest(str(name), list(METHODS))}")
    return override(TrainRun(method=METHODS[name]()), values | {"method": method})


def override(run: TrainRun, values: dict[str, Any]) -> TrainRun:
    """`run` with other values, given nested, dotted (`method.k`), underscored (`method__k`) or by a name that
    only one group has (`k`).

    Raises:
        DeepClusterError: an unknown or ambiguous name, or a value of the wrong type.
    """
    for name, value in values.items():
        name = name.replace("__", ".")
        if name in GROUPS and isinstance(value, dict):
            run = override(run, {f"{name}.{part}": inner for part, inner in value.items()})
            continue
        group, _, part = name.rpartition(".")
        if not group and not hasattr(run, part):
            owners = [owner for owner in GROUPS if hasattr(getattr(run, owner), part)]
            if len(owners) > 1:
                meant = " or ".join(f"{owner}.{part}" for owner in owners)
                raise DeepClusterError(f"The setting {name!r} exists in several groups: write {meant}.")
            group = owners[0] if owners else ""
        if group and group not in GROUPS:
            raise DeepClusterError(_unknown(run, name))
        target = getattr(run, group) if group else run
        kinds = {item.name: str(item.type) for item in dataclasses.fields(target)}
        if part not in kinds or (not group and part in GROUPS):
            raise DeepClusterError(_unknown(run, name))
        change: dict[str, Any] = {part: _fitting(name, kinds[part], getattr(target, part), value)}
        if group:
            change = {group: dataclasses.replace(target, **change)}
        run = dataclasses.replace(run, **change)
    return run


def names(run: TrainRun | None = None) -> list[str]:
    """Every setting of a run (by default of DeepCluster's), dotted."""
    run, found = run or TrainRun(), []
    for item in dataclasses.fields(run):
        if item.name in GROUPS:
            found += [f"{item.name}.{inner.name}" for inner in dataclasses.fields(getattr(run, item.name))]
        else:
            found.append(item.name)
    return found


def nearest(word: str, choices: list[str]) -> str:
    """` Did you mean X?` for the choice nearest to `word`, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def _unknown(run: TrainRun, name: str) -> str:
    known = names(run)
    short = [full.rpartition(".")[2] for full in known]
    return f"There is no setting {name!r}.{nearest(name, known) or nearest(name, short)}"


def _fitting(name: str, kind: str, old: Any, value: Any) -> Any:
    """JSON has lists where settings have tuples, and integers where they have floats."""
    if kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DeepClusterError(f"The setting {name} takes a float, not {value!r}.")
        return float(value)
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(old, bool) != isinstance(value, bool) and isinstance(old, (bool, int, float)):
        raise DeepClusterError(f"The setting {name} takes a {type(old).__name__}, not {value!r}.")
    if isinstance(old, (int, str)) and not isinstance(value, type(old)):
        raise DeepClusterError(f"The setting {name} takes a {type(old).__name__}, not {value!r}.")
    return value

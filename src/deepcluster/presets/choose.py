"""The settings of a run for which no preset was named, from the images and the machine.

Every number that may want to be tuned is a named constant or a field of `KINDS`; the reasons stand beside them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcluster.config import BackboneParams, DataParams, OptimizerParams, TrainRun, from_dict, names, override
from deepcluster.data.source import ImageSource
from deepcluster.errors import BadImage, DeepClusterError, counted
from deepcluster.methods.params import method_name
from deepcluster.presets import deepcluster, tiny

FOLLOWED = ("image_size", "device")
"""Settings that the others are chosen for, where the user gives them."""
DEFAULT = "deepcluster"
"""The method, where none is named."""
MINUTES = 10.0
"""Of a run without a preset."""
SAMPLE = 48
"""Images that are looked at."""
SHRUNK = 256
"""Their shorter side is decoded to this, at most, in pixels: whether photos are larger makes no difference."""
GRAY = 8
"""Largest difference between the colors of a pixel, of 255, that counts as gray: JPEG leaves some."""


@dataclass(frozen=True)
class Images:
    """What the choice depends on.

    Attributes:
        count: images of the source. side: median of the shorter side, in pixels, at most `SHRUNK`.
        color: whether any of those looked at has colors. mixed: whether they differ in size.
    """

    count: int
    side: int
    color: bool
    mixed: bool = False

    def __str__(self) -> str:
        size = f"{SHRUNK} px and more" if self.side >= SHRUNK else f"about {self.side} px" if self.mixed else ""
        return f"{counted(self.count, 'color image' if self.color else 'gray image')} of {size or f'{self.side} px'}"


@dataclass(frozen=True)
class Machine:
    """What the choice depends on: "cpu", "cuda" or "mps", processor cores, bytes of the GPU's memory, and whether
    16-bit floats are fast."""

    device: str
    cores: int
    memory: int = 0
    bf16: bool = False

    def __str__(self) -> str:
        where = f"{self.cores} cores" if self.device == "cpu" else f"a GPU of {self.memory / 2**30:.0f} GiB"
        return where + (" with bf16" if self.bf16 else "")


@dataclass(frozen=True)
class Kind:
    """The settings for images up to some size.

    Attributes:
        up_to: largest side of such images, in pixels. image_size: what the network sees; 0 = the side of the images.
        view: side of the training views, as a share of `image_size`: smaller views cost less than they lose, and a
            network trained on enlarged crops is at its best on images a little larger (arXiv 1906.06423).
        images_per_cluster: which k follows from; most_clusters: its upper limit.
        batch: images of a step, at most.
        clustered: side at which features are clustered, as a share of `image_size`, by methods that take their
            clusters from all features at once.
        lr: of AdamW. layer_decay: of its rates. method: further parameters, for methods that have them.
    """

    up_to: int
    backbone: BackboneParams
    image_size: int
    view: float
    data: DataParams
    images_per_cluster: float
    most_clusters: int
    batch: int
    lr: float
    layer_decay: float = 1.0
    clustered: float = 1.0
    method: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# As tiny-deepcluster: digits and icons have a right way up and two sides, so no flips and no crops, but small shifts
# and turns. Twice as many clusters as kinds are enough where a kind looks much the same.
_ICONS = Kind(
    16,
    tiny.DEEPCLUSTER.run.backbone,
    image_size=0,
    view=1.0,
    data=tiny.DEEPCLUSTER.run.data,
    images_per_cluster=80,
    most_clusters=200,
    batch=128,
    lr=0.002,
    method={"whiten": 32, "clusterings": 4, "ema_decay": 0.98, "head": "redraw", "head_lr": 0.02},
)
_SMALL, _PHOTO = deepcluster.CONVNET.run, deepcluster.RESNET18.run
KINDS = {
    "cpu": (
        _ICONS,
        # Those of deepcluster-convnet, measured on CIFAR-10: at this size the images per second count most, and Sobel
        # filters are worth three points of kNN. Its clusters hold ten images each.
        Kind(48, _SMALL.backbone, 0, 0.75, _SMALL.data,
             images_per_cluster=10, most_clusters=2_000, batch=256, lr=0.003),
        # Photos on a CPU: a ResNet-18 with the stem for photos. That for small images, which "auto" takes up to 64 px,
        # made it 7 images a second on two busy cores. In color, which tells photos of different things apart.
        Kind(SHRUNK, BackboneParams("resnet18", options={"stem": "imagenet"}), 96, 0.75, _PHOTO.data,
             images_per_cluster=10, most_clusters=2_000, batch=128, lr=0.002),
    ),
    "gpu": (
        _ICONS,
        # A GPU has the speed for a ResNet-18 whose first layer keeps all pixels of small images.
        Kind(48, BackboneParams("resnet18", sobel="paper", options={"stem": "small"}), 0, 0.75, _SMALL.data,
             images_per_cluster=10, most_clusters=2_000, batch=256, lr=0.003),
        Kind(SHRUNK, _PHOTO.backbone, 128, 0.75, _PHOTO.data,
             images_per_cluster=10, most_clusters=4_000, batch=256, lr=0.002),
    ),
}  # fmt: skip
"""Where it computes -> the kinds of images, by ascending size; all larger ones are of the last kind."""

# Whitening, right for networks trained by clustering, raises noise in published ones: on Lite0 features k-means of
# L2-normalized rows has an AMI of .367 on CIFAR-10, of whitened ones .274.
# Statistics of the new images would spoil the features before the first step: kNN of CIFAR-10 at 64 px 58.7 -> 47.7 %.
_KEPT = BackboneParams(frozen=1, fixed_statistics=True)
_BEGUN = {"head_lr": 0.0009, "whiten": 0}
_VARIED = DataParams(crop_scale=(0.3, 1.0), jitter=0.8, gray=0.2)
BEGUN = {
    # Trained features are good already: small steps, smaller ones the nearer to the input, and a classifier that is
    # faster than the network. Published networks were trained on large images, and features of large images are the
    # better ones: those are clustered, and the network learns their clusters from views of the size that a CPU has time
    # for. It is used at a size between: CIFAR-10 at 64, 96 px after views of 64 px: kNN 75.3, 85.3 %, untrained 62, 78.
    "cpu": (
        Kind(48, dataclasses.replace(_KEPT, frozen=3), 96, 2 / 3, _VARIED, clustered=4 / 3,
             images_per_cluster=20, most_clusters=2_000, batch=64, lr=3e-4, layer_decay=0.7, method=_BEGUN),
        Kind(SHRUNK, dataclasses.replace(_KEPT, frozen=3), 128, 5 / 8, _VARIED, clustered=5 / 4,
             images_per_cluster=20, most_clusters=2_000, batch=64, lr=3e-4, layer_decay=0.7, method=_BEGUN),
    ),
    "gpu": (
        Kind(SHRUNK, _KEPT, 224, 1.0, _VARIED,
             images_per_cluster=20, most_clusters=4_000, batch=128, lr=3e-4, layer_decay=0.7, method=_BEGUN),
    ),
}  # fmt: skip
"""The same for runs that begin with trained weights; the network and its input size follow from those."""

ONCE = 10_000.0
"""Epochs between two clusterings, where the first one's features are the best to be had."""
LEAST_STEPS = 8
"""Steps of an epoch, at least: batches are smaller where there are few images."""
LEAST_BATCH = 16
"""But not so small that batch-norm has nothing to go by."""
STEPS_BETWEEN = 24
"""Steps between two clusterings, at least: the classifier must learn the clusters before they change."""
MOST_DIMENSIONS = 128
"""Of the whitened features."""


@dataclass(frozen=True)
class Choice:
    """Settings, and what they were chosen for; `start` names the weights they begin with."""

    run: TrainRun
    images: Images
    machine: Machine
    start: str = ""

    def sentence(self, run: TrainRun) -> str:
        """What to tell the user, of the settings as they are in the end."""
        start = f", from {self.start}" if self.start else ""
        return (
            f"{self.images} on {self.machine}: {method_name(run.method)} with {run.backbone.name} at"
            f" {run.image_size} px{start}, {counted(getattr(run.method, 'k', 0), 'cluster')}, batches of"
            f" {run.batch_size}"
        )


def choose(
    source: ImageSource,
    *,
    method: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    from_: str | None = None,
) -> Choice:
    """A method with the network, size, clusters and batches that suit these images and this machine, for ten
    minutes.

    Args:
        method: its name in `METHODS`; None = deepcluster.
        image_size: of the network, in pixels, where the user wants one; views follow it.
        device: what the run is to compute on.
        from_: trained weights to begin with, see `engine.model.begin`.

    Raises:
        DeepClusterError: none of the images looked at can be decoded, or there is no such method.
    """
    images, machine = look_at(source), this_machine(device)
    if from_ is None:
        return choose_for(images, machine, method, image_size)
    from deepcluster.engine.build import draw_backbone
    from deepcluster.engine.model import begin

    chosen = choose_for(images, machine, method, kinds=BEGUN)
    run = begin(chosen.run, from_, image_size)
    network = draw_backbone(override(run, {"backbone.frozen": 0}))
    run = override(run, {"backbone.frozen": min(run.backbone.frozen, len(network.stages) // 2)})
    # smaller views were measured together with clusters of larger images only
    run = override(run, {"method.reassign": ONCE} if run.data.clustered_size else {"data.view_size": 0})
    depthwise = any(getattr(layer, "groups", 1) == getattr(layer, "in_channels", 0) > 1 for layer in network.modules())
    if machine.device == "cpu" and depthwise:  # whose gradients take three times as long in 16 bits as in 32
        run = dataclasses.replace(run, precision="32")
    return Choice(run, images, machine, from_)


def choose_for(
    images: Images,
    machine: Machine,
    method: str | None = None,
    image_size: int | None = None,
    kinds: Mapping[str, Sequence[Kind]] = KINDS,
) -> Choice:
    """The same, from what is known of both."""
    fitting = kinds["cpu" if machine.device == "cpu" else "gpu"]
    kind = next((kind for kind in fitting if images.side <= kind.up_to), fitting[-1])
    size = image_size or kind.image_size or images.side
    k = min(images.count / kind.images_per_cluster, images.count / 10, kind.most_clusters)
    k = max(2, int(k) // 2 * 2)  # DeeperCluster divides them among its super-clusters
    batch = kind.batch
    while batch > LEAST_BATCH and images.count < LEAST_STEPS * batch:
        batch //= 2
    steps = max(1, round(images.count / batch))
    data = dataclasses.replace(kind.data, view_size=0 if kind.view == 1 else max(8, round(kind.view * size)))
    if not images.color:  # nothing to shift, and every image is gray already
        data = dataclasses.replace(data, saturation=0.0, hue=0.0, gray=0.0)
    values = {
        "k": k,
        "reassign": float(max(1 if k < 1_000 else 2, -(-STEPS_BETWEEN // steps))),
        # a direction of few images is noise, which whitening would raise to the others' level
        "whiten": max(2, min(MOST_DIMENSIONS, images.count // 8)),
        "iterations": 10,
        # the paper's classifier, drawn anew at each clustering, needs longer runs than minutes
        "head": "centroids",
        "super_clusters": 2,
        # ODC from nothing: labels that begin badly mend slowly online
        "start": "whitened",
        "feature_dim": 128,
        "hidden": 256,
        "dropout": 0.0,
        **kind.method,
    }
    known = names(from_dict({"method": {"name": method or DEFAULT}}))
    own = {key: value for key, value in values.items() if f"method.{key}" in known}
    params = from_dict({"method": {"name": method or DEFAULT, **own}}).method
    if kind.clustered != 1 and hasattr(params, "whiten"):
        data = dataclasses.replace(data, clustered_size=round(kind.clustered * size))
    run = TrainRun(
        minutes=MINUTES,
        batch_size=batch,
        image_size=size,
        keep_every=0,
        method=params,
        optimizer=OptimizerParams(
            name="adamw", lr=kind.lr, weight_decay=1e-4, schedule="cosine", layer_decay=kind.layer_decay
        ),
        data=dataclasses.replace(data, views=max(data.views, params.least_views)),
        backbone=kind.backbone,
    )
    return Choice(run, images, machine)


def look_at(source: ImageSource) -> Images:
    """What a sample of the images, evenly spaced, is like; those that cannot be decoded are left out.

    Raises:
        DeepClusterError: none of them can be decoded.
    """
    sides, color, why = [], False, ""
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)):
        try:
            pixels = source.read(int(index), SHRUNK)
        except BadImage as error:
            why = why or f"{source.path(int(index))}: {error}"
            continue
        sides.append(min(pixels.shape[:2]))
        color = color or bool((pixels.max(2).astype(int) - pixels.min(2) > GRAY).mean() > 0.01)
    if not sides:
        raise DeepClusterError(
            f"None of the images of {source.name} that were looked at can be decoded ({why}): give images as --data."
        )
    return Images(len(source), int(np.median(sides)), color, mixed=min(sides) != max(sides))


def this_machine(device: str = "auto") -> Machine:
    """The machine this runs on."""
    import torch

    from deepcluster.engine.device import fast_bfloat16, pick_device

    kind = pick_device(device).partition(":")[0]
    memory = torch.cuda.get_device_properties(0).total_memory if kind == "cuda" else 0
    affinity: Any = getattr(os, "sched_getaffinity", None)  # not on macOS
    return Machine(kind, len(affinity(0)) if affinity else os.cpu_count() or 1, memory, fast_bfloat16(kind))

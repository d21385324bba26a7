"""All settings of a training run, as frozen dataclasses with a docstring under every field.

The command line, its help, the presets and `run.json` all come from these. Values only: nothing here loads
torch, so that help and mistakes are answered at once. A method's own parameters are in `methods/params.py`.
"""

from __future__ import annotations

import builtins
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from deepcluster.errors import DeepClusterError, did_you_mean
from deepcluster.methods.params import METHODS, DeepClusterParams, MethodParams, method_name


@dataclass(frozen=True)
class BackboneParams:
    """The network to train."""

    name: str = "resnet18"
    """alexnet, vgg16, resnet18/34/50/101/152, convnet, patches, or any timm model as timm:NAME."""
    sobel: Literal["none", "paper", "deepercluster"] = "none"
    """Fixed Sobel filters in place of color (§3.3), with the paper's or DeeperCluster's padding."""
    weights: str = ""
    """Initial weights: a run folder, its model.safetensors, an exported .safetensors, a checkpoint released by
    DeepCluster's authors, or `pretrained` for the published weights of a timm or torchvision network. Network and Sobel
    must agree, and the image size for alexnet, vgg16 and others whose layers depend on it. A resumed run continues from
    its own checkpoint."""
    frozen: int = 0
    """The first so many stages of the network are not trained, and their batch-norm statistics stay: of a ResNet the
    stem is the first of five, of a transformer each block is one."""
    fixed_statistics: bool = False
    """Batch-norm normalizes by the statistics that the initial weights brought instead of those of the batch; chosen
    with --from, since trained features lose their meaning with the statistics."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the backbone, such as stem small."""


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
    clustered_size: int = 0
    """Side in pixels at which images are seen while their features are clustered, but for the last clustering, which
    is that of the finished run; 0 = the image size. A larger one gives a small-sized training better clusters to
    learn, where the network was trained on large images before."""
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
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of color jitter."""
    brightness: float = 0.4
    """Jitter: brightness is multiplied by a factor within 1 +- this."""
    contrast: float = 0.4
    """Jitter: contrast is multiplied by a factor within 1 +- this."""
    saturation: float = 0.4
    """Jitter: saturation is multiplied by a factor within 1 +- this."""
    hue: float = 0.1
    """Jitter: the hue is shifted by up to this fraction of the color circle."""
    gray: float = 0.0
    """Probability of converting a view to grayscale."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    rotate: float = 0.0
    """Largest rotation, in degrees."""
    translate: float = 0.0
    """Largest shift, as a fraction of the image's side."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of the scale factor."""
    shear: float = 0.0
    """Largest shear, in degrees."""


@dataclass(frozen=True)
class OptimizerParams:
    """How the weights are updated."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """Stochastic gradient descent with momentum (the paper), AdamW, or LARS, which scales the step of each weight to
    its norm, for large batches (arXiv 1708.03888)."""
    lr: float = 0.05
    """Base learning rate."""
    momentum: float = 0.9
    """Momentum of SGD and LARS, or the first beta of AdamW."""
    weight_decay: float = 1e-5
    """Weight decay."""
    schedule: Literal["constant", "cosine", "step", "bottou"] = "constant"
    """How the learning rate decreases over the run."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises from zero."""
    step_epochs: float = 30.0
    """Schedule step: epochs between two drops."""
    step_factor: float = 0.1
    """Schedule step: factor of each drop."""
    layer_decay: float = 1.0
    """The learning rate of each stage of the network is this times that of the stage after it (arXiv 1801.06146 §3.2,
    there 1 / 2.6), so that what was trained before changes the less the nearer it is to the input; 1 = all alike."""
    clip: float = 0.0
    """Gradients are scaled down to this norm when they exceed it; 0 = never."""


@dataclass(frozen=True)
class TrainRun:
    """All settings of a training run: what `deepcluster train` and `deepcluster.train` take."""

    epochs: int = 200
    """Length of training; one epoch samples as many images as the data holds."""
    minutes: float | None = None
    """In place of epochs: the whole run is to take so many minutes, the last clustering included. The speed is measured
    before the first step, and as many epochs as fit, but at least one, are noted in run.json, for a resumed run too."""
    batch_size: int = 256
    """Images per optimizer step."""
    seed: int = 0
    """Seed of all random numbers."""
    image_size: int = 224
    """Side of the images that the network gets, in pixels."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Arithmetic: 32-bit floats, or mixed precision with 16 bits; auto = bf16 where the hardware supports it."""
    processes: int = 1
    """Processes on this machine that share the work, such as one per GPU; where torchrun or SLURM starts them, their
    number comes from there."""
    sync_batchnorm: bool = True
    """Several processes: compute the statistics of batch-norm over the whole batch, as in one process; otherwise over
    the part of each process, which saves messages."""
    deterministic: bool = False
    """The same bits on 1, 2 and 4 processes: each batch is cut into the same four parts, computed and summed alike. On
    GPUs gradients are summed in a fixed order after the backward pass: the same bits for equally many processes."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    keep_every: int = 10
    """Epochs between two checkpoints that are kept as epoch-NNNN.ckpt; 0 = only last.ckpt."""
    save_minutes: float = 10.0
    """Minutes between two saves of last.ckpt within an epoch."""
    watch: Literal["none", "knn", "nmi"] = "none"
    """Where labels exist, score each epoch and keep the best one as checkpoints/best.ckpt: by the leave-one-out kNN
    accuracy of the features (on up to 5,000 images), or by NMI(t, labels). The method never sees the labels."""
    watch_every: int = 1
    """Epochs between two scores."""
    patience: int = 10
    """Number of scores without improvement after which the run reports that it has stalled."""
    stop: bool = False
    """End training then."""
    method: MethodParams = field(default_factory=DeepClusterParams)
    optimizer: OptimizerParams = field(default_factory=OptimizerParams)
    data: DataParams = field(default_factory=DataParams)
    backbone: BackboneParams = field(default_factory=BackboneParams)

    @property
    def largest_size(self) -> int:
        """Side in pixels of the largest plain views that are made of an image."""
        return max(self.image_size, self.data.clustered_size)


BOTH = "Both minutes and epochs are given, and each says how long the run is: leave one of them out."
"""What is said to whoever gives both."""
AUTO = "auto"
"""What run.json calls the preset of a run whose settings were chosen."""
GROUPS = ("method", "optimizer", "data", "backbone")
SIZES = (
    {"epochs": 10**7, "batch_size": 2**20, "processes": 2**12, "data.workers": 2**10, "method.neighbors": 2**12}
    | dict.fromkeys(("image_size", "data.clustered_size", "data.view_size", "data.small_view_size"), 2**13)
    | dict.fromkeys(("data.views", "data.small_views", "method.clusterings", "method.memory_views"), 2**8)
    | dict.fromkeys(("method.whiten", "method.hidden", "method.feature_dim", "method.super_clusters"), 2**16)
    | dict.fromkeys(("method.k", "method.queue_size"), 2**24)
)
"""What settings may be at most, from 0 up: beyond it, only memory or years would be the limit."""


def check_sizes(run: TrainRun) -> None:
    """Refuses sizes that are negative, or that no machine has room for (DeepClusterError)."""
    for name, most in SIZES.items():
        group, _, part = name.rpartition(".")
        value = getattr(getattr(run, group) if group else run, part, 0)
        if not 0 <= value <= most:
            raise DeepClusterError(f"--{name.replace('_', '-')} is {value:,}: give 0 to {most:,}.")


class UnknownSetting(DeepClusterError):
    """A name that no setting of this version has."""


def as_dict(run: TrainRun) -> dict[str, Any]:
    """The run as plain JSON values; the method's group begins with its name."""
    values = dataclasses.asdict(run)
    return values | {"method": {"name": method_name(run.method)} | values["method"]}


def params_of(config: Mapping[str, Any]) -> MethodParams:
    """The method's parameters of a run, from its run.json."""
    return from_dict({"method": config.get("settings", {}).get("method", {})}).method


def from_dict(values: dict[str, Any]) -> TrainRun:
    """The inverse of `as_dict`; UnknownSetting for a name that this version does not know, DeepClusterError for a value
    of the wrong type."""
    method = dict(values.get("method", {}))
    name = method.pop("name", "deepcluster")
    if name not in METHODS:
        raise UnknownSetting(f"There is no method {name!r}.{did_you_mean(str(name), list(METHODS))}")
    return override(TrainRun(method=METHODS[name][0]()), values | {"method": method})


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
            raise UnknownSetting(_unknown(run, name))
        target = getattr(run, group) if group else run
        kinds = _kinds(type(target))
        if part not in kinds or (not group and part in GROUPS):
            raise UnknownSetting(_unknown(run, name))
        change: dict[str, Any] = {part: _fitting(name, kinds[part], value)}
        if group:
            change = {group: dataclasses.replace(target, **change)}
        run = dataclasses.replace(run, **change)
    return run


_kinds: Callable[[type], dict[str, Any]] = cache(get_type_hints)
"""The types of a group's settings: kept, since reading a run.json asks for them some fifty times."""


def names(run: TrainRun | None = None) -> list[str]:
    """Every setting of a run (by default of DeepCluster's), dotted."""
    run, found = run or TrainRun(), []
    for item in dataclasses.fields(run):
        if item.name in GROUPS:
            found += [f"{item.name}.{inner.name}" for inner in dataclasses.fields(getattr(run, item.name))]
        else:
            found.append(item.name)
    return found


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings, dotted, that both dicts as from `as_dict` have, or from JSON, and that are others in them."""
    one, other = (
        {f"{group}.{name}": value for group in GROUPS for name, value in each.get(group, {}).items()}
        | {name: value for name, value in each.items() if name not in GROUPS}
        for each in (before, after)
    )
    return [name for name in one if name in other and _plain(one[name]) != _plain(other[name])]


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, which knows no tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _unknown(run: TrainRun, name: str) -> str:
    known = names(run)
    short = [full.rpartition(".")[2] for full in known]
    return f"There is no setting {name!r}.{did_you_mean(name, known) or did_you_mean(name, short)}"


def _fitting(name: str, kind: Any, value: Any) -> Any:
    """The value as its setting has it: JSON has lists where settings have tuples, integers where they have floats."""
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(kind, value):
        said = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise DeepClusterError(f"The setting {name} takes a {said}, not {str(value)[:80]!r}.")
    return float(value) if kind is float or (isinstance(value, int) and float in get_args(kind)) else value


def _fits(kind: Any, value: Any) -> bool:
    inside = get_args(kind)
    match get_origin(kind) or kind:
        case types.UnionType | typing.Union:
            return any(_fits(one, value) for one in inside)
        case typing.Literal:
            return any(type(value) is type(one) and value == one for one in inside)
        case builtins.tuple:
            return isinstance(value, tuple) and len(value) == len(inside) and all(map(_fits, inside, value))
        case builtins.float:
            return _fits(int, value) or (isinstance(value, float) and not math.isnan(value))
        case builtins.int:
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
        case found:
            return isinstance(value, found)

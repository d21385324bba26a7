"""From settings to parts: network, method, optimizers, views, device. The one place that opens a `TrainRun`."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from deepcluster import config as settings
from deepcluster.clustering.pic import PIC
from deepcluster.config import DeepClusterParams, DeeperClusterParams, ODCParams, TrainRun
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.distributed import SINGLE, TIMEOUT, ProcessGroup
from deepcluster.engine import checkpoint
from deepcluster.engine.model import load_initial_weights
from deepcluster.engine.optim import make_optimizer
from deepcluster.engine.schedules import factor
from deepcluster.engine.subject import pick_device
from deepcluster.errors import DeepClusterError
from deepcluster.methods.deepcluster import Clusterer, DeepCluster
from deepcluster.methods.deepercluster import DeeperCluster
from deepcluster.methods.method import Method
from deepcluster.methods.odc import ODC
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seed_of


def seed_everything(seed: int) -> None:
    """Every global generator, since a layer of somebody else's may draw from any of them."""
    torch.manual_seed(seed_of(seed))
    np.random.seed(seed_of(seed) % 2**32)  # noqa: NPY002
    random.seed(seed_of(seed))


def check(run: TrainRun) -> None:
    """Refuses numbers that no run can have.

    Raises:
        DeepClusterError: no epochs, no images in a step, or a negative learning rate.
    """
    for name, value, least in (
        ("epochs", run.epochs, 1),
        ("batch-size", run.batch_size, 1),
        ("processes", run.processes, 1),
    ):
        if value < least:
            raise DeepClusterError(f"--{name} is {value}: give at least {least}.")
    if not run.optimizer.lr >= 0:
        raise DeepClusterError(f"--optimizer.lr is {run.optimizer.lr}: give a learning rate of 0 or more.")


def draw_backbone(run: TrainRun) -> Backbone:
    """The untrained network, drawn from torch's global generator."""
    b = run.backbone
    return build_backbone(b.name, sobel=b.sobel, image_size=run.image_size, **b.options)


def with_clusterer(run: TrainRun, clusterer: Clusterer | None) -> TrainRun:
    """The settings of a run whose clusterer is handed over, if one is."""
    if clusterer is None or not isinstance(run.method, DeepClusterParams):
        return run
    return settings.override(run, {"method.algorithm": "custom", "method.k": 0})


def pick_clusterer(run: TrainRun, given: Clusterer | None = None) -> Clusterer | None:
    """What groups the features in place of k-means, if anything does.

    Raises:
        DeepClusterError: a handed-over clusterer is missing.
    """
    p = run.method
    if given is not None and (isinstance(given, type) or not callable(getattr(given, "fit_predict", None))):
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        what = f"the class {name}" if isinstance(given, type) else f"{given!r}, which has no fit_predict"
        raise DeepClusterError(
            f"A clusterer was expected and {what} was handed over: give an object with scikit-learn's fit_predict,"
            + (f" such as {name}()." if isinstance(given, type) else " such as AgglomerativeClustering(50).")
        )
    if not isinstance(p, DeepClusterParams):
        if given is not None:
            why = "ODC clusters online, image by image" if isinstance(p, ODCParams) else "DeeperCluster has two levels"
            raise DeepClusterError(f"{why}: a clusterer cannot take the place of its own.")
        return None
    if p.algorithm == "kmeans":
        return None
    if p.algorithm == "pic":
        return PIC(p.neighbors, p.sigma, p.alpha, version=p.pic_version)
    if given is None:
        raise DeepClusterError(
            "With --method.algorithm custom the clusters come from a clusterer handed over in Python: train by"
            " deepcluster.train(..., clusterer=...), and with resume=True go on with such a run."
        )
    return given


def build_method(run: TrainRun, n: int, clusterer: Clusterer | None = None, group: ProcessGroup = SINGLE) -> Method:
    """The method with its backbone, drawn from torch's global generator."""
    backbone = draw_backbone(run)
    if isinstance(run.method, ODCParams):
        return _odc(run, run.method, backbone, n)
    if isinstance(run.method, DeeperClusterParams):
        return _deepercluster(run, run.method, backbone, n, group)
    return _deepcluster(run, run.method, backbone, n, pick_clusterer(run, clusterer))


def _deepcluster(
    run: TrainRun, p: DeepClusterParams, backbone: Backbone, n: int, clusterer: Clusterer | None
) -> DeepCluster:
    return DeepCluster(
        backbone,
        n=n,
        k=p.k,
        head_optimizer=_head_optimizer(run, p.head_lr),
        reassign=p.reassign,
        whiten=p.whiten,
        iterations=p.iterations,
        init=p.init,
        spherical=p.spherical,
        backend=p.backend,
        balance=p.balance,
        head=p.head,
        temperature=p.temperature,
        clusterings=p.clusterings,
        ema_decay=p.ema_decay,
        clusterer=clusterer,
    )


def _odc(run: TrainRun, p: ODCParams, backbone: Backbone, n: int) -> ODC:
    o = run.optimizer
    return ODC(
        backbone,
        n=n,
        k=p.k,
        neck_optimizer=functools.partial(
            make_optimizer, name=o.name, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay
        ),
        head_optimizer=_head_optimizer(run, p.head_lr),
        feature_dim=p.feature_dim,
        hidden=p.hidden,
        dropout=p.dropout,
        momentum=p.momentum,
        centroid_every=p.centroid_every,
        min_size=p.min_size,
        handle_every=p.handle_every,
        reweight_power=p.reweight_power,
        nearest=p.nearest,
        memory=p.memory,
        start=p.start,
        iterations=p.iterations,
        replace=p.replace,
    )


def _deepercluster(
    run: TrainRun, p: DeeperClusterParams, backbone: Backbone, n: int, group: ProcessGroup
) -> DeeperCluster:
    return DeeperCluster(
        backbone,
        n=n,
        k=p.k,
        head_optimizer=_head_optimizer(run, p.head_lr, run.optimizer.momentum),
        super_clusters=p.super_clusters,
        rotations=p.rotations,
        reassign=p.reassign,
        whiten=p.whiten,
        iterations=p.iterations,
        head=p.head,
        temperature=p.temperature,
        group=group,
    )


def _head_optimizer(run: TrainRun, lr: float | None, momentum: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    o = run.optimizer
    return functools.partial(
        make_optimizer,
        name=o.name,
        lr=o.lr if lr is None else lr,
        momentum=momentum if o.name == "sgd" else o.momentum,  # two of the papers' classifiers have none
        weight_decay=o.weight_decay,
    )


def views_of(run: TrainRun, backbone: Backbone) -> RandomViews:
    """The random views that the run trains on: `--data.views` of one size, then `--data.small-views` smaller ones."""
    d = run.data
    size = d.view_size or run.image_size
    large = ViewGroup(
        size=size,
        count=d.views,
        crop_scale=d.crop_scale,
        crop_ratio=d.crop_ratio,
        flip=d.flip,
        jitter=d.jitter,
        brightness=d.brightness,
        contrast=d.contrast,
        saturation=d.saturation,
        hue=d.hue,
        gray=d.gray,
        blur=d.blur,
        rotate=d.rotate,
        translate=d.translate,
        zoom=d.zoom,
        shear=d.shear,
        mean=backbone.mean,
        std=backbone.std,
    )
    if size != run.image_size:
        _check_view_size(backbone, size, "--data.view-size")
    if not d.small_views:
        return RandomViews(large)
    small_size = d.small_view_size or max(1, round(size * 96 / 224))
    _check_view_size(backbone, small_size, "--data.small-view-size")
    return RandomViews(large, replace(large, size=small_size, count=d.small_views, crop_scale=d.small_crop_scale))


@torch.no_grad()
def _check_view_size(backbone: Backbone, size: int, option: str) -> None:
    """Raises a DeepClusterError unless the network takes images of this size."""
    training = backbone.training
    try:
        backbone.eval()(next(backbone.parameters()).new_zeros(1, 3, size, size))
    except Exception as error:  # networks refuse a size each in their own way
        raise DeepClusterError(
            f"The network cannot take views of {size} pixels ({str(error).splitlines()[0]}): give a larger {option}."
        ) from None
    finally:
        backbone.train(training)


def rate_of(run: TrainRun) -> Callable[[int, int, int], float]:
    o = run.optimizer

    def rate(step: int, steps: int, per_epoch: int) -> float:
        return factor(
            o.schedule,
            step,
            steps=steps,
            steps_per_epoch=per_epoch,
            warmup=o.warmup,
            step_epochs=o.step_epochs,
            step_factor=o.step_factor,
            lr=o.lr,
            weight_decay=o.weight_decay,
        )

    return rate


def make_fabric(run: TrainRun) -> Fabric:
    """Device, precision and processes; where there are several, all of them go on from here.

    Raises:
        DeepClusterError: a device or precision that is not there, or two answers to how many processes.
    """
    device = pick_device(run.device)
    kind, _, position = device.partition(":")
    precision = run.precision
    if precision == "auto":
        precision = "bf16" if fast_bfloat16(kind) else "32"
    if precision == "16" and kind == "cpu":
        raise DeepClusterError("A CPU has no 16-bit floating-point training: use --precision bf16 or 32.")
    plugin: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
    here, machines = launched() or (run.processes, 1)
    if run.processes not in (1, here, here * machines):
        raise DeepClusterError(
            f"--processes is {run.processes} but the launcher started {here} on each of {machines} machine(s): leave"
            " --processes out."
        )
    if here * machines == 1:
        devices: Any = [int(position)] if position else 1
        return Fabric(accelerator=kind, devices=devices, precision=plugin, num_nodes=1, loggers=None)
    if precision == "16" and isinstance(run.method, DeeperClusterParams):
        raise DeepClusterError(
            "Loss scaling cannot follow classifiers that are divided among processes: use --precision bf16 or 32."
        )
    if kind == "mps":
        raise DeepClusterError("Several processes cannot share this machine's GPU (mps): use one, or --device cpu.")
    if position:
        raise DeepClusterError(f"--device {device} names one device for several processes: use --device {kind}.")
    if kind == "cuda" and here > torch.cuda.device_count():
        raise DeepClusterError(
            f"{here} processes need as many GPUs, and each sees {torch.cuda.device_count()}: lower --processes, let all"
            " see all GPUs of the machine (in SLURM --gpus-per-node), or use --device cpu."
        )
    fabric = Fabric(
        accelerator=kind,
        devices=here,
        num_nodes=machines,
        strategy=DDPStrategy(process_group_backend="nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT),
        precision=plugin,
        loggers=None,
    )
    fabric.launch()
    return fabric


def launched() -> tuple[int, int] | None:
    """(processes on each machine, machines) that torchrun or SLURM started; None where nobody has.

    Raises:
        DeepClusterError: not equally many on each machine.
    """
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables or "LOCAL_WORLD_SIZE" in variables:
        size, here = int(variables["WORLD_SIZE"]), int(variables.get("LOCAL_WORLD_SIZE", variables["WORLD_SIZE"]))
    elif int(variables.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in variables:
        size, machines = int(variables["SLURM_NTASKS"]), int(variables.get("SLURM_NNODES", 1))
        here = -(-size // machines)
    else:
        return None
    if size % here:
        raise DeepClusterError(
            f"{size} processes do not divide into {here} on each machine: start equally many on each."
        )
    return here, size // here


def fast_bfloat16(kind: str) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is slower than 32 bits."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)


class _Elsewhere:
    """Stands for a clusterer that was handed over, where a run is only looked at."""

    def fit_predict(self, x: Any, y: None = None) -> Any:
        raise DeepClusterError("A run that is only looked at clusters nothing.")


def at_checkpoint(config: dict[str, Any], file: Path) -> Backbone:
    """The feature_network of a run as a checkpoint of it holds it, in evaluation mode.

    Raises:
        DeepClusterError: not a checkpoint of this run.
    """
    run = settings.from_dict(config["settings"])
    method = build_method(run, config["images"], _Elsewhere() if "clusterer" in config else None)
    checkpoint.restore(checkpoint.load(file), method, file)
    return method.feature_network.eval()


def untrained(config: dict[str, Any]) -> Backbone:
    """The backbone of a run as it was before its first step: drawn, or with the weights it began with."""
    run = settings.from_dict(config["settings"])
    seed_everything(run.seed)
    backbone = draw_backbone(run)
    if run.backbone.weights:
        load_initial_weights(run.backbone.weights, [backbone])
    return backbone.eval()

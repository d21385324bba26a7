"""Device, precision and processes of a run, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from deepcluster.config import TrainRun
from deepcluster.distributed import TIMEOUT
from deepcluster.errors import DeepClusterError


def make_fabric(run: TrainRun) -> Fabric:
    """Device, precision and processes; where there are several, all of them continue from here. DeepClusterError for
    what this machine does not have, and for two answers to how many processes."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its lines about precision and processes
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
        return Fabric(accelerator=kind, devices=[int(position)] if position else 1, precision=plugin, loggers=None)
    if precision == "16" and run.method.shards_classifiers:
        raise DeepClusterError(
            "Loss scaling does not work with classifiers that are divided among processes: use --precision bf16 or 32."
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
    """(processes on each machine, machines) that torchrun or SLURM started; None where nobody has."""
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


def pick_device(name: str) -> str:
    """ "auto" becomes the first GPU, or the CPU; DeepClusterError for a device that this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise DeepClusterError(f"There is no device {name!r} on this machine: use --device auto or cpu.")
    return name

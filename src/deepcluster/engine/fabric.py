"""Device, precision and processes of a run, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.launchers import subprocess_script

from deepcluster.config import TrainRun
from deepcluster.distributed import TIMEOUT, by_srun, is_secondary_process, launched
from deepcluster.engine.device import fast_bfloat16, pick_device
from deepcluster.engine.heartbeat import Heartbeat
from deepcluster.engine.run_folder import how_to_resume
from deepcluster.errors import OTHER_ENDED, OTHER_SILENT, DeepClusterError, counted

FIRST = "DEEPCLUSTER_FIRST_PROCESS"
"""Variable that tells the other processes of a machine which one has started them."""
GRACE = 10.0
"""Seconds in which a process mostly notices by itself that another one was killed."""
STOPPED = (None, 0, 130, 143)
"""Statuses of a process that goes on, is done, or was told to stop, as all are, some of which save meanwhile."""


@contextmanager
def together(folder: Path) -> Iterator[None]:
    """While it lasts, a process of those that `make_fabric` starts ends soon after another one was killed, and some
    minutes after another machine was cut off.

    It would wait for days for one that it does not know yet or that the network says nothing about, and Fabric kills
    the first one without a word.
    """
    over = threading.Event()

    def watch(lost: Callable[[], bool], said: str = OTHER_ENDED) -> None:
        def look() -> None:
            while not lost():
                if over.wait(0.5):
                    return
            if not over.wait(GRACE):
                print(f"deepcluster: {said}{how_to_resume(folder)}", file=sys.stderr, flush=True)
                os._exit(2)  # the main thread may be in a call that nothing ends

        threading.Thread(target=look, daemon=True, name="deepcluster: other processes").start()

    def started(child_processes: list[Popen[Any]]) -> None:
        watch(lambda: any(process.poll() not in STOPPED for process in child_processes))

    heartbeat = Heartbeat(over) if (launched() or (1, 1))[1] > 1 else None
    if heartbeat:
        watch(heartbeat.is_lost, OTHER_SILENT)
    if not is_secondary_process():
        os.environ[FIRST] = str(os.getpid())
        subprocess_script._launch_process_observer = started
    elif os.name == "posix" and launched() is None and FIRST in os.environ:
        watch(lambda: os.getppid() != int(os.environ[FIRST]))
    try:
        yield
    finally:
        over.set()
        if heartbeat:
            heartbeat.join()


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
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) > 1 and not by_srun():
        raise DeepClusterError(
            f"This SLURM job has {os.environ['SLURM_NTASKS']} tasks, which only srun starts: put srun before the"
            " command, or ask for one task."
        )
    if run.processes not in (1, here, here * machines):
        raise DeepClusterError(
            f"--processes is {run.processes} but the launcher started {here} on each of {counted(machines, 'machine')}:"
            " leave --processes out."
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

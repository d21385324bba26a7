"""What a run takes before it is started: memory, disk, messages and hours.

Bytes and operations come from a dry run (dry_run.py). Hours are operations divided by an assumed speed, or steps that
are timed on this machine.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deepcluster.engine.clock import duration
from deepcluster.errors import counted
from deepcluster.estimate.dry_run import Counted, DryRun, count_backbone, number_of_clusters
from deepcluster.estimate.job import Job
from deepcluster.features.extract import IN_MEMORY
from deepcluster.seal import OWNED, SEALED

if TYPE_CHECKING:
    from rich.console import RenderableType

FEATURE_BATCH = 256
"""Images whose features are computed at once."""
PHASES = ("training", "clustering")


@dataclass(frozen=True)
class Machine:
    """Speeds of one process.

    Attributes:
        name: what it is.
        flops: floating-point operations a second in training; a third of what data sheets promise.
        step: seconds that a training step takes besides its operations.
        view: seconds for each view. decode: seconds for each image that is not cached.
        disk: bytes a second written.
        link, network: bytes a second between processes of one machine, and between machines.
        latency: seconds for a message from one process to another.
        resident: bytes of a process that holds nothing.
    """

    name: str
    flops: float
    step: float
    view: float
    decode: float
    disk: float
    link: float
    network: float
    latency: float
    resident: float


ASSUMED = {
    "cuda": Machine("a GPU with 300 TFLOP/s in bf16, such as an A100, and 16 cores for each",
                    flops=1e14, step=2e-3, view=2e-5, decode=5e-4, disk=1e9, link=1e11, network=1e10, latency=6e-5,
                    resident=1.5e9),
    "cpu": Machine("a core at 2.5 GHz with AVX-512 for each process",
                   flops=5e10, step=2e-3, view=4e-4, decode=8e-3, disk=3e8, link=1.5e9, network=1e9, latency=1e-4,
                   resident=8e8),
}  # fmt: skip
"""Round numbers from data sheets and common experience."""


@dataclass(frozen=True)
class Item:
    """Bytes of one thing.

    Attributes:
        when: "always", "training", "clustering" (with the features before it); of files "run", "scratch" (removed at
            the end), "cache" (shared by runs).
        place: "GPU", "memory" (the machine's) or "disk".
    """

    name: str
    bytes: float
    when: str
    place: str = "disk"


@dataclass(frozen=True)
class Stage:
    """A part of the work of one process: how often in the whole run, and what it takes each time."""

    name: str
    times: float
    flops: float
    sent: float
    messages: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes; memory and disk are those of its first process, which has the most.

    Attributes:
        title: what is estimated. note: where the hours come from.
        epochs: of the run.
    """

    title: str
    note: str
    epochs: int
    memory: list[Item]
    disk: list[Item]
    stages: list[Stage]

    @property
    def peak(self) -> dict[str, tuple[float, str]]:
        """Place -> the most bytes there at once, and when."""
        found = {}
        for place in dict.fromkeys(item.place for item in self.memory):
            here = [item for item in self.memory if item.place == place]
            sums = [(sum(item.bytes for item in here if item.when in ("always", phase)), phase) for phase in PHASES]
            found[place] = max(sums)
        return found

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds * stage.times for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        peak = {place: {"bytes": size, "when": when} for place, (size, when) in self.peak.items()}
        return dataclasses.asdict(self) | {"peak": peak, "hours": self.seconds / 3600}

    def tables(self) -> RenderableType:
        """For a terminal."""
        from rich.console import Group
        from rich.filesize import decimal
        from rich.table import Table

        parts: list[RenderableType] = [self.title, ""]
        for title, items in (("memory of a process", self.memory), ("disk", self.disk)):
            table = Table("what", "bytes", "when", "place", title=title, title_justify="left")
            for item in items:
                table.add_row(item.name, decimal(round(item.bytes)), item.when, item.place)
            parts.append(table)
        peaks = [f"{place}: at most {decimal(round(size))}, while {when}" for place, (size, when) in self.peak.items()]
        table = Table("stage", title="the whole run, each process", title_justify="left")
        for name in ("times", "operations", "sent", "messages", "time"):
            table.add_column(name, justify="right")
        for s in self.stages:
            counts = f"{s.flops * s.times:.2e}", decimal(round(s.sent * s.times)), f"{s.messages * s.times:,.0f}"
            table.add_row(s.name, f"{s.times:,.0f}", *counts, duration(s.seconds * s.times))
        table.add_section()
        table.add_row(counted(self.epochs, "epoch"), "", "", "", "", duration(self.seconds))
        return Group(*parts, table, f"{duration(self.seconds)} in all; {'; '.join(peaks)}", self.note)


def estimate(job: Job, *, measure: bool = False, data: Any = None, network: float | None = None) -> Estimate:
    """What a run takes.

    Args:
        job: the run.
        measure: time its steps on this machine.
        data: images to train on while measuring; None = made-up ones.
        network: bytes a second between machines; None = what is assumed.

    Raises:
        DeepClusterError: settings or numbers that no run can have.
    """
    job.check()
    run, processes = job.run, job.processes
    machine = ASSUMED[job.device]
    if network is not None:
        machine = dataclasses.replace(machine, network=network)
    net, dry = count_backbone(run), DryRun(run, job.part, processes)
    value = dry.at(job.images, job.share, job.clusters)
    wire = machine.link if processes <= job.per_machine else min(machine.link, machine.network)

    def waiting(sent: float, messages: float) -> float:
        # halves of a sum are exchanged in rounds between processes 1, 2, 4, … apart, and back again
        return sent / wire + messages * machine.latency * 2 * math.ceil(math.log2(processes))

    ring = 2 * (processes - 1) / processes  # what each sends for a sum over all
    sent = ring * value["shared"] + dry.bytes_per_step
    messages = math.ceil(value["shared"] / 25e6) + 1 if processes > 1 else 0
    training = net.training + value["averaged"] * net.forward
    step_flops = job.part * training + value["step_flops"]
    sums = ring * 8 * job.clusters * dry.width * dry.rounds if number_of_clusters(run) else 0.0
    labels = 12 * job.images * (processes > 1)

    reading = 0.0 if job.cached else machine.decode
    crowd = min(job.per_machine, processes) if job.device == "cpu" else 1  # a machine's processes share its cores
    if measure:
        from deepcluster.estimate.timing import time_steps

        image, feature, clustering, few = time_steps(job, dry, data)
        operations = training + dry.at(job.images, job.share, few)["step_flops"] / job.part
        step = crowd * job.part * max(image * step_flops / job.part / operations, reading)
        feature, refresh = crowd * max(feature, reading), crowd * clustering
        note = f"Hours from steps timed on this machine with {torch.get_num_threads()} threads; messages are assumed."
    else:
        images = job.part * max((training / machine.flops) + len(net.views) * machine.view, reading)
        step = machine.step + images + value["step_flops"] / machine.flops
        feature = max(net.forward / machine.flops + machine.view, reading)
        refresh = value["refresh_flops"] / machine.flops
        note = f"NOT MEASURED: hours assumed for {machine.name}. With --measure steps are timed on this machine."
    due = sum(dry.method.due(each, 100) for each in range(100 * run.epochs))
    passes, clusterings = dry.later.counts(due)
    saves = run.epochs * max(1.0, job.steps * step / 60 / run.save_minutes if run.save_minutes else 1.0)
    stages = [
        Stage("training steps", run.epochs * job.steps, step_flops, sent, messages, step + waiting(sent, messages)),
        Stage("features of all images", passes, job.share * net.forward, 0, 0, job.share * feature),
        Stage("clustering", clusterings, value["refresh_flops"], sums + labels, dry.rounds + 3 if processes > 1 else 0,
              refresh + waiting(sums + labels, dry.rounds + 3)),
        Stage("checkpoints", saves, 0, 0, 0, value["checkpoint"] / machine.disk),
    ]  # fmt: skip
    where = f"{counted(processes, 'process')} on {counted(math.ceil(processes / job.per_machine), 'machine')}"
    title = (
        f"{counted(job.images, 'image')}, {counted(job.clusters, 'cluster')}, {run.backbone.name}, {run.image_size}"
        f" px\n{where},"
        f" {job.device}, {32 // job.half}-bit, batches of {job.batch:,} ({counted(job.steps, 'step')} an epoch)"
    )
    return Estimate(title, note, run.epochs, memory(job, net, dry, value, machine), disk(job, net, value), stages)


def memory(job: Job, net: Counted, dry: DryRun, value: dict[str, float], machine: Machine) -> list[Item]:
    """What a process holds."""
    table, whitened = 4.0 * job.share * net.dim, 4.0 * job.share * dry.width
    widest = 2 * net.widest / job.half + 3 * 12 * job.run.image_size**2
    here, gpu = "memory", "GPU" if job.device == "cuda" else "memory"
    items = [
        Item("the process itself", machine.resident, "always", here),
        Item("network, classifiers, labels, memories", value["state"], "always", gpu),
        Item("optimizers", value["moments"], "always", gpu),
        Item("index and order of the images", 40.0 * job.images, "always", here),
        Item("decoded images", job.images * job.picture * (job.cached == "memory"), "always", here),
        Item("gradients", value["shared"] + value["own"], "training", gpu),
        Item("activations", (job.part * net.saved + value["step_saved"]) / job.half, "training", gpu),
        Item("batches made ahead", 3.0 * job.part * net.view_bytes, "training", gpu),
        Item("features", table * (table <= IN_MEMORY), "clustering", here),
        Item("activations and batches made ahead", FEATURE_BATCH * widest, "clustering", gpu),
        Item("whitened features", 1.25 * whitened, "clustering", gpu),
        Item("whitened features, copied", whitened * (gpu != here), "clustering", here),
        Item("sums and centroids", 28.0 * min(job.clusters, job.share) * dry.width, "clustering", gpu),
        Item("new labels and distances", 28.0 * job.images + 44.0 * job.share, "clustering", here),
    ]
    return [item for item in items if item.bytes >= 1]


def disk(job: Job, net: Counted, value: dict[str, float]) -> list[Item]:
    """Files of the run."""
    kept = job.run.epochs // job.run.keep_every if job.run.keep_every else 0
    table = 4.0 * job.share * net.dim
    items = [
        Item("last.ckpt", value["checkpoint"], "run"),
        Item("previous.ckpt", value["checkpoint"], "run"),
        Item("last.ckpt while it is replaced", value["checkpoint"], "scratch"),
        Item(f"epoch-NNNN.ckpt, {kept} of them", value["checkpoint"] * kept, "run"),
        Item("model.safetensors", value["model"], "run"),
        Item("assignment.npy, distance.npy", 12.0 * job.images + 2 * (128 + OWNED + SEALED), "run"),
        Item("features, memory-mapped", table * (table > IN_MEMORY), "scratch"),
        Item("decoded images", job.images * job.picture * (job.cached == "disk"), "cache"),
    ]
    return [item for item in items if item.bytes >= 1]

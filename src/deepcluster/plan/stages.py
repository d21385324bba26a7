"""What a run does, stage by stage: floating-point operations, bytes told to other processes, and seconds.

Each function is one stage of one process, the first; all processes do as much, or wait for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from deepcluster.clustering.covariance import EXACT_DIM
from deepcluster.clustering.kmeans import INT8_FROM
from deepcluster.distributed import MESSAGE
from deepcluster.features.extract import IN_MEMORY
from deepcluster.plan.constants import Constants, worth
from deepcluster.plan.job import Job
from deepcluster.plan.memory import (
    BATCH,
    LABEL,
    checkpoint_bytes,
    classifier_numbers,
    logits,
    neck_numbers,
    own_numbers,
    table_bytes,
)


@dataclass(frozen=True)
class Wire:
    """How processes tell each other things: around a ring, as torch's backends do with much.

    Args:
        processes: how many. per_machine: of them on one machine.
    """

    processes: int
    per_machine: int
    constants: Constants

    def seconds(self, sent: float, messages: float) -> float:
        """For `messages` in which this process sends `sent` bytes in all."""
        c, within = self.constants, self.processes <= self.per_machine
        speed = c.link if within else min(c.link, c.network)
        wait = c.message if within else c.network_message
        return sent / speed + messages * wait * math.ceil(math.log2(self.processes)) if self.processes > 1 else 0.0


@dataclass
class Told:
    """Bytes that this process sends, and in how many messages."""

    processes: int
    sent: float = 0.0
    messages: float = 0.0

    def sum(self, size: float, times: float = 1) -> Told:
        """`size` bytes are added up over all processes, and each gets the sum."""
        return self._add(2 * (self.processes - 1) / self.processes * size, times)

    def gather(self, size: float, times: float = 1) -> Told:
        """Each gets what all have, `size` bytes together; their lengths are told before."""
        self.sum(8 * self.processes, times)
        return self._add((self.processes - 1) / self.processes * size, times)

    def copy(self, size: float, times: float = 1) -> Told:
        """All get `size` bytes of one."""
        return self._add(size, times)

    def _add(self, sent: float, times: float) -> Told:
        if self.processes > 1:
            self.sent += sent * times
            self.messages += times
        return self


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        name: what is done. times: how often in an epoch; 0 = once, before the first step.
        flops: floating-point operations of one process, each time. told: what it tells the others.
        parts: seconds by cause, each time.
    """

    name: str
    times: float
    flops: float
    told: Told
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Each time."""
        return sum(self.parts.values())


def stages(job: Job, c: Constants) -> list[Stage]:
    """What an epoch is made of; once before the first step where clusters are made only then."""
    wire = Wire(job.processes, job.per_machine, c)
    each = job.refreshes
    work = [training(job, c, wire), features(job, c, wire, each)]
    if job.width:
        work.append(whitening(job, c, wire, each))
    work += [grouping(job, c, wire, each), order(job, c)]
    work.append(checkpoints(job, c, wire, sum(stage.seconds * stage.times for stage in work)))
    return work


def training(job: Job, c: Constants, wire: Wire) -> Stage:
    """All steps of an epoch."""
    net, steps, shown = job.network, job.steps, job.part * job.views
    speed, _ = c.speed(net.name)
    head = head_flops(job)
    told = step_told(job)
    compute = shown * net.training / speed.train + head / c.matmul + logits(job) * c.logit
    if job.method == "odc":
        compute += job.batch * c.member + 2 * job.batch * job.k * job.feature_dim / c.matmul
    stepped = net.parameters + neck_numbers(job) + own_numbers(job)
    update = stepped * c.update + c.step
    made = making(job, c, shown, speed.view, job.part, compute + update)
    parts = {
        "compute": compute,
        "optimizer": update,
        "images": made,
        "messages": wire.seconds(told.sent, told.messages),
    }
    told = Told(job.processes, told.sent * steps, told.messages * steps)
    return Stage(
        "training", 1.0, steps * (shown * net.training + head), told, {name: steps * s for name, s in parts.items()}
    )


def head_flops(job: Job) -> float:
    """Operations of this process's classifiers, and of ODC's neck, in a step: forward, and twice as many back."""
    if job.method == "deepercluster":
        return 3 * 2 * logits(job) * job.network.dim
    numbers = (job.hidden * (job.network.dim + job.feature_dim)) if job.method == "odc" else 0
    width = job.feature_dim if job.method == "odc" else job.network.dim
    return 3 * 2 * (logits(job) * width + job.part * job.views * numbers)


def making(job: Job, c: Constants, views: int, seconds: float, images: int, compute: float) -> float:
    """Seconds beyond `compute` that it takes to make `views` views of `images` images, each `seconds` of a thread.

    A thread beside the computation makes them; where no core is free for it, it takes its time from the computation.
    Images that are not kept decoded are decoded by as many cores as there are for a process.
    """
    cores = max(1.0, c.cores / job.per_machine)
    decoding = images * c.decode / cores if job.cached == "no" else 0.0
    if job.device == "cpu" and cores < c.threads + 1:
        return views * seconds / min(c.threads, cores) + decoding
    return max(0.0, max(views * seconds, decoding) - compute)


def step_told(job: Job) -> Told:
    """What a step tells: gradients, batch-norm's statistics, and what the method shares of the batch."""
    told, net = Told(job.processes), job.network
    shared = net.parameters + neck_numbers(job)
    shared += classifier_numbers(job) if job.method != "deepercluster" else job.supers * job.turns * (net.dim + 1)
    told.sum(4 * shared / max(1, -(-4 * shared // MESSAGE)), max(1, -(-4 * shared // MESSAGE)))
    told.sum(8).sum(16)  # whether there is an image; whether to stop or to save
    for channels in (*net.norms, *((job.hidden,) if job.method == "odc" else ())) if job.sync_batchnorm else ():
        told.gather(4 * job.processes * (2 * channels + 1), job.views)
        told.sum(4 * 2 * channels, job.views)
    if job.method == "deepcluster":
        told.sum(4, job.views * job.clusterings)
    if job.method == "deepercluster":
        number = 2 if job.half else 4
        told.gather(job.batch * LABEL, 2).gather(job.batch, job.views)
        told.gather(job.batch * net.dim * number, job.views).sum(job.batch * net.dim * number, job.views)
    if job.method == "odc":
        told.sum(4, job.views).gather(job.batch * LABEL)
        told.gather(job.batch * job.feature_dim * 4, job.views).sum(job.batch * job.feature_dim * 4, job.views)
    return told


def features(job: Job, c: Constants, wire: Wire, times: float) -> Stage:
    """Every image described once."""
    speed, _ = c.speed(job.network.name)
    flops = job.share * job.network.forward
    compute = flops / speed.describe
    told = Told(job.processes).gather(4 * job.processes).sum(16, job.share / BATCH)
    written = table_bytes(job) / c.write if table_bytes(job) > IN_MEMORY else 0.0
    parts = {
        "compute": compute,
        "images": making(job, c, job.share, speed.plain, job.share, compute),
        "disk": written,
        "messages": wire.seconds(told.sent, told.messages),
    }
    return Stage("features", times, flops, told, parts)


def whitening(job: Job, c: Constants, wire: Wire, times: float) -> Stage:
    """Covariance, directions, and every row brought onto them."""
    rows, dim, width = job.share, job.network.dim, job.width
    covariance, project = 2 * rows * dim**2, 2 * rows * dim * width
    scatter = c.scatter64 if dim <= EXACT_DIM else c.scatter32
    told = Told(job.processes).sum(8 * dim**2).sum(8 * dim, 2)
    read = 2 * table_bytes(job) / c.read if table_bytes(job) > IN_MEMORY else 0.0
    parts = {
        "covariance": rows * (dim * c.read_row + dim**2 * scatter),
        "directions": directions(dim, width, c),
        "projection": rows * width * (dim * c.project + c.project_row),
        "disk": read,
        "messages": wire.seconds(told.sent, told.messages),
    }
    return Stage("whitening", times, covariance + 9 * dim**3 + project, told, parts)


def directions(dim: int, width: int, c: Constants) -> float:
    """Seconds for the eigenvectors; a few of many are found by products (whitening.main_directions)."""
    few = dim > EXACT_DIM and width * 8 <= dim
    return dim**2 * width * c.krylov if few else dim**3 * c.eigen


def grouping(job: Job, c: Constants, wire: Wire, times: float) -> Stage:
    """Clusters of all rows, on one level or two, and what is told of them."""
    rows, width = job.share, job.grouped_width
    if job.grouping == "pic":
        return _pic(job, c, wire, times)
    levels: list[tuple[float, int, int]] = [(rows, job.k, job.clusterings)]
    if job.supers > 1:
        levels = [(rows, job.supers, 1), (rows / job.supers, job.per_super, job.supers)]
    told = Told(job.processes)
    told.gather(job.images * LABEL, 1 + (job.method == "deepcluster")).gather(job.images * LABEL, job.clusterings)
    told.gather(job.images * 4, job.clusterings)
    flops, parts = 0.0, dict.fromkeys(("search", "update"), 0.0)
    for count, k, runs in levels:
        told.sum(4 * k * width, runs).sum(8 * (k * width + k + 1), runs * job.rounds).sum(8 * k, runs)
        flops += runs * 2 * count * k * width * (job.rounds + 1)
        search, update = kmeans_seconds(count, k, width, job.rounds, c, per_cluster=count * job.processes / k)
        parts["search"] += runs * search
        parts["update"] += runs * update
    parts["messages"] = wire.seconds(told.sent, told.messages)
    return Stage("k-means", times, flops, told, parts)


def kmeans_seconds(
    rows: float, k: int, width: int, rounds: int, c: Constants, per_cluster: float | None = None
) -> tuple[float, float]:
    """Seconds of one k-means of this process's `rows`: to find the nearest centroids, and all else.

    Args:
        per_cluster: rows of all processes for each cluster; None = these alone.
    """
    last = rows * c.plain.seconds(k, width)
    if c.screened is not None and k >= INT8_FROM:
        search = rows * c.screened.seconds(k, width) * worth(c, rounds, per_cluster or rows / k) + last
    else:
        search = last * (rounds + 1)
    return search, rows * width * c.begin + rounds * k * width * c.round


def _pic(job: Job, c: Constants, wire: Wire, times: float) -> Stage:
    """The first process finds the neighbors of all rows; what follows is short beside it."""
    n, width = job.images, job.grouped_width
    told = Told(job.processes).gather(n * width * 4).copy(n * LABEL).gather(n * LABEL, 2).gather(n * 4)
    parts = {"search": n * c.plain.seconds(n, width), "messages": wire.seconds(told.sent, told.messages)}
    return Stage("PIC", times, 2.0 * n * n * width, told, parts)


def order(job: Job, c: Constants) -> Stage:
    """The order of an epoch's images, and what is compared with the last clustering; each process does all of it."""
    seconds = job.images * c.order + job.k * c.order_cluster
    return Stage("order of images", 1.0, 0.0, Told(job.processes), {"compute": seconds})


def checkpoints(job: Job, c: Constants, wire: Wire, epoch: float) -> Stage:
    """Those of an epoch of so many seconds; the first process writes, and the others send it what is theirs."""
    size, told = checkpoint_bytes(job), Told(job.processes)
    if job.method == "deepercluster":
        apart = 4 * (classifier_numbers(job) - job.supers * job.turns * (job.network.dim + 1))
        told.copy(apart / (job.supers * job.turns), job.supers * job.turns * (1 + job.head_moments))
    if job.method == "odc":
        told.gather(job.images * job.feature_dim * 4)
    count = 1.0 + (int(epoch / 3600 / job.save_hours) if job.save_hours > 0 else 0)
    return Stage(
        "checkpoints", count, 0.0, told, {"disk": size / c.write, "messages": wire.seconds(told.sent, told.messages)}
    )

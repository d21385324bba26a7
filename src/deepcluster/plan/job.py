"""A run in numbers: what a plan reckons with. Beside engine/build.py and engine/train.py the one place that opens a
`TrainRun`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepcluster.config import TrainRun
from deepcluster.data.cache import SMALL
from deepcluster.distributed import ProcessGroup
from deepcluster.engine.build import check, draw_backbone
from deepcluster.engine.subject import short_side
from deepcluster.errors import DeepClusterError
from deepcluster.methods.params import DeepClusterParams, DeeperClusterParams, ODCParams
from deepcluster.plan.network import Network, look

GIGA = 10**9


@dataclass(frozen=True)
class Job:
    """What is to be done, and by how many.

    Attributes:
        images: N. processes: W. per_machine: processes on each machine. machines: how many of them.
        device: "cpu" or "cuda". half: training and descriptions compute in 16 bits.
        method: "deepcluster", "odc" or "deepercluster". grouping: "kmeans" or "pic".
        k: K clusters. supers: super-clusters. turns: classes per cluster. clusterings: k-means each time.
        width: P, of the whitened features; 0 = they are grouped as the neck makes them.
        rounds: of k-means. refreshes: clusterings in an epoch; 0 = one before the first step alone.
        batch, epochs, views: of training. side, view_side: pixels of descriptions and of training views.
        moments: numbers an optimizer keeps for each that is trained; head_moments: of the classifiers.
        averaged: a running average of the network is kept.
        feature_dim, hidden: ODC's neck. sync_batchnorm: batch-norm sees the whole batch.
        picture: bytes of a decoded image. cached: "memory", "disk" or "no".
        save_hours: hours between two checkpoints within an epoch. keep_every: epochs between two that are kept.
        network: the backbone in numbers.
    """

    images: int
    processes: int
    per_machine: int
    device: str
    half: bool
    method: str
    grouping: str
    k: int
    supers: int
    turns: int
    clusterings: int
    width: int
    rounds: int
    refreshes: float
    batch: int
    epochs: int
    views: int
    side: int
    view_side: int
    moments: int
    head_moments: int
    ema_backbone: bool
    feature_dim: int
    hidden: int
    sync_batchnorm: bool
    picture: int
    cached: str
    save_hours: float
    keep_every: int
    network: Network

    @property
    def alone(self) -> bool:
        """One process only."""
        return self.processes == 1

    @property
    def machines(self) -> int:
        """Machines, the last perhaps not full."""
        return -(-self.processes // self.per_machine)

    @property
    def share(self) -> int:
        """Images whose features are one process's: of the first, which has the most."""
        return ProcessGroup(0, self.processes).row_range(self.images)[1]

    @property
    def part(self) -> int:
        """Images of each batch that are one process's."""
        return -(-self.batch // self.processes)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return max(1, round(self.images / self.batch))

    @property
    def grouped_width(self) -> int:
        """Width of the rows that k-means sees."""
        return self.width or self.feature_dim

    @property
    def heads(self) -> int:
        """DeeperCluster: sub-classifiers of the process that has the most."""
        return -(-self.supers * self.turns // self.processes)

    @property
    def per_super(self) -> int:
        """Sub-clusters in each super-cluster."""
        return self.k // self.supers


def job_of(run: TrainRun, *, images: float, per_machine: int = 0, draws: Any = None, device: str | None = None) -> Job:
    """What `run` does with so many images; its `processes` are those of all machines.

    Args:
        per_machine: processes on each machine; 0 = up to eight.
        device: "cpu" or "cuda"; None = the run's, of which this machine need have none.
        draws: makes the backbone; None = the run's own.

    Raises:
        DeepClusterError: numbers that no run can have.
    """
    check(run)
    p: Any = run.method
    d, processes = run.data, run.processes
    if images != int(images) or images < 2:
        raise DeepClusterError(f"--images is {images:g}: give a whole number of at least 2, such as 1e6.")
    if per_machine < 0:
        raise DeepClusterError(f"--per-machine is {per_machine}: give the processes of one machine, such as 8.")
    n, k = int(images), _clusters(run, int(images))
    batch = min(run.batch_size, n)
    if batch < processes:
        raise DeepClusterError(
            f"Batches of {batch} images cannot be shared by {processes} processes: raise --batch-size, or plan fewer"
            " processes."
        )
    device = device or _device(run)
    network = look(draws or (lambda: draw_backbone(run)), d.view_size or run.image_size)
    stored = _picture(run.image_size)
    return Job(
        images=n,
        processes=processes,
        per_machine=min(per_machine or 8, processes),
        device=device,
        half=run.precision in ("bf16", "16") or (run.precision == "auto" and device == "cuda"),
        k=k,
        rounds=p.iterations,
        batch=batch,
        epochs=run.epochs,
        views=d.views,
        side=run.image_size,
        view_side=d.view_size or run.image_size,
        moments=2 if run.optimizer.name == "adamw" else int(run.optimizer.momentum > 0),
        sync_batchnorm=run.sync_batchnorm,
        picture=stored,
        cached="memory" if n * stored <= SMALL else "disk" if n * stored <= d.cache_gb * GIGA else "no",
        save_hours=run.save_minutes / 60,
        keep_every=run.keep_every,
        network=network,
        **_method(run, network),
    )


def _method(run: TrainRun, network: Network) -> dict[str, Any]:
    """What depends on the method, by name."""
    p: Any = run.method
    adam = run.optimizer.name == "adamw"
    values: dict[str, Any] = {
        "grouping": "kmeans",
        "supers": 1,
        "turns": 1,
        "clusterings": 1,
        "ema_backbone": False,
        "feature_dim": network.dim,
        "hidden": 0,
        "head_moments": 2 if adam else 0,  # the papers' classifiers have no momentum, but for DeeperCluster's
    }
    if isinstance(p, ODCParams):
        width = 0 if p.start == "neck" else network.dim
        own: dict[str, Any] = {"method": "odc", "width": width, "refreshes": 0.0}
        return values | own | {"feature_dim": p.feature_dim, "hidden": p.hidden}
    refreshes = 0.0 if isinstance(p, DeeperClusterParams) and p.k == 1 else 1 / p.reassign
    values |= {"width": min(p.whiten or network.dim, network.dim), "refreshes": refreshes}
    if isinstance(p, DeeperClusterParams):
        moments = 2 if adam else int(run.optimizer.momentum > 0)
        own = {"method": "deepercluster", "supers": p.super_clusters, "turns": 4 if p.rotations else 1}
        return values | own | {"head_moments": moments}
    own = {"method": "deepcluster", "grouping": _grouping(p), "clusterings": p.clusterings}
    return values | own | {"ema_backbone": p.ema_decay > 0}


def _clusters(run: TrainRun, images: int) -> int:
    p: Any = run.method
    k = p.k
    if isinstance(p, DeepClusterParams) and p.algorithm != "kmeans":
        k = max(1, images // 20)  # PIC finds their number itself: about so many on photos
    if k < 1:
        raise DeepClusterError(f"--method.k is {k}: give at least 1 cluster.")
    if k > images:
        raise DeepClusterError(f"{images} images cannot make {k} clusters: plan at most {images} (--k).")
    if isinstance(p, DeeperClusterParams) and (p.super_clusters < 1 or k % p.super_clusters):
        raise DeepClusterError(
            f"{k} clusters do not divide into {p.super_clusters} super-clusters: make --k a multiple of"
            " --method.super-clusters."
        )
    if not isinstance(p, ODCParams) and (p.reassign <= 0 or p.whiten < 0):
        raise DeepClusterError("--method.reassign must be more than 0 and --method.whiten at least 0.")
    return k


def _grouping(p: DeepClusterParams) -> str:
    if p.algorithm == "pic":
        return "pic"
    if p.algorithm == "custom":
        raise DeepClusterError(
            "A clusterer that is handed over in Python takes as long as it takes: plan k-means or PIC."
        )
    return "kmeans"


def _device(run: TrainRun) -> str:
    """The kind of device, which need not be in this machine."""
    kind = run.device.partition(":")[0]
    if kind == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise DeepClusterError(f"There is no plan for --device {run.device}: plan for cpu or cuda.")
    return kind


def _picture(size: int) -> int:
    """Bytes of a decoded photo of 4 by 3; small images are kept as they are, which is taken for this size."""
    short = short_side(size)
    return size * size * 3 if short is None else short * round(short * 4 / 3) * 3

"""The run that is estimated: how many images, on how many processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepcluster.config import TrainRun
from deepcluster.data.cache import SMALL
from deepcluster.distributed import ProcessGroup
from deepcluster.engine.build import check
from deepcluster.engine.subject import short_side
from deepcluster.errors import DeepClusterError, counted
from deepcluster.estimate.dry_run import number_of_clusters


@dataclass(frozen=True)
class Job:
    """A run of so many images on so many processes."""

    run: TrainRun
    images: int
    processes: int
    per_machine: int
    device: str

    @property
    def share(self) -> int:
        """Images whose features are those of the first process."""
        return ProcessGroup(0, self.processes).row_range(self.images)[1]

    @property
    def batch(self) -> int:
        """Images of a training step, of all processes."""
        return min(self.run.batch_size, self.images)

    @property
    def part(self) -> int:
        """Images of a training step that are one process's."""
        return math.ceil(self.batch / self.processes)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return max(1, round(self.images / self.batch))

    @property
    def clusters(self) -> int:
        """K; a clusterer without one finds their number itself, about a twentieth of the images on photos."""
        return number_of_clusters(self.run) or max(1, self.images // 20)

    @property
    def half(self) -> int:
        """2 where activations have 16 bits, else 1."""
        precision = self.run.precision
        return 2 if precision in ("bf16", "16") or (precision == "auto" and self.device == "cuda") else 1

    @property
    def picture(self) -> int:
        """Bytes of a decoded photo of 4 by 3; tiny images are kept as they are."""
        short = short_side(self.run.largest_size)
        return 3 * self.run.largest_size**2 if short is None else 4 * short**2

    @property
    def cached(self) -> str:
        """Where decoded images are kept: "memory", "disk" or "" for nowhere."""
        size = self.images * self.picture
        return "memory" if size <= SMALL else "disk" if size <= self.run.data.cache_gb * 1e9 else ""

    def check(self) -> None:
        """Refuses numbers that no run can have."""
        check(self.run)
        if self.images < 2:
            raise DeepClusterError(f"--images is {self.images}: give a whole number of at least 2, such as 1e6.")
        if number_of_clusters(self.run) > self.images:
            raise DeepClusterError(
                f"{counted(self.images, 'image')} cannot form {self.clusters:,} clusters: give at most --k"
                f" {self.images}."
            )
        if self.batch < self.processes:
            raise DeepClusterError(
                f"Batches of {counted(self.batch, 'image')} cannot be shared by {self.processes} processes: raise"
                " --batch-size, or"
                " estimate for fewer processes."
            )

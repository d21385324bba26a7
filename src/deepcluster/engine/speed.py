"""How fast this machine trains a run, measured with a copy of it that is thrown away, and the epochs that then fit into
some minutes.

The copy has the run's own network, images, batches and processes, but other weights and clusters of made-up features;
the run itself begins afterwards, from its own seed, as if nothing had been measured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from deepcluster.config import TrainRun
from deepcluster.data.loader import Loader
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.engine import checkpoint
from deepcluster.engine.clock import clusterings_due, duration
from deepcluster.engine.deterministic import ViewsByPart
from deepcluster.engine.log import Screen
from deepcluster.engine.loop import TrainContext, TrainState, train_step
from deepcluster.engine.parallel import parallel_loss
from deepcluster.errors import counted
from deepcluster.features.extract import extract
from deepcluster.methods.base import Features, Method
from deepcluster.types import Clustering, TrainStep

ROWS = 8192
"""Images whose made-up features are clustered, at most, but for more clusters."""
STEPS = 50
"""Timed steps, at most."""
SECONDS = 3.0
"""How long each part is timed, where it is that slow."""
PATIENCE = 12.0
"""Seconds after which a single timed step has to do."""
MARGIN = 0.9
"""Share of the minutes that is planned; the rest is for a machine that slows down."""
MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Later:
    """What the clusterings after the first take; the first one computes features of all images and clusters them."""

    features: bool  # features of all images again
    clusters: bool  # a clustering
    last: bool  # the last one features, whatever those before it took

    @classmethod
    def of(cls, method: Method) -> Later:
        """Of a method that has clustered once."""
        return cls(asks_for_features(method.refresh), not method.online, asks_for_features(method.finish))

    def counts(self, due: int) -> tuple[int, int]:
        """Passes over all images, and clusterings, of a run in which so many clusterings are due before the last."""
        return 1 + (due - 1) * self.features + self.last, 1 + due * self.clusters


@dataclass(frozen=True)
class Speed:
    """Seconds that the parts of a run take."""

    step: float  # an optimizer step
    clustering: float  # a clustering
    features: float  # the features of all images
    epoch: float  # what else an epoch takes: its checkpoint, and the model's that comes with a clustering
    start: float  # what the first step takes besides, such as compiling
    later: Later

    def seconds(self, epochs: int, steps_per_epoch: int, due: int) -> float:
        """Of a run with so many clusterings besides the last one."""
        passes, clusterings = self.later.counts(due)
        steps = self.start + epochs * (steps_per_epoch * self.step + self.epoch)
        return steps + passes * self.features + clusterings * self.clustering + self.epoch

    @property
    def known(self) -> dict[str, float]:
        """Seconds of an optimizer step, of a clustering after the first, and of what else an epoch takes."""
        again = self.features * self.later.features + self.clustering * self.later.clusters
        return {"step": self.step, "clustering": again, "epoch": self.epoch}

    def epochs_within(self, seconds: float, method: Method, steps_per_epoch: int) -> tuple[int, float]:
        """The largest number of epochs whose whole run takes at most so many seconds, but at least one; and the seconds
        that it takes."""
        each = steps_per_epoch * self.step + self.epoch
        most = int(min(max(1.0, seconds / max(each, 1e-9)), MOST_EPOCHS))
        due = clusterings_due(method, most, steps_per_epoch)

        def whole(epochs: int) -> float:
            return self.seconds(epochs, steps_per_epoch, int(np.searchsorted(due, epochs)))

        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if whole(middle) <= seconds else (low, middle - 1)
        return low, whole(low)


def measure(make: Callable[[int], TrainContext], run: TrainRun, state: TrainState, images: int) -> Speed:
    """Times a few clusterings, features, training steps and a checkpoint of a run with so many images that can be
    decoded; `make` gives a new context with a method of n images, to be thrown away."""
    c, rows, clustering = time_clustering(make, int(getattr(run.method, "k", 0)), images)
    later = Later.of(c.method)
    first, last = c.group.row_range(images)
    features = (last - first) * time_features(c)
    step, start = time_steps(c, state.batch_size, rows)
    began, file = time.perf_counter(), c.folder / ".speed.part"
    checkpoint.save(file, c.method, c.optimizer, state, c.fabric)
    saving = time.perf_counter() - began
    if c.group.is_first:
        file.unlink(missing_ok=True)
    found = torch.tensor([step, clustering, features, saving, start], dtype=torch.float64)
    step, clustering, features, saving, start = c.group.max_(found).tolist()
    return Speed(step, clustering, features, saving, start, later)


def time_clustering(make: Callable[[int], TrainContext], k: int, images: int) -> tuple[TrainContext, int, float]:
    """Seconds of a clustering of so many images into k clusters (0 = as many as there are), from one or two of at most
    `ROWS` or 2 k; and a context that has clustered, and how many images it has."""
    rows = min(images, max(ROWS, 2 * k) if k else ROWS // 4)
    sizes = [rows] if rows == images else [rows // 2, rows]
    seconds = []
    for n in sizes:
        c = make(n)
        began = time.perf_counter()
        clustered(c.method, n, c.group)
        seconds.append(time.perf_counter() - began)
    if len(sizes) == 1:
        clustering = seconds[0]
    elif k:
        clustering = seconds[1] + max(0.0, seconds[1] - seconds[0]) / (sizes[1] - sizes[0]) * (images - rows)
    else:  # without a number of clusters every image is compared with all others
        clustering = seconds[1] * (images / rows) ** 2
    return c, rows, clustering


def time_steps(c: TrainContext, batch_size: int, n: int) -> tuple[float, float]:
    """Seconds of a training step of the method, which has clustered n images, and what the first one takes besides."""
    good = c.pixels.good
    order = c.method.order(STEPS * batch_size, torch.Generator().manual_seed(0)).numpy()
    loader = Loader(
        c.pixels,
        good[order % len(good)],
        batch_size=batch_size,
        transform=c.views if c.in_parts is None else ViewsByPart(c.views),
        device=c.fabric.device,
        empty=True,
        group=c.group,
    )
    compute_loss, summed = parallel_loss(c.method, c.group, c.run.deterministic)
    c.method.train()
    began, steps, first = time.perf_counter(), 0, 0.0
    for number, batch in enumerate(loader):
        # the method knows images 0 to n - 1; those whose pixels are shown stand for them
        whole = order[number * batch_size : (number + 1) * batch_size]
        drawn = dataclasses.replace(batch, index=torch.from_numpy(whole)[batch.position])
        if c.group.any(len(drawn.index) > 0):
            train_step(c, compute_loss, drawn, TrainStep(number, STEPS, STEPS), summed).item()  # waits for the device
        elapsed = time.perf_counter() - began
        if number == 0:
            began, first = time.perf_counter(), elapsed
            continue
        steps = number
        if c.group.any(elapsed > SECONDS and (steps >= 2 or elapsed > PATIENCE)):
            break
    each = (time.perf_counter() - began) / max(1, steps) if steps else first
    return each, max(0.0, first - each)


def time_features(c: TrainContext) -> float:
    """Seconds of an image's features; each process extracts those of a few images by itself."""
    good = c.pixels.good

    def seconds(images: int) -> float:
        began = time.perf_counter()
        extract(
            c.method.feature_network,
            c.pixels,
            device=c.fabric.device,
            only=good[:images],
            size=c.run.data.clustered_size,
            autocast=c.fabric.autocast,
        )
        return time.perf_counter() - began

    few = min(4, len(good))
    seconds(few)
    fixed, images = seconds(few), few
    while True:
        images = min(4 * images, len(good))
        taken = seconds(images)
        if images in (few, len(good)) or taken > SECONDS / 4 or images >= 1024:
            return max(0.0, taken - fixed) / (images - few) if images > few else taken / images


def clustered(method: Method, n: int, group: ProcessGroup = SINGLE) -> Clustering | None:
    """The clustering of made-up features of n images by a new method."""
    dim = method.backbone.dim
    features = np.random.default_rng(0).standard_normal((n, dim), np.float32)
    features /= (1 + np.arange(dim, dtype=np.float32) / 8) ** 1.5  # real ones have few main directions
    own = slice(*group.row_range(n))
    return method.refresh(lambda: Features(np.arange(n)[own], features[own]), (0,))


def within_minutes(
    run: TrainRun, speed: Speed, over: float, method: Method, steps_per_epoch: int, screen: Screen
) -> TrainRun:
    """The run with as many epochs as fit into its minutes, of which `over` seconds are over; and tells how many."""
    minutes = run.minutes or 0.0
    epochs, seconds = speed.epochs_within(60 * MARGIN * minutes - over, method, steps_per_epoch)
    if over + seconds > 60 * minutes:
        screen.warn(
            f"--minutes {minutes:g} is too short for a single epoch, which is trained all the same: the run will end in"
            f" about {duration(seconds)}. A smaller --image-size or another --backbone.name is faster."
        )
    else:
        one, clustering = duration(steps_per_epoch * speed.step + speed.epoch), duration(speed.known["clustering"])
        screen.print(
            f"about {duration(seconds)} left: {counted(epochs, 'epoch')} of {one}, each clustering {clustering}"
        )
    return dataclasses.replace(run, epochs=epochs)


def asks_for_features(refresh: Callable[..., object]) -> bool:
    """Whether a method's `refresh` or `finish` computes features of all images, once it has clustered."""

    class Asked(Exception):
        pass

    def extract_features() -> Features:
        raise Asked

    try:
        refresh(extract_features, (1,))
    except Asked:
        return True
    return False

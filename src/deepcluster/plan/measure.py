"""Takes a machine's constants by running the package's own code on made-up numbers, for about a minute.

Other programs disturb every clock: each figure is the least of several.
"""

from __future__ import annotations

import functools
import io
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import nnls
from torch import Tensor, nn

from deepcluster.clustering import assign_int8
from deepcluster.clustering.covariance import main_directions
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening
from deepcluster.config import TrainRun
from deepcluster.data.cache import StoredPixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.sampler import epoch_order
from deepcluster.data.transforms import CenterCrop, RandomViews
from deepcluster.distributed import ProcessGroup
from deepcluster.engine.build import draw_backbone, views_of
from deepcluster.engine.fabric import make_fabric, pick_device
from deepcluster.engine.optim import make_optimizer
from deepcluster.errors import DeepClusterError
from deepcluster.features.extract import folded
from deepcluster.models.backbone import Backbone
from deepcluster.plan.constants import Constants, NetworkSpeed, Rounds, Search, assumed, load
from deepcluster.plan.network import Network, look

Say = Callable[[str], None]
Clock = Callable[[], float]
GROUPS = 500  # groups of different size and width in the made-up rows
SHAPES = ((32768, 256, 64), (32768, 256, 256), (8192, 2048, 64), (16384, 4096, 256), (16384, 1024, 128))
"""Rows, clusters and width of the k-means that are measured."""
EIGHT_BIT = 12
"""How much faster than in float32 an 8-bit product can be at the best: four times by the width of the registers, and
three because less is written."""
SHARED = 16 << 20  # numbers in a large message


def measure(run: TrainRun, say: Say = lambda line: None, clock: Clock = time.perf_counter) -> Constants:
    """The constants of this machine, for one process with as many threads as torch now has.

    Args:
        run: its network and views are measured, on its device; its `processes`, if several, tell how fast they tell
            each other things (two of them do).
        say: told what is being measured.
        clock: seconds; `time.process_time` counts what other programs take from one thread out.

    Raises:
        DeepClusterError: a device that is not there.
    """
    device = torch.device(pick_device(run.device))
    if device.type not in ("cpu", "cuda"):
        raise DeepClusterError(f"There is no plan for --device {device.type}: measure cpu or cuda.")
    known, base, before = load(device.type), assumed(device.type), resident()
    timer = Timer(device, clock)
    say(f"measuring {processor(device)} with {torch.get_num_threads()} thread(s)")
    name, speed = network_speed(run, timer)
    say(f"{name}: training {speed.train:.2g} flop/s, descriptions {speed.describe:.2g} flop/s")
    values: dict[str, Any] = {**products(timer), **whitening(timer)}
    say(f"whitening: covariance {2 / values['scatter64']:.2g} flop/s")
    values |= kmeans(timer)
    say(f"k-means: float32 {2 / values['plain'].product:.2g} flop/s")
    values |= {**ordering(clock), **disk(clock), "decode": decoding(clock), "resident": before}
    lasting = ["network", "network_message", "member"]
    if device.type == "cpu" or torch.cuda.device_count() > 1:
        values["link"], values["message"] = link(device.type)
        say(f"between two processes: {values['link']:.2g} bytes/s, {values['message']:.2g} s a message")
    else:
        lasting += ["link", "message"]
    others = {} if known is None or not _alike(known, device) else dict(known.networks)
    return replace(
        base,
        device=device.type,
        name=processor(device),
        source=f"measured {datetime.now(timezone.utc):%Y-%m-%d}",
        threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        networks=others | {"any": speed, name: speed},
        assumed=tuple(lasting),
        **values,
    )


def _alike(known: Constants, device: torch.device) -> bool:
    """Whether what was measured before is of the same processor and threads."""
    return (known.name, known.threads) == (processor(device), torch.get_num_threads())


class Timer:
    """Measures work on one device; its clock counts seconds."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.device, self.clock = device, clock

    def __call__(self, work: Callable[[], object], repeats: int = 3, seconds: float = 1.5) -> float:
        """The least of up to `repeats` runs that take no more than about `seconds` together."""
        least, spent = float("inf"), 0.0
        for _ in range(repeats):
            self._wait()
            began = self.clock()
            work()
            self._wait()
            took = self.clock() - began
            least, spent = min(least, took), spent + took
            if spent + took > seconds:
                break
        return least

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def fit(
    columns: Sequence[Sequence[float]], seconds: Sequence[float], least: Sequence[float] | None = None
) -> list[float]:
    """Costs, none below `least` (0), with which the rows of `columns` add up to `seconds`, each to the same part of
    itself."""
    weight = 1 / np.asarray(seconds, float)
    scaled = np.asarray(columns, float) * weight[:, None]
    size = np.abs(scaled).max(0)  # the columns differ by many powers of ten
    known = np.zeros(len(size)) if least is None else np.asarray(least, float)
    found, _ = nnls(scaled / size, 1 - scaled @ known)
    return [float(cost) for cost in found / size + known]


def network_speed(run: TrainRun, timer: Timer) -> tuple[str, NetworkSpeed]:
    """Name and speed of the run's network, without classifier and optimizer, and of its views."""
    backbone = draw_backbone(run).to(timer.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = run.data.view_size or run.image_size
    counted = look(lambda: draw_backbone(run), side)
    fabric = make_fabric(replace(run, processes=1, device=str(timer.device)))
    train = _steps(backbone, counted, side, fabric.autocast, timer, run.batch_size)
    described = _descriptions(backbone, counted, run.image_size, fabric.autocast, timer)
    random_views, plain_views = _views(views_of(run, backbone), run.image_size, timer)
    return counted.name, NetworkSpeed(train, described, random_views, plain_views)


def _steps(backbone: Backbone, counted: Network, side: int, autocast: Any, timer: Timer, most: int) -> float:
    """Operations a second, forward and back."""
    batch = _fitting_batch(counted.training, timer, most)
    images = torch.randn(batch, 3, side, side, device=timer.device).to(memory_format=torch.channels_last)
    backbone.train()

    def step() -> None:
        with autocast():
            out = backbone(images)
        out.float().square().mean().backward()
        backbone.zero_grad()

    step()
    return counted.training * batch / timer(step, seconds=6)


def _descriptions(backbone: Backbone, counted: Network, side: int, autocast: Any, timer: Timer) -> float:
    batch = _fitting_batch(counted.forward, timer, 256)
    images = torch.randn(batch, 3, side, side, device=timer.device).to(memory_format=torch.channels_last)
    inference = folded(backbone).to(memory_format=torch.channels_last)

    def describe() -> None:
        with torch.inference_mode(), autocast():
            inference(images)

    describe()
    return counted.forward * batch / timer(describe, seconds=4)


def _fitting_batch(flops: int, timer: Timer, most: int) -> int:
    """Images that take a second or so: 2 at least, for batch-norm."""
    known = assumed(timer.device.type).networks["any"].train
    return int(min(max(2, known / flops), most, 256))


def _views(views: RandomViews, side: int, timer: Timer) -> tuple[float, float]:
    """Seconds of one thread for a training view, and for a plain view, of decoded images."""
    count = int(min(512, max(16, 2e6 / side**2)))
    short = side if side <= 64 else round(side * 256 / 224)
    shape = (short, round(short * 4 / 3) if side > 64 else short)
    pixels = _pixels(count, shape)

    def show(random: bool) -> None:
        batches = Loader(
            pixels,
            torch.arange(count),
            batch_size=min(64, count),
            transform=views if random else CenterCrop(side),
            device=timer.device,
            prefetch=0,
        )
        for _ in batches:
            pass

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return timer(lambda: show(True)) / count / views.groups[0].count, timer(lambda: show(False)) / count
    finally:
        torch.set_num_threads(threads)


def _pixels(count: int, shape: tuple[int, int]) -> StoredPixels:
    """Decoded pictures without a file."""
    height, width = shape
    numbers = np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)
    sizes = np.tile([height, width], (count, 1))
    return StoredPixels(open_images(numbers), numbers.reshape(-1), np.arange(count) * height * width * 3, sizes, {})


def products(timer: Timer) -> dict[str, float]:
    """Large products of a classifier, what its outputs cost, and an optimizer's step."""
    dim, k, batch = 512, 4096, 256
    head = nn.Linear(dim, k).to(timer.device)
    rows = torch.randn(batch, dim, device=timer.device, requires_grad=True)
    label = torch.randint(k, (batch,), device=timer.device)

    def whole() -> None:
        nn.functional.cross_entropy(head(rows), label).backward()

    def alone() -> None:
        torch.autograd.backward(head(rows), gradient)

    gradient = torch.randn(batch, k, device=timer.device)
    whole()
    multiplied = timer(alone)
    outputs = max(timer(whole) - multiplied, 0.02 * multiplied)
    numbers = [nn.Parameter(torch.randn(2048, 1024, device=timer.device)) for _ in range(4)]
    optimizer = make_optimizer(numbers, "sgd", lr=0.1, momentum=0.9, weight_decay=1e-5)
    for number in numbers:
        number.grad = torch.randn_like(number)
    optimizer.step()
    return {
        "matmul": 6 * batch * dim * k / multiplied,
        "logit": outputs / (batch * k),
        "update": timer(optimizer.step) / sum(number.numel() for number in numbers),
    }


def made_up(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """(rows, width) unit rows in groups of unequal size and width, as whitened features of photos are."""
    draw = np.random.default_rng(seed)
    centers = draw.standard_normal((GROUPS, width), dtype=np.float32)
    group = draw.choice(GROUPS, rows, p=draw.dirichlet(np.full(GROUPS, 2.0)))
    spread = draw.uniform(0.5, 1.5, GROUPS).astype(np.float32)
    x = centers[group] + spread[group, None] * draw.standard_normal((rows, width), dtype=np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def whitening(timer: Timer) -> dict[str, float]:
    """Covariance in float64 and float32, directions, and the rows brought onto them."""
    fitted, rows, solved = [], [], {}
    for count, dim in ((65536, 64), (32768, 256), (8192, 768)):  # more than a cache holds
        x = torch.randn(count, dim)
        solved[dim] = _solve(dim, dim, timer)
        fitted.append((count, dim, _whitened(x, dim, timer) - solved[dim]))
        rows.append((count, dim, _projected(x, dim, timer)))
    read, scatter64 = fit([(n * d, n * d * d) for n, d, _ in fitted], [max(s, 1e-9) for *_, s in fitted])
    project, project_row = fit([(n * d * d, n * d) for n, d, _ in rows], [s for *_, s in rows])
    wide = 1536
    x = torch.randn(4096, wide)
    few = _solve(wide, 64, timer)
    covariance = _whitened(x, 64, timer) - few
    return {
        "read_row": read,
        "scatter64": scatter64,
        "scatter32": max(covariance - 4096 * wide * read, 0.1 * covariance) / (4096 * wide**2),
        "eigen": solved[768] / 768**3,
        "krylov": few / (wide**2 * 64),
        "project": project,
        "project_row": project_row,
    }


def _solve(dim: int, width: int, timer: Timer) -> float:
    x = torch.randn(dim + 64, dim, dtype=torch.float64, device=timer.device)
    covariance = x.T @ x / dim
    return timer(lambda: main_directions(covariance, width))


def _whitened(x: Tensor, width: int, timer: Timer) -> float:
    return timer(lambda: Whitening(width, device=timer.device).fit(x))


def _projected(x: Tensor, width: int, timer: Timer) -> float:
    fitted = Whitening(width, device=timer.device).fit(x)
    return timer(lambda: fitted.transform(x))


def kmeans(timer: Timer) -> dict[str, Any]:
    """Searches in float32 and by 8-bit products, what rounds are worth, and the rest of k-means."""
    device = timer.device
    screened = device.type == "cpu" and assign_int8.supported()
    plain, whole = [], []
    # widths of whitened features; in much wider ones made-up rows are all alike and 8 bits cannot tell them apart
    for rows, k, width in SHAPES:
        x = made_up(rows, width)
        last = _assigned(x, k, timer)
        plain.append((rows, rows * k, rows * k * width, last))
        for rounds in (1, 2):
            took = max(_kmeans(x, k, rounds, timer) - last, 0.1 * last)
            # rounds on every row, the centroids of each round, and what is read and summed once
            full = (rounds * rows, rounds * rows * k, rounds * rows * k * width)
            whole.append((*full, rounds * k * width, rows * width, took))
    search = Search(*fit([each[:3] for each in plain], [each[3] for each in plain]))
    # Differences of times that other programs disturb: without a bound a product has come out as costing nothing.
    least = (0, 0, search.product / EIGHT_BIT if screened else 0, 0, 0)
    *costs, each_round, begin = fit([each[:5] for each in whole], [each[5] for each in whole], least)
    found = Search(*costs)
    seen = tuple(_rounds(*size, found, begin, timer) for size in ((1024, 20480), (256, 65536))) if screened else ()
    return {
        "plain": search,
        "screened": found if screened else None,
        "round": each_round,
        "begin": begin,
        "rounds": seen,
    }


def _kmeans(x: np.ndarray, k: int, rounds: int, timer: Timer) -> float:
    run = KMeans(k, max_iter=rounds, random_state=0, device=timer.device)
    return timer(lambda: run.fit(x), 4, seconds=3)


def _assigned(x: np.ndarray, k: int, timer: Timer) -> float:
    fitted = KMeans(k, max_iter=1, random_state=0, device=timer.device).fit(x)
    return timer(lambda: fitted.predict(x), 5)


def _rounds(k: int, rows: int, search: Search, begin: float, timer: Timer) -> Rounds:
    """What rounds are worth, in whole ones."""
    x, done = made_up(rows, 128, seed=1), (2, 5, 10, 20)
    rest = _assigned(x, k, timer) + rows * 128 * begin
    each = rows * search.seconds(k, 128)
    seen = [min(max(_kmeans(x, k, rounds, timer) - rest, 0) / each, rounds) for rounds in done]
    worth = np.maximum.accumulate(seen)
    return Rounds(rows / k, done, tuple(float(each) for each in worth))


def ordering(clock: Clock) -> dict[str, float]:
    """An epoch's order and the comparison of two assignments, by images and clusters."""
    from deepcluster.clustering.metrics import nmi, purity, size_stats

    timer, found = Timer(torch.device("cpu"), clock), []
    for images, k in ((200_000, 100), (50_000, 5_000), (200_000, 5_000)):
        label = np.random.default_rng(0).integers(0, k, images)
        other = np.where(np.arange(images) % 3 == 0, (label + 1) % k, label)

        def work(label: np.ndarray = label, other: np.ndarray = other, k: int = k) -> None:
            epoch_order(label, len(label), "uniform", torch.Generator().manual_seed(0))
            nmi(label, other)
            purity(label, other)
            size_stats(label, k)

        found.append((images, k, timer(work)))
    image, cluster = fit([(n, k) for n, k, _ in found], [s for *_, s in found])
    return {"order": image, "order_cluster": cluster}


def disk(clock: Clock) -> dict[str, float]:
    """Bytes a second written to the folder for temporary files, onto the disk, and read back."""
    block = np.random.default_rng(0).integers(0, 255, 64 << 20, dtype=np.uint8).tobytes()
    with tempfile.NamedTemporaryFile() as file:
        began = time.perf_counter()
        for _ in range(2):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        wrote = time.perf_counter() - began
        began = time.perf_counter()
        Path(file.name).read_bytes()
        return {"write": 2 * len(block) / wrote, "read": 2 * len(block) / (time.perf_counter() - began)}


def decoding(clock: Clock) -> float:
    """Seconds of one core for a photo of 500 x 375 pixels."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    photo, file = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), io.BytesIO()
    photo.save(file, "jpeg", quality=90)
    raw = file.getvalue()
    timer = Timer(torch.device("cpu"), clock)

    def decode() -> None:
        for _ in range(16):
            Image.open(io.BytesIO(raw)).convert("RGB").resize((341, 256), Image.Resampling.BILINEAR)

    return timer(decode) / 16


def resident() -> float:
    """Bytes that this process holds now, or a usual number where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) * 1024
    return assumed("cpu").resident


def processor(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def link(kind: str) -> tuple[float, float]:
    """Bytes a second and seconds a message between two processes of this machine."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
        asked.close()
        mp.spawn(_tell, (kind, port, folder), nprocs=2, join=True)
        large, small = np.loadtxt(Path(folder) / "seconds")
    # of two, each sends as many bytes as the sum has
    return 4 * SHARED / max(large - small, 1e-9), small


def _tell(rank: int, kind: str, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", init_method=where, rank=rank, world_size=2)
    group = ProcessGroup(rank, 2)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    timer, found = Timer(device), []
    for count, repeats in ((SHARED, 5), (2, 200)):
        values = torch.ones(count, device=device)
        group.sum_(values)
        found.append(timer(functools.partial(group.sum_, values), repeats, seconds=5))
    if rank == 0:
        np.savetxt(Path(folder) / "seconds", found)
    dist.barrier()
    dist.destroy_process_group()

"""What a machine can do: the constants that a plan's seconds come from, measured (measure.py) or assumed.

Each is the cost of one unit of some work in one process, so that a stage's seconds are sums of products.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcluster.data.cache_folder import cache_folder
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_json

VERSION = 1
"""Raised when what is stored changes its form or meaning."""


@dataclass(frozen=True)
class NetworkSpeed:
    """How fast one network trains and describes, by its name in `Constants.networks`.

    Attributes:
        train, describe: floating-point operations a second, forward and backward, and forward alone.
        view, plain: seconds of one thread for each training view and each plain view.
    """

    train: float
    describe: float
    view: float
    plain: float


@dataclass(frozen=True)
class Search:
    """Seconds for each row among K centroids of width P: row + K * (centroid + P * product)."""

    row: float
    centroid: float
    product: float

    def seconds(self, k: int, width: int) -> float:
        """For one row."""
        return self.row + k * (self.centroid + width * self.product)


@dataclass(frozen=True)
class Rounds:
    """How many whole rounds so many rounds of k-means are worth, when sure rows are passed over (8-bit products).

    Attributes:
        per_cluster: rows per cluster at which this was seen.
        done, worth: numbers of rounds, ascending, and the whole rounds that took as long.
    """

    per_cluster: float
    done: tuple[int, ...]
    worth: tuple[float, ...]

    def of(self, rounds: int) -> float:
        """Between the rounds seen by straight lines; beyond them as the last two go on."""
        if rounds <= self.done[0]:
            return rounds * self.worth[0] / self.done[0]
        for last in range(1, len(self.done)):
            if rounds <= self.done[last] or last == len(self.done) - 1:
                slope = (self.worth[last] - self.worth[last - 1]) / (self.done[last] - self.done[last - 1])
                return self.worth[last - 1] + slope * (rounds - self.done[last - 1])
        return self.worth[0]


@dataclass(frozen=True)
class Constants:
    """What one process of a machine can do.

    Attributes:
        device: "cpu" or "cuda"; name: of the processor. source: "assumed", or when and how it was measured.
        threads, cores: threads of the process that was measured, and cores of the machine.
        networks: speeds by the network's name; "any" stands for all others.
        matmul: operations a second of large products, in the precision of training.
        logit: seconds for each entry of a classifier's output, there and back.
        update: seconds for each trained number in an optimizer's step.
        step: seconds that a training step takes beside its numbers.
        read_row, scatter: seconds for each entry of the features, and for each of rows x D x D, of the covariance in
            float64 (up to EXACT_DIM) and in float32.
        eigen: seconds for each of D x D x D of the eigenvectors; krylov: for each of D x D x P where P is small.
        project: seconds for each of rows x D x P of the whitening, and for each of rows x P.
        plain: k-means' search in float32. screened: by 8-bit products, where the device has them.
        rounds: what rounds are worth by 8-bit products, at some numbers of rows per cluster.
        begin: seconds for each number of the table before the first round and in its sums.
        round: seconds for each number of the centroids in a round.
        order: seconds for each image to put an epoch in order and to compare assignments; order_cluster: for each
            cluster.
        member: seconds for each image of a step of ODC beside the products.
        decode: seconds of one core for each image to decode.
        write, read: bytes a second of the disk.
        link, message: bytes a second from process to process on one machine, and seconds for each message of any size.
        network, network_message: likewise between machines.
        resident: bytes of a process before it has anything.
    """

    device: str
    name: str
    source: str
    threads: int
    cores: int
    networks: dict[str, NetworkSpeed]
    matmul: float
    logit: float
    update: float
    step: float
    read_row: float
    scatter64: float
    scatter32: float
    eigen: float
    krylov: float
    project: float
    project_row: float
    plain: Search
    screened: Search | None
    rounds: tuple[Rounds, ...]
    begin: float
    round: float
    order: float
    order_cluster: float
    member: float
    decode: float
    write: float
    read: float
    link: float
    message: float
    network: float
    network_message: float
    resident: float
    assumed: tuple[str, ...] = field(default=())
    """Of a measured machine: the constants that were not measured on it."""

    def speed(self, network: str) -> tuple[NetworkSpeed, str]:
        """The speed of a network and whose it is: its own, or that of the one that stands for all others."""
        name = network if network in self.networks else "any"
        return self.networks[name], name

    def slower(self, factor: float) -> Constants:
        """The same machine with so much less of it for each process, where more processes than it has cores for share
        it."""
        if factor >= 1:
            return self
        slow = 1 / factor
        networks = {
            name: NetworkSpeed(s.train * factor, s.describe * factor, s.view * slow, s.plain * slow)
            for name, s in self.networks.items()
        }
        seconds = (
            *("logit", "update", "step", "read_row", "scatter64", "scatter32", "eigen", "krylov", "project"),
            *("project_row", "begin", "round", "order", "order_cluster", "member"),
        )
        changes: dict[str, Any] = {name: getattr(self, name) * slow for name in seconds}
        for name in ("plain", "screened"):
            search = getattr(self, name)
            if search is not None:
                changes[name] = Search(*(value * slow for value in dataclasses.astuple(search)))
        return dataclasses.replace(self, networks=networks, matmul=self.matmul * factor, **changes)


GPU = Constants(
    device="cuda",
    name="a GPU with 300 TFLOP/s in bf16 (such as an A100), eight to a machine of 128 cores",
    source="assumed",
    threads=16,
    cores=128,
    # a third of the peak in training, somewhat more in inference, as well-tuned convolutions reach
    networks={"any": NetworkSpeed(train=1.0e14, describe=1.2e14, view=2e-5, plain=1.5e-5)},
    matmul=1.5e14,
    logit=4e-11,
    update=1.6e-11,
    step=2e-3,
    read_row=1e-9,  # from the host's memory over PCIe
    scatter64=2 / 1.0e13,
    scatter32=2 / 1.5e13,
    eigen=6e-11,
    krylov=2e-11,
    project=2 / 1.5e13,
    project_row=1e-9,
    plain=Search(row=1e-8, centroid=1e-11, product=2 / 1.5e13),
    screened=None,
    rounds=(),
    begin=1e-9,
    round=5e-11,
    order=1e-6,
    order_cluster=1e-5,
    member=5e-6,
    decode=8e-3,
    write=1e9,
    read=2e9,
    link=1e11,
    message=3e-5,
    network=1e10,
    network_message=6e-5,
    resident=1.5e9,
)
"""Nobody measured this machine: round numbers from data sheets and common experience."""

CPU = Constants(
    device="cpu",
    name="one core at 2.5 GHz with AVX-512",
    source="assumed",
    threads=1,
    cores=1,
    networks={"any": NetworkSpeed(train=5e10, describe=6e10, view=4e-4, plain=3e-4)},
    matmul=7e10,
    logit=8e-9,
    update=1.5e-9,
    step=2e-3,
    read_row=2e-9,
    scatter64=2 / 3.5e10,
    scatter32=2 / 7e10,
    eigen=5e-10,
    krylov=4e-9,
    project=2 / 6e10,
    project_row=3e-9,
    plain=Search(row=1e-6, centroid=1e-9, product=2 / 7e10),
    screened=Search(row=1.7e-6, centroid=1.1e-9, product=3.3e-12),
    rounds=(Rounds(20, (2, 5, 10, 20), (2.0, 4.5, 6.5, 8.5)), Rounds(200, (2, 5, 10, 20), (2.0, 4.8, 8.0, 13.0))),
    begin=6e-9,
    round=3e-8,
    order=6e-7,
    order_cluster=3e-5,
    member=2e-5,
    decode=8e-3,
    write=3e8,
    read=1e9,
    link=1.5e9,
    message=1e-4,
    network=1e9,
    network_message=2e-4,
    resident=4.5e8,
)
"""Nobody measured this machine: values of the order that such a core reaches."""


def assumed(device: str) -> Constants:
    """The constants to plan with where none were measured; "cpu" or "cuda"."""
    return GPU if device == "cuda" else CPU


def file_of(device: str) -> Path:
    """Where `deepcluster plan --measure` leaves what it measured."""
    return cache_folder() / f"plan-{device}.json"


def save(constants: Constants) -> Path:
    """Writes the constants of this machine, whole."""
    return write_json(file_of(constants.device), {"version": VERSION, "constants": dataclasses.asdict(constants)})


def load(device: str) -> Constants | None:
    """What was measured on this machine; None where nothing was, or by another version.

    Raises:
        DeepClusterError: the file is damaged.
    """
    file = file_of(device)
    try:
        values = json.loads(file.read_text())
        if values["version"] != VERSION:
            return None
        return from_dict(values["constants"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeepClusterError(
            f"{file} is damaged ({error}): delete it, or measure again by `deepcluster plan --measure`."
        ) from error


def from_dict(values: dict[str, Any]) -> Constants:
    """The inverse of `dataclasses.asdict`, for what JSON gives back."""
    values = dict(values)
    values["networks"] = {name: NetworkSpeed(**speed) for name, speed in values["networks"].items()}
    values["plain"] = Search(**values["plain"])
    values["screened"] = None if values["screened"] is None else Search(**values["screened"])
    values["rounds"] = tuple(
        Rounds(each["per_cluster"], tuple(each["done"]), tuple(each["worth"])) for each in values["rounds"]
    )
    values["assumed"] = tuple(values["assumed"])
    return Constants(**values)


def worth(constants: Constants, rounds: int, per_cluster: float) -> float:
    """Whole rounds that take as long as `rounds` rounds by 8-bit products, at so many rows per cluster: between the
    numbers measured by straight lines in their logarithm, outside them as at the nearest."""
    seen = sorted(constants.rounds, key=lambda each: each.per_cluster)
    if not seen:
        return float(rounds)
    below = [each for each in seen if each.per_cluster <= per_cluster]
    above = [each for each in seen if each.per_cluster > per_cluster]
    if not below or not above:
        return (above[0] if above else below[-1]).of(rounds)
    low, high = below[-1], above[0]
    part = math.log(per_cluster / low.per_cluster) / math.log(high.per_cluster / low.per_cluster)
    return (1 - part) * low.of(rounds) + part * high.of(rounds)

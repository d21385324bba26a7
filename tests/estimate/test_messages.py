"""The time for messages that an estimate adds, beside a simulation in which every process sends every message."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import pytest

from deepcluster.config import override
from deepcluster.estimate.estimate import ASSUMED, Estimate, Machine, estimate
from deepcluster.estimate.job import Job
from deepcluster.presets import find_preset


def all_reduce(ready: list[float], size: float, machine: Machine, per_machine: int) -> list[float]:
    """When each process has the sum of `size` bytes, of which it has its own at `ready`.

    In log2 W rounds processes that are 1, 2, 4, … apart exchange halves of what they still sum up; then, the other way
    round, what is summed. Both send at once, and begin when both are there.
    """
    distances = [1 << level for level in range(len(ready).bit_length() - 1)]
    rounds = [(distance, size / (2 * distance)) for distance in distances]
    for distance, sent in rounds + rounds[::-1]:
        done = []
        for process, time in enumerate(ready):
            other = process ^ distance
            speed = machine.link if process // per_machine == other // per_machine else machine.network
            done.append(max(time, ready[other]) + machine.latency + sent / speed)
        ready = done
    return ready


def simulated(computing: float, sent: float, messages: float, processes: int, machine: Machine, part: int) -> float:
    """Seconds from the begin to the last process's end: it computes, and then sums messages of equal sizes."""
    ready = [computing] * processes
    size = sent / messages / (2 * (processes - 1) / processes)  # what of it a process sends, see docs/plan.md
    for _ in range(int(messages)):
        ready = all_reduce(ready, size, machine, part)
    return max(ready)


@cache
def planned(processes: int) -> tuple[Estimate, Estimate]:
    """Of a thousand million images in a million clusters: on so many processes, and the same without waiting."""
    run = override(
        find_preset("deepercluster-resnet18").run, {"method.k": 1_000_000, "batch_size": 3072, "device": "cuda"}
    )
    job = Job(run, 10**9, processes, min(8, processes), "cuda")
    before = ASSUMED["cuda"]
    try:
        ASSUMED["cuda"] = dataclasses.replace(before, link=math.inf, network=math.inf, latency=0.0)
        alone = estimate(job)
    finally:
        ASSUMED["cuda"] = before
    return estimate(job), alone


@pytest.mark.parametrize("processes", [8, pytest.param(512, marks=pytest.mark.slow)])
def test_waiting_is_that_of_a_simulation(processes: int) -> None:
    machine, flat = ASSUMED["cuda"], ASSUMED["cuda"]
    if processes > 8:
        flat = dataclasses.replace(machine, link=machine.network)  # every message at the speed of the slowest
    told, alone = planned(processes)
    for name in ("training steps", "clustering"):
        stage, own = (next(s for s in each.stages if s.name == name) for each in (told, alone))
        work = own.seconds, stage.sent, stage.messages, processes
        assert stage.messages >= 1 and own.seconds < stage.seconds
        assert stage.seconds == pytest.approx(simulated(*work, flat, 8), rel=0.01), name
        assert simulated(*work, machine, 8) <= stage.seconds * 1.01, name  # neighbors on a machine spare the network


def test_the_simulation_sums_what_every_process_has() -> None:
    """A process that comes late holds up all others, and nobody is done before the bytes are sent."""
    machine = dataclasses.replace(ASSUMED["cuda"], latency=1.0, link=10.0, network=10.0)
    assert all_reduce([0.0, 0.0], 20.0, machine, 8) == [4.0, 4.0]  # two rounds of 10 bytes in a second and a message
    assert all_reduce([0.0, 7.0, 0.0, 0.0], 0.0, machine, 8) == [11.0] * 4

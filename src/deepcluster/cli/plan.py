"""`deepcluster plan [PRESET] --data S | --images N`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from deepcluster.cli.parse import parse
from deepcluster.config import TrainRun, override
from deepcluster.data.open import must_exist
from deepcluster.errors import DeepClusterError

PRESET = "deepercluster-vgg16"


@dataclass(frozen=True)
class Plan:
    """What a run takes before it is started: memory, disk, messages and hours, extrapolated from a dry run.

    The preset comes first; without one it is deepercluster-vgg16. All its settings can be given, as for train;
    --processes are those of all machines together."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to train on, of any kind that train takes."""
    images: float | None = None
    """Or only their number, such as 1e8."""
    k: int | None = None
    """Clusters; the same as --method.k."""
    per_machine: int = 0
    """Processes on each machine; 0 = up to eight."""
    network_gbit: float | None = None
    """Gigabits a second between machines, in place of what is assumed."""
    measure: bool = False
    """Time some steps on this machine instead of assuming its speed; takes a minute or two."""
    json: bool = False
    """Print one JSON object."""
    settings: Annotated[TrainRun, arg(name="")] = field(default_factory=TrainRun)


def command(arguments: list[str]) -> None:
    """Estimates, and prints tables or one JSON object."""
    from deepcluster.presets import find_preset

    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else PRESET
    chosen = parse(
        Plan,
        arguments[1:] if named else arguments,
        prog=f"deepcluster plan {name}" if named else "deepcluster plan",
        default=Plan(settings=find_preset(name).run),
        about=Plan.__doc__ or "",
    )
    if (chosen.images is None) == (chosen.source is None):
        raise DeepClusterError("Say how many images, by one of two: deepcluster plan PRESET --images 1e6, or --data S.")
    if chosen.images is not None and chosen.images != int(chosen.images):
        raise DeepClusterError(f"--images is {chosen.images:g}: give a whole number, such as 1e6.")
    if chosen.settings.minutes is not None:
        raise DeepClusterError(
            "How long so many epochs take is what plan tells: give --epochs and leave --minutes out."
        )
    if chosen.per_machine < 0:
        raise DeepClusterError(f"--per-machine is {chosen.per_machine}: give the processes of one machine, such as 8.")
    if chosen.network_gbit is not None and chosen.network_gbit <= 0:
        raise DeepClusterError(f"--network-gbit is {chosen.network_gbit}: give gigabits a second, such as 100.")
    must_exist(chosen.source)
    run = chosen.settings if chosen.k is None else override(chosen.settings, {"method.k": chosen.k})
    kind = run.device.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise DeepClusterError(f"There is no estimate for --device {run.device}: give cpu or cuda.")
    import torch

    from deepcluster.data.open import open_images
    from deepcluster.engine.log import Screen
    from deepcluster.estimate.estimate import Job, estimate

    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.measure and kind == "cuda" and not torch.cuda.is_available():
        raise DeepClusterError("This machine has no GPU to measure: leave out --measure, or give --device cpu.")
    source = None if chosen.source is None else open_images(chosen.source)
    count = len(source) if source is not None else int(chosen.images or 0)
    job = Job(run, count, run.processes, min(chosen.per_machine or 8, run.processes), kind)
    network = None if chosen.network_gbit is None else chosen.network_gbit * 1e9 / 8
    found = estimate(job, measure=chosen.measure, data=source, network=network)
    if chosen.json:
        print(json_module.dumps(found.as_dict()))
    else:
        Screen().print(found.tables(), soft_wrap=False)

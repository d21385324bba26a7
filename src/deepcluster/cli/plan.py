"""`deepcluster plan [PRESET] --images N` and `deepcluster plan [PRESET] --measure`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from deepcluster.cli.parse import parse
from deepcluster.config import TrainRun, override
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen

PRESET = "deepercluster-vgg16"


@dataclass(frozen=True)
class Plan:
    """What a run takes before it is started: memory, disk, operations, messages, hours. Or measures this machine.

    The preset comes first; without one it is deepercluster-vgg16. All its settings can be given, as for train;
    --processes are those of all machines together."""

    images: float | None = None
    """Images to train on, such as 1e8."""
    k: int | None = None
    """Clusters; the same as --method.k."""
    per_machine: int = 0
    """Processes on each machine; 0 = up to eight."""
    network_gbit: float | None = None
    """Gigabits a second between machines, in place of what is assumed."""
    constants: Literal["auto", "measured", "assumed"] = "auto"
    """What the hours come from: what --measure took on this machine, or what is assumed for such a device; auto =
    measured where there is such."""
    measure: bool = False
    """Take the constants of this machine, in about a minute; nothing is planned unless --images is given too."""
    json: bool = False
    """Print one JSON object."""
    settings: Annotated[TrainRun, arg(name="")] = field(default_factory=TrainRun)


def command(arguments: list[str]) -> None:
    """Plans, or measures."""
    named = bool(arguments) and not arguments[0].startswith("-")
    from deepcluster.presets import find_preset

    name = arguments[0] if named else PRESET
    preset = find_preset(name)
    prog = f"deepcluster plan {name}" if named else "deepcluster plan"
    chosen = parse(
        Plan,
        arguments[1:] if named else arguments,
        prog=prog,
        default=Plan(settings=preset.run),
        about=Plan.__doc__ or "",
    )
    if chosen.images is None and not chosen.measure:
        raise DeepClusterError("Say how many images: deepcluster plan PRESET --images 1e6, or measure by --measure.")
    run = chosen.settings if chosen.k is None else override(chosen.settings, {"method.k": chosen.k})
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=chosen.json)
    told = measured(run, screen) if chosen.measure else {}
    if chosen.images is not None:
        told = planned(chosen, run, screen)
    if chosen.json:
        print(json_module.dumps(told))


def measured(run: TrainRun, screen: Screen) -> dict[str, Any]:
    """Takes and keeps the constants of this machine."""
    import dataclasses

    from deepcluster.plan.constants import save
    from deepcluster.plan.measure import measure

    constants = measure(run, screen.say)
    screen.say(f"kept in {save(constants)}")
    return dataclasses.asdict(constants)


def planned(chosen: Plan, run: TrainRun, screen: Screen) -> dict[str, Any]:
    """Makes the plan and shows it."""
    from deepcluster.plan.constants import assumed, load
    from deepcluster.plan.job import job_of
    from deepcluster.plan.plan import make_plan

    assert chosen.images is not None
    if chosen.network_gbit is not None and chosen.network_gbit <= 0:
        raise DeepClusterError(f"--network-gbit is {chosen.network_gbit}: give gigabits a second, such as 100.")
    job = job_of(run, images=chosen.images, per_machine=chosen.per_machine)
    constants = None if chosen.constants == "assumed" else load(job.device)
    if chosen.constants == "measured" and constants is None:
        raise DeepClusterError(
            f"Nothing was measured on this machine for {job.device}: run `deepcluster plan --measure` first."
        )
    changes = {} if chosen.network_gbit is None else {"network": chosen.network_gbit * 1e9 / 8}
    plan = make_plan(job, constants or assumed(job.device), **changes)
    if not chosen.json:
        screen.console.print(plan.tables(), soft_wrap=False)
    return plan.as_dict()

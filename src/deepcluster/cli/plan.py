"""`deepcluster plan [PRESET] --data S | --images N`."""

from __future__ import annotations

from dataclasses import replace
from json import dumps

from deepcluster.cli.options import Function, parse_options
from deepcluster.cli.parse import take
from deepcluster.config import TrainRun, override
from deepcluster.data.open import must_exist
from deepcluster.errors import DeepClusterError


def command(arguments: list[str]) -> None:
    """Reads the options, whose defaults are those of the preset that comes first, or of what train would choose."""
    from deepcluster.presets import find_preset

    if arguments and not arguments[0].startswith("-"):
        prog, run, rest = f"deepcluster plan {arguments[0]}", find_preset(arguments[0]).run, arguments[1:]
    else:
        prog, (run, rest) = "deepcluster plan", _choose(arguments)
    function = Function(f"{__name__}:plan", injected=("settings",))
    values = parse_options([function], rest, prog=prog, settings=run)
    function.call(values, settings=values["settings"])


def _choose(arguments: list[str]) -> tuple[TrainRun, list[str]]:
    """One epoch of the run that train would choose for these images, or for so many photos, and the other options."""
    from deepcluster.presets.choose import SHRUNK, Images, Machine, choose, choose_for

    given, _ = take(arguments, "data", "images", "image-size", "device")
    method, rest = take(arguments, "method")
    side, device = given["image_size"] or "", given["device"] or "auto"
    size = int(side) if side.isdigit() else None  # the parser refuses what is no number
    if given["data"] and not given["images"]:
        from deepcluster.data.open import open_images

        must_exist(given["data"])
        run = choose(open_images(given["data"]), method=method["method"], image_size=size, device=device).run
    else:
        try:
            count = int(float(given["images"] or 1e6))
        except (ValueError, OverflowError):
            count = 0  # the parser refuses this, too
        images = Images(count, SHRUNK, color=True)
        run = choose_for(images, Machine("cuda" if device[:4] == "cuda" else "cpu", 1), method["method"], size).run
    return replace(run, minutes=None, epochs=1), rest


def plan(
    *,
    settings: TrainRun,
    data: str | None = None,
    images: float | None = None,
    k: int | None = None,
    per_machine: int = 0,
    network_gbit: float | None = None,
    measure: bool = False,
    json: bool = False,
) -> None:
    """What a run takes before it is started: memory, disk, messages and hours, extrapolated from a dry run.

    The preset comes first. Without one it is what train would choose for these images, or for so many photos, and one
    epoch of it, since train finds out how many fit into its minutes. All settings can be given, as for train;
    --processes are those of all machines together.

    Args:
        data: images to train on, of any kind that train takes.
        images: or only their number, such as 1e8.
        k: clusters; the same as --method.k.
        per_machine: processes on each machine; 0 = up to eight.
        network_gbit: gigabits a second between machines, in place of what is assumed.
        measure: time some steps on this machine instead of assuming its speed; takes a minute or two.
    """
    if (images is None) == (data is None):
        raise DeepClusterError(
            "Say how many images, by one of two: deepcluster plan [PRESET] --images 1e6, or --data S."
        )
    if images is not None and images != int(images):
        raise DeepClusterError(f"--images is {images:g}: give a whole number, such as 1e6.")
    if settings.minutes is not None:
        raise DeepClusterError(
            "How long so many epochs take is what plan tells: give --epochs and leave --minutes out."
        )
    if per_machine < 0:
        raise DeepClusterError(f"--per-machine is {per_machine}: give the processes of one machine, such as 8.")
    if network_gbit is not None and network_gbit <= 0:
        raise DeepClusterError(f"--network-gbit is {network_gbit}: give gigabits a second, such as 100.")
    must_exist(data)
    run = settings if k is None else override(settings, {"method.k": k})
    kind = run.device.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise DeepClusterError(f"There is no estimate for --device {run.device}: give cpu or cuda.")
    import torch

    from deepcluster.data.open import open_images
    from deepcluster.engine.log import Screen
    from deepcluster.estimate.estimate import estimate
    from deepcluster.estimate.job import Job

    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if measure and kind == "cuda" and not torch.cuda.is_available():
        raise DeepClusterError("This machine has no GPU to measure: leave out --measure, or give --device cpu.")
    source = None if data is None else open_images(data)
    count = len(source) if source is not None else int(images or 0)
    job = Job(run, count, run.processes, min(per_machine or 8, run.processes), kind)
    network = None if network_gbit is None else network_gbit * 1e9 / 8
    found = estimate(job, measure=measure, data=source, network=network)
    if json:
        print(dumps(found.as_dict()))
    else:
        Screen().print(found.tables(), soft_wrap=False)

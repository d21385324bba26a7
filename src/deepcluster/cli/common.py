"""What several commands share: processes of torchrun or srun, opening a network, and results as text or JSON."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.distributed import SINGLE, ProcessGroup, by_srun, current
from deepcluster.errors import DeepClusterError, did_you_mean, first_line

if TYPE_CHECKING:
    from deepcluster.cli.options import Function
    from deepcluster.engine.log import Screen
    from deepcluster.engine.ray_engine import RayEngine
    from deepcluster.engine.subject import Subject


def started_several() -> bool:
    """Whether torchrun or srun has started this process and others."""
    return by_srun() or ("RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1)


def refuse_several_processes(what: str) -> None:
    """Raises DeepClusterError where several processes were started, each of which would do all of it."""
    if started_several():
        raise DeepClusterError(f"{what} runs on one process: start it without {'srun' if by_srun() else 'torchrun'}.")


@contextmanager
def several_processes(engine: str | None = None) -> Iterator[ProcessGroup]:
    """The process group of the processes that torchrun or srun started, for as long as the context lasts; else one.

    Raises:
        DeepClusterError: they are to be spread by an engine, too, or were not started as torchrun does it.
    """
    if not started_several():
        yield SINGLE
        return
    if engine:
        raise DeepClusterError("Ray starts processes of its own: leave out torchrun and srun, or --engine.")
    import torch.distributed as dist

    if dist.is_initialized():  # whoever initialized it also destroys it
        yield current()
        return
    meeting: dict[str, Any] = {}
    if by_srun():
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        address = f"tcp://{slurm.main_address}:{slurm.main_port}"
        meeting = {"init_method": address, "rank": slurm.global_rank(), "world_size": slurm.world_size()}
    try:
        dist.init_process_group("gloo", **meeting)
    except (ValueError, RuntimeError) as error:
        raise DeepClusterError(
            f"The processes that the environment speaks of do not meet ({first_line(error)}): use torchrun or srun."
        ) from error
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def spread_over(engine: str | None) -> AbstractContextManager[RayEngine | None]:
    """What reads whole tables is spread by the engine, for as long as the context lasts; None = by none."""
    if engine is None:
        return nullcontext()
    from deepcluster.engine.ray_engine import ray_engine

    return ray_engine()


def open_network(
    model: str,
    /,
    *,
    untrained: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> Subject:
    """Opens what a protocol evaluates or a picture shows; the parameters are options of all of these.

    Args:
        model: a run folder, a file of weights, or a backbone (any timm model as timm:NAME, a torchvision model as
            torchvision:NAME, a Hugging Face folder of timm or of a shared run, or hf:NAME on the hub).
        untrained: use the same network with random weights, as a baseline.
        image_size: for a backbone by name: side of its input images in pixels; None = the size its weights were
            trained at.
        out: folder to write to; None = a folder in the run folder, or evaluations/NAME for a network that is not a run.
    """
    from deepcluster.engine.run import load_subject

    return load_subject(model, device=device, image_size=image_size, untrained=untrained, seed=seed, results=out)


def show(screen: Screen, as_json: bool, values: Mapping[str, Any], sentence: str) -> None:
    """Prints the result of a command: one JSON object, or one sentence."""
    if as_json:
        print(dumps(values))
    else:
        screen.print(sentence)


def table_line(name: str, about: str, width: int) -> str:
    """A name in a column of `width` and what it is about, in lines of 79 characters at most."""
    return textwrap.fill(about, 79, initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2))


def take_name(
    arguments: list[str], functions: Mapping[str, Function], command: str, kind: str, usage: str
) -> tuple[str | None, list[str]]:
    """The second positional argument, such as a protocol, and the arguments without it; DeepClusterError where it is
    missing or unknown. Prints the list of names, and returns None, if the help is asked for without a name.

    Args:
        functions: what can be named, and the function that it calls.
        command, kind, usage: for messages: "deepcluster evaluate", what is named, and the most important options.
    """
    words = [word for word in arguments if not word.startswith("-")]
    name = words[1] if len(words) > 1 else ""
    if name in functions:
        position = arguments.index(name, arguments.index(words[0]) + 1)
        return name, arguments[:position] + arguments[position + 1 :]
    if "-h" in arguments or "--help" in arguments:
        print(f"usage: {command} RUN|BACKBONE {kind.upper()} {usage}\n\n{kind}s:")
        for each, function in functions.items():
            print(table_line(each, function.summary, 20))
        print(f"\n`{command} RUN {kind.upper()} --help` lists the options of a {kind}.")
        return None, arguments
    if not name:
        raise DeepClusterError(f"The {kind} is missing: {command} RUN {'|'.join(list(functions)[:3])}|... {usage}")
    raise DeepClusterError(
        f"There is no {kind} {name!r}.{did_you_mean(name, list(functions))} `{command} --help` lists them."
    )

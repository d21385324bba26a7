"""`deepcluster train PRESET --data S --out RUN` and `deepcluster train --resume RUN`."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro import MISSING
from tyro.conf import arg

from deepcluster.cli.parse import parse
from deepcluster.config import TrainRun
from deepcluster.data.open import must_exist
from deepcluster.distributed import is_secondary_process
from deepcluster.errors import DeepClusterError, Interrupted

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import Run


@dataclass(frozen=True)
class Train:
    """Trains on your images and leaves a run folder. Ctrl-C or SIGTERM saves; --resume goes on."""

    source: Annotated[str, arg(name="data")]
    """Images: a folder, tar shards, a list, an array, torchvision:NAME, or digits."""
    out: Path
    """The run folder to write."""
    overwrite: bool = False
    """Replace the run that is already there."""
    json: bool = False
    """Print one JSON object when done."""
    settings: Annotated[TrainRun, arg(name="")] = field(default_factory=TrainRun)


@dataclass(frozen=True)
class Resume:
    """Goes on with a run exactly where it stood, within an epoch too; or beyond its end, with more epochs."""

    resume: Path
    """The run folder."""
    epochs: int | None = None
    """Another length for the run, of a finished one too; the schedule of the learning rate follows it. None = as it was
    begun."""
    processes: int | None = None
    """Processes on this machine; none = as many as before. torchrun and SLURM settle it themselves."""
    source: Annotated[str | None, arg(name="data")] = None
    """Only where the images have moved since: where they are now."""
    json: bool = False
    """Print one JSON object when done."""


HELP = """\
Trains a preset on your images, or goes on with a run.

usage: deepcluster train PRESET --data S --out RUN [--epochs N] [--method.k K] [--SETTING VALUE ...]
       deepcluster train --resume RUN [--epochs N] [--data S]

  PRESET         a preset's name; `deepcluster presets` lists them
  --data S       images: a folder, tar shards, a list, an array, torchvision:NAME, or digits;
                 with --resume only where they have moved
  --out RUN      the run folder to write
  --resume RUN   go on with a run exactly where it stood
  --epochs N     the run's length; with --resume another one than before, of a finished run too
  --overwrite    replace the run that is already in --out
  --json         print one JSON object when done

`deepcluster train PRESET --help` lists every setting of a preset with its value.
"""


def command(arguments: list[str]) -> None:
    """Trains or resumes."""
    if any(word == "--resume" or word.startswith("--resume=") for word in arguments):
        resume(arguments)
        return
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if not arguments or arguments[0].startswith("-"):
        raise DeepClusterError("The preset comes first: deepcluster train PRESET --data S --out RUN.")
    from deepcluster.presets import find_preset

    name = arguments[0]
    preset = find_preset(name)
    chosen = parse(
        Train,
        arguments[1:],
        prog=f"deepcluster train {name}",
        default=Train(MISSING, MISSING, settings=preset.run),
        about=preset.about,
    )
    must_exist(chosen.source)
    from deepcluster.engine import train as engine
    from deepcluster.engine.log import Screen

    screen = Screen(quiet=is_secondary_process(), stderr=chosen.json)
    with told(chosen.out, screen):
        run = engine.train(
            chosen.settings, chosen.source, chosen.out, preset=name, overwrite=chosen.overwrite, screen=screen
        )
    finish(run, screen, chosen.json)


def resume(arguments: list[str]) -> None:
    """Goes on with a run; a preset named beside it must be the run's own."""
    named = arguments[0] if not arguments[0].startswith("-") else None
    chosen = parse(Resume, arguments[1:] if named else arguments, prog="deepcluster train --resume RUN")
    must_exist(chosen.source)
    from deepcluster.engine import train as engine
    from deepcluster.engine.length import is_finished
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run, read_config

    config = read_config(chosen.resume)
    preset = config["preset"]
    if named and named != preset:
        raise DeepClusterError(
            f"{chosen.resume} is a run of {preset}, not of {named}: resume it with `deepcluster train --resume"
            f" {chosen.resume}`, or start {named} in another --out."
        )
    screen = Screen(quiet=is_secondary_process(), stderr=chosen.json)
    asked = config["settings"].get("epochs")
    if chosen.epochs in (None, asked) and is_finished(chosen.resume):
        _say_finished(load_run(chosen.resume, "cpu"), screen, chosen.json)
        return
    with told(chosen.resume, screen):
        run = engine.train_again(chosen.resume, chosen.source, screen, epochs=chosen.epochs, processes=chosen.processes)
    finish(run, screen, chosen.json)


def _say_finished(run: Run, screen: Screen, as_json: bool) -> None:
    """That there is nothing to go on with, and how there would be."""
    if as_json:
        finish(run, screen, as_json)
        return
    done, folder = len(run.metrics), shlex.quote(str(run.folder))
    screen.say(
        f"{run.folder} is finished: {done:,} epochs are done. To lengthen it: deepcluster train --resume {folder}"
        f" --epochs {2 * max(1, done)}"
    )


@contextmanager
def told(folder: Path, screen: Screen) -> Iterator[None]:
    """Says how to go on when a run is stopped."""
    try:
        yield
    except Interrupted:
        screen.say(f"stopped and saved; go on with: deepcluster train --resume {folder}")
        raise


def finish(run: Run, screen: Screen, as_json: bool) -> None:
    """What to do next, or the last row as JSON."""
    folder, rows = run.folder, run.metrics
    if is_secondary_process():
        return
    if as_json:
        print(json_module.dumps({"run": str(folder), "epochs": len(rows), "last": rows[-1] if rows else None}))
        return
    screen.say(f"done: {folder}  (next: deepcluster report {folder})")

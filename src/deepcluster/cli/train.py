"""`deepcluster train PRESET --data S --out RUN` and `deepcluster train --resume RUN`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.common import show
from deepcluster.cli.options import Function, parse_options
from deepcluster.config import TrainRun
from deepcluster.data.open import must_exist
from deepcluster.distributed import is_secondary_process
from deepcluster.errors import DeepClusterError, Interrupted

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import Run

HELP = """\
Trains a preset on your images, or resumes a run.

usage: deepcluster train PRESET --data S --out RUN [--epochs N] [--method.k K] [--SETTING VALUE ...]
       deepcluster train --resume RUN [--epochs N] [--data S]

  PRESET         a preset's name; `deepcluster presets` lists them
  --data S       images: a folder, tar shards, a list, an array, torchvision:NAME, or digits;
                 with --resume only if they have moved
  --out RUN      the run folder to write
  --resume RUN   resume a run exactly where it stopped
  --epochs N     number of epochs; with --resume a new number, for a finished run too
  --overwrite    replace the run that is already in --out
  --json         print one JSON object to standard output

`deepcluster train PRESET --help` lists every setting of a preset with its value.
"""


def command(arguments: list[str]) -> None:
    """Trains a preset or resumes a run."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if any(word == "--resume" or word.startswith("--resume=") for word in arguments):
        prog, function = "deepcluster train --resume RUN", Function(f"{__name__}:resume", injected=("preset",))
        function.call(parse_options([function], arguments[1:] if name else arguments, prog=prog), preset=name)
    elif name:
        from deepcluster.presets import find_preset

        preset, function = find_preset(name), Function(f"{__name__}:train", injected=("preset", "settings"))
        values = parse_options(
            [function], arguments[1:], prog=f"deepcluster train {name}", settings=preset.run, about=preset.about
        )
        function.call(values, preset=name, settings=values["settings"])
    elif arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
    else:
        raise DeepClusterError("The preset comes first: deepcluster train PRESET --data S --out RUN.")


def train(
    *, preset: str, settings: TrainRun, data: str, out: Path, overwrite: bool = False, json: bool = False
) -> None:
    """Trains on images and writes a run folder. Ctrl-C or SIGTERM saves the run; --resume continues it.

    Args:
        data: images: a folder, tar shards, a list, an array, torchvision:NAME, or digits.
        out: the run folder to write.
        overwrite: replace the run that is already there.
    """
    must_exist(data)
    from deepcluster.engine import train as engine
    from deepcluster.engine.log import Screen

    screen = Screen(quiet=is_secondary_process(), stderr=json)
    with _resume_hint(out, screen):
        run = engine.train(settings, data, out, preset=preset, overwrite=overwrite, screen=screen)
    _show(run, screen, json)


def resume(
    *,
    preset: str | None,
    resume: Path,
    epochs: int | None = None,
    processes: int | None = None,
    data: str | None = None,
    json: bool = False,
) -> None:
    """Resumes a run exactly where it stopped, within an epoch too, or trains a finished run for more epochs.

    Args:
        preset: named by the user; it must be the run's own.
        resume: the run folder.
        epochs: a new number of epochs, for a finished run too; the learning rate schedule follows it. None = the number
            it was started with.
        processes: processes on this machine; None = as before. torchrun and SLURM set their number themselves.
        data: the images, if they have moved; None = where they were.
    """
    must_exist(data)
    from deepcluster.engine import train as engine
    from deepcluster.engine.length import is_finished
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run, read_config

    config = read_config(resume)
    if preset not in (None, config["preset"]):
        raise DeepClusterError(
            f"{resume} is a run of {config['preset']}, not of {preset}: resume it with `deepcluster train --resume"
            f" {resume}`, or start {preset} in another --out."
        )
    screen = Screen(quiet=is_secondary_process(), stderr=json)
    if epochs in (None, config["settings"].get("epochs")) and is_finished(resume):
        run = load_run(resume, "cpu")
        done = len(run.metrics)
        more = f"deepcluster train --resume {shlex.quote(str(run.folder))} --epochs {2 * max(1, done)}"
        _show(run, screen, json, f"{run.folder} is finished after {done:,} epochs. To train it longer: {more}")
        return
    with _resume_hint(resume, screen):
        run = engine.train_again(resume, data, screen, epochs=epochs, processes=processes)
    _show(run, screen, json)


@contextmanager
def _resume_hint(folder: Path, screen: Screen) -> Iterator[None]:
    """Prints how to resume a run that is interrupted."""
    try:
        yield
    except Interrupted:
        screen.say(f"stopped and saved; resume with: deepcluster train --resume {folder}")
        raise


def _show(run: Run, screen: Screen, as_json: bool, sentence: str = "") -> None:
    """What to do next, or the last epoch as JSON."""
    if not is_secondary_process():
        folder, rows = run.folder, run.metrics
        values = {"run": str(folder), "epochs": len(rows), "last": rows[-1] if rows else None}
        show(screen, as_json, values, sentence or f"done: {folder}  (next: deepcluster report {folder})")

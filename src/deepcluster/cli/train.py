"""`deepcluster train [PRESET] --data S --out RUN` and `deepcluster train --resume RUN`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.common import show
from deepcluster.cli.options import Function, parse_options
from deepcluster.config import AUTO, BOTH, TrainRun, params_of
from deepcluster.data.open import must_exist
from deepcluster.distributed import is_secondary_process
from deepcluster.errors import DeepClusterError, Interrupted, explained

if TYPE_CHECKING:
    from deepcluster.data.source import ImageSource
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import Run
    from deepcluster.presets.choose import Choice

HELP = """\
Trains on your images, or resumes a run.

usage: deepcluster train --data S --out RUN [--minutes 10] [--method.k K] [--SETTING VALUE ...]
       deepcluster train PRESET --data S --out RUN [--epochs N | --minutes M] [--SETTING VALUE ...]
       deepcluster train --resume RUN [--epochs N] [--from CHECKPOINT] [--optimizer.lr X] [--data S]

  PRESET         a preset's name; `deepcluster presets` lists them. Without one the network, the image size, the
                 number of clusters and the batches are chosen from the images and the machine, and told
  --data S       images: a folder, tar shards, a list, an array, torchvision:NAME, or digits;
                 with --resume only if they have moved
  --out RUN      the run folder to write
  --minutes M    what the whole run may take, the last clustering included: the speed is measured at first, and as
                 many epochs as fit are trained, at least one. Without a preset and without --epochs, 10
  --epochs N     number of epochs, in place of minutes; with --resume a new number, for a finished run too
  --from START   begin with trained weights: a run folder, a file of weights, a Hugging Face folder of timm,
                 timm:NAME or torchvision:NAME for published ones, or auto for the best that needs no download;
                 network, Sobel and normalization are theirs
  --method NAME  without a preset: deepcluster, odc or another method, in place of deepcluster
  --resume RUN   resume a run exactly where it stopped; its epochs stay, and nothing is measured again. With --from
                 an earlier checkpoint of it, such as RUN/checkpoints/previous.ckpt, and with another --optimizer.lr,
                 as after a loss that is no number
  --overwrite    replace the run that is already in --out
  --json         print one JSON object to standard output

`deepcluster train PRESET --help` lists every setting of a preset with its value, `deepcluster train --data S --help`
those that are chosen for these images. Each can be given, as in --method.k 50 --seed 1 --image-size 96.
"""


def command(arguments: list[str]) -> None:
    """Trains a preset, trains what suits the images, or resumes a run."""
    began = time.monotonic()
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if _given(arguments, "resume") is not None:
        prog, function = (
            "deepcluster train --resume RUN",
            Function(f"{__name__}:resume", injected=("preset", "start", "lr")),
        )
        start, lr = _given(arguments, "from"), _rate(arguments)
        arguments = _without(_without(arguments[1:] if name else arguments, "from"), "optimizer.lr")
        given = {"preset": name, "start": None if start is None else Path(start), "lr": lr}
        function.call(parse_options([function], arguments, prog=prog), **given)
    elif name:
        from deepcluster.presets import find_preset

        preset, run, (start, why) = find_preset(name), find_preset(name).run, _start(arguments)
        if start is not None:
            must_exist(_given(arguments, "data"))
            from deepcluster.engine.model import begin

            run = begin(run, start, _size(arguments))
        _train(_without(arguments[1:], "from"), f"deepcluster train {name}", name, run, preset.about, began, why)
    elif _given(arguments, "data") is not None:
        _train_chosen(arguments, began)
    elif arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
    else:
        raise DeepClusterError(
            "--data must be given: deepcluster train --data S --out RUN. `deepcluster train --help` says more."
        )


def _train_chosen(arguments: list[str], began: float) -> None:
    """Trains with settings that are chosen from the images and the machine."""
    must_exist(_given(arguments, "data"))
    from deepcluster.data.open import open_images
    from deepcluster.presets.choose import choose

    source, (start, why) = open_images(_given(arguments, "data")), _start(arguments)
    chosen = choose(
        source,
        method=_given(arguments, "method"),
        image_size=_size(arguments),
        device=_given(arguments, "device") or "auto",
        from_=start,
    )
    run = chosen.run if _given(arguments, "epochs") is None else replace(chosen.run, minutes=None)
    arguments = _without(_without(arguments, "method"), "from")
    _train(arguments, "deepcluster train", AUTO, run, chosen.sentence(run), began, why, source, chosen)


def _train(
    arguments: list[str],
    prog: str,
    preset: str,
    run: TrainRun,
    about: str,
    began: float,
    why: str,
    source: ImageSource | None = None,
    chosen: Choice | None = None,
) -> None:
    """Trains with the settings of `run` and those in the arguments."""
    if _given(arguments, "minutes") is not None and _given(arguments, "epochs") is not None:
        raise DeepClusterError(BOTH)
    function = Function(f"{__name__}:train", injected=("preset", "settings", "about", "began", "source"))
    values = parse_options([function], arguments, prog=prog, settings=run, about=about)
    settings = values["settings"]
    told = "\n".join(filter(None, (why, "" if chosen is None else chosen.sentence(settings))))
    function.call(values, preset=preset, settings=settings, about=told, began=began, source=source)


def _start(arguments: list[str]) -> tuple[str | None, str]:
    """What --from names, and why that, where it is chosen."""
    start = _given(arguments, "from")
    if start != "auto":
        return start, ""
    from deepcluster.models.pretrained import choose_backbone

    return choose_backbone()


def _given(arguments: list[str], option: str) -> str | None:
    """The value that the arguments give to an option, "" where it is missing; None = the option is not there."""
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            return value if equals else "".join(arguments[position + 1 : position + 2])
    return None


def _size(arguments: list[str]) -> int | None:
    """The image size that is given, if it is a number; the parser refuses what is not."""
    given = _given(arguments, "image-size") or ""
    return int(given) if given.isdigit() else None


def _rate(arguments: list[str]) -> float | None:
    """The learning rate that is given."""
    given = _given(arguments, "optimizer.lr")
    try:
        return None if given is None else float(given)
    except ValueError:
        raise DeepClusterError(f"--optimizer.lr is {given!r}: give a number, such as 0.01.") from None


def _without(arguments: list[str], option: str) -> list[str]:
    """The arguments without an option and its value."""
    for position, word in enumerate(arguments):
        if word.partition("=")[0] == f"--{option}":
            return arguments[:position] + arguments[position + (1 if "=" in word else 2) :]
    return arguments


def train(
    *,
    preset: str,
    settings: TrainRun,
    about: str = "",
    began: float,
    source: ImageSource | None = None,
    data: str,
    out: Path,
    overwrite: bool = False,
    json: bool = False,
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
    if about:
        screen.print(about)
    with _resume_hint(out, screen):
        images = data if source is None else source
        run = engine.train(settings, images, out, preset=preset, overwrite=overwrite, screen=screen, began=began)
    _show(run, screen, json)


def resume(
    *,
    preset: str | None,
    start: Path | None = None,
    lr: float | None = None,
    resume: Path,
    epochs: int | None = None,
    processes: int | None = None,
    data: str | None = None,
    json: bool = False,
) -> None:
    """Resumes a run exactly where it stopped, within an epoch too, or trains a finished run for more epochs.

    Args:
        preset: named by the user; it must be the run's own.
        start: an earlier checkpoint of the run to go on from.
        lr: another learning rate from there on.
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
    from deepcluster.engine.occupy import settle
    from deepcluster.engine.run import load_run, read_config

    screen = Screen(quiet=is_secondary_process(), stderr=json)
    settle(resume, screen.warn)
    config = read_config(resume)
    if preset not in (None, config["preset"]):
        raise DeepClusterError(
            f"{resume} is a run of {config['preset']}, not of {preset}: resume it with `deepcluster train --resume"
            f" {resume}`, or start {preset} in another --out."
        )
    if not params_of(config).trains:
        raise DeepClusterError(
            f"{resume} is a grouping, in which nothing is trained: `deepcluster cluster {config['data']} --out"
            f" {resume}` goes on with it."
        )
    if start is None and epochs in (None, config["settings"].get("epochs")) and is_finished(resume):
        run = load_run(resume, "cpu")
        done = len(run.metrics)
        more = f"deepcluster train --resume {shlex.quote(str(run.folder))} --epochs {2 * max(1, done)}"
        _show(run, screen, json, f"{run.folder} is finished after {done:,} epochs. To train it longer: {more}")
        return
    with _resume_hint(resume, screen):
        run = engine.train_again(resume, data, screen, epochs=epochs, processes=processes, start=start, lr=lr)
    _show(run, screen, json)


@contextmanager
def _resume_hint(folder: Path, screen: Screen) -> Iterator[None]:
    """Prints how to resume a run that is interrupted."""
    try:
        yield
    except Interrupted:
        screen.print(f"stopped and saved; resume with: deepcluster train --resume {folder}")
        raise
    except (RuntimeError, MemoryError) as error:
        sentence = explained(error)
        if sentence is None:
            raise
        saved = (folder / "checkpoints" / "last.ckpt").exists()
        more = f" Go on from what is saved: deepcluster train --resume {shlex.quote(str(folder))}" if saved else ""
        raise type(sentence)(f"{sentence}{more}") from error


def _show(run: Run, screen: Screen, as_json: bool, sentence: str = "") -> None:
    """What to do next, or the last epoch as JSON."""
    if not is_secondary_process():
        folder, rows = run.folder, run.metrics
        values = {"run": str(folder), "epochs": len(rows), "last": rows[-1] if rows else None}
        show(screen, as_json, values, sentence or f"done: {folder}  (next: deepcluster report {folder})")

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
from deepcluster.cli.parse import take
from deepcluster.config import AUTO, BOTH, TrainRun, params_of
from deepcluster.data.open import must_exist
from deepcluster.distributed import is_secondary_process
from deepcluster.errors import DeepClusterError, Interrupted, explained

if TYPE_CHECKING:
    from deepcluster.data.source import ImageSource
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import Run

HELP = """\
Trains on your images, or resumes a run.

usage: deepcluster train --data S --out RUN [--minutes 10] [--SETTING VALUE ...]
       deepcluster train PRESET --data S --out RUN [--epochs N | --minutes M]
                                [--SETTING VALUE ...]
       deepcluster train --resume RUN [--epochs N] [--from CHECKPOINT]
                                [--optimizer.lr X] [--data S]

  PRESET         a preset's name; `deepcluster presets` lists them. Without one
                 the network, the image size, the number of clusters and the
                 batches are chosen from the images and the machine, and told
  --data S       images: a folder, tar shards, a list, an array,
                 torchvision:NAME, or digits; with --resume only if they have
                 moved
  --out RUN      the run folder to write
  --minutes M    what the whole run may take, the last clustering included: the
                 speed is measured at first, and as many epochs as fit are
                 trained, at least one. Without preset and --epochs: 10
  --epochs N     number of epochs, in place of minutes; with --resume a new
                 number, for a finished run too
  --from START   begin with trained weights: a run folder, a file of weights, a
                 Hugging Face folder of timm, timm:NAME or torchvision:NAME for
                 published ones, or auto for the best that needs no download;
                 network, Sobel and normalization are theirs
  --method NAME  without a preset: deepcluster, odc or another method, in place
                 of deepcluster
  --resume RUN   resume a run exactly where it stopped; its epochs stay, and
                 nothing is measured again. With --from an earlier checkpoint of
                 it, such as RUN/checkpoints/previous.ckpt, and with another
                 --optimizer.lr, as after a loss that is no number
  --overwrite    replace the run that is already in --out
  --json         print one JSON object to standard output

`deepcluster train PRESET --help` lists every setting of a preset with its
value, `deepcluster train --data S --help` those that are chosen for these
images. Each can be given, as in --method.k 50 --seed 1 --image-size 96.
"""


PEEKED = ("resume", "data", "from", "method", "image-size", "device", "epochs", "minutes")
"""Options that decide which others there are, and what their defaults are."""


def command(arguments: list[str]) -> None:
    """Trains a preset, trains what suits the images, or resumes a run."""
    began = time.monotonic()
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    arguments = arguments[1:] if name else arguments
    given, _ = take(arguments, *PEEKED)
    if given["resume"] is not None:
        function = Function(f"{__name__}:resume", injected=("preset",))
        function.call(parse_options([function], arguments, prog="deepcluster train --resume RUN"), preset=name)
        return
    if name is None and given["data"] is None:
        raise DeepClusterError(
            "--data must be given: deepcluster train --data S --out RUN. `deepcluster train --help` says more."
        )
    if given["minutes"] is not None and given["epochs"] is not None:
        raise DeepClusterError(BOTH)
    if name is None or given["from"] is not None:
        must_exist(given["data"])
    from deepcluster.presets import find_preset

    start, why, source, chosen = given["from"], "", None, None
    if start == "auto":
        from deepcluster.models.pretrained import choose_backbone

        start, why = choose_backbone()
    side = given["image_size"] or ""
    size = int(side) if side.isdigit() else None  # the parser refuses what is no number
    if name is not None:
        _, arguments = take(arguments, "from")
        prog, run, about = f"deepcluster train {name}", find_preset(name).run, find_preset(name).about
        if start is not None:
            from deepcluster.engine.model import begin

            run = begin(run, start, size)
    else:
        from deepcluster.data.open import open_images
        from deepcluster.presets.choose import choose

        _, arguments = take(arguments, "from", "method")
        source = open_images(given["data"])
        device = given["device"] or "auto"
        chosen = choose(source, method=given["method"], image_size=size, device=device, from_=start)
        run = chosen.run if given["epochs"] is None else replace(chosen.run, minutes=None)
        prog, about = "deepcluster train", chosen.sentence(run)
    function = Function(f"{__name__}:train", injected=("preset", "settings", "about", "began", "source"))
    values = parse_options([function], arguments, prog=prog, settings=run, about=about)
    about = "\n".join(filter(None, (why, "" if chosen is None else chosen.sentence(values["settings"]))))
    function.call(values, preset=name or AUTO, settings=values["settings"], about=about, began=began, source=source)


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
    resume: Path,
    epochs: int | None = None,
    from_: Path | None = None,
    optimizer__lr: float | None = None,
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
        from_: an earlier checkpoint of the run to go on from; None = the last one.
        optimizer__lr: another learning rate from there on; None = as before.
        processes: processes on this machine; None = as before. torchrun and SLURM set their number themselves.
        data: the images, if they have moved; None = where they were.
    """
    must_exist(data)
    from deepcluster.engine import train as engine
    from deepcluster.engine.length import is_finished
    from deepcluster.engine.log import Screen
    from deepcluster.engine.occupy import settle
    from deepcluster.engine.run import load_run
    from deepcluster.engine.run_folder import read_config

    screen = Screen(quiet=is_secondary_process(), stderr=json)
    settle(resume, screen.warn)
    config = read_config(resume)
    if not params_of(config).trains:
        raise DeepClusterError(
            f"{resume} is a grouping, in which nothing is trained: `deepcluster cluster {config['data']} --out"
            f" {resume}` goes on with it."
        )
    same = from_ is None and preset in (None, config["preset"]) and epochs in (None, config["settings"].get("epochs"))
    if same and is_finished(resume):
        run = load_run(resume, "cpu")
        done = len(run.metrics)
        more = f"deepcluster train --resume {shlex.quote(str(run.folder))} --epochs {2 * max(1, done)}"
        _show(run, screen, json, f"{run.folder} is finished after {done:,} epochs. To train it longer: {more}")
        return
    with _resume_hint(resume, screen):
        run = engine.train_again(
            resume, data, screen, None, epochs, processes, start=from_, lr=optimizer__lr, preset=preset
        )
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
        from deepcluster.engine.run_folder import how_to_resume

        raise type(sentence)(f"{sentence}{how_to_resume(folder)}") from error


def _show(run: Run, screen: Screen, as_json: bool, sentence: str = "") -> None:
    """What to do next, or the last epoch as JSON."""
    if not is_secondary_process():
        folder, rows = run.folder, run.metrics
        values = {"run": str(folder), "epochs": len(rows), "last": rows[-1] if rows else None}
        show(screen, as_json, values, sentence or f"done: {folder}  (next: deepcluster report {folder})")

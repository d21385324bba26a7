"""`deepcluster doctor RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.data.open import must_exist


@dataclass(frozen=True)
class Doctor:
    """What a run's curves, clusters and views mean, in plain sentences, what to change, and how many clusters."""

    run: Positional[Path]
    """The run folder, of a finished, stopped or broken run."""
    source: Annotated[str | None, arg(name="data")] = None
    """The training images, where they have moved; none = where they were."""
    images: int = 512
    """So many of them, at most, are looked at in training views and without color; 0 = none."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object."""


def command(arguments: list[str]) -> None:
    """Prints the findings, worst first, and leaves RUN/evaluation/doctor.json."""
    chosen = parse(Doctor, arguments, prog="deepcluster doctor")
    must_exist(chosen.source)
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run
    from deepcluster.evaluate.doctor.diagnosis import diagnose

    screen = Screen(stderr=chosen.json)
    run = load_run(chosen.run, chosen.device)
    found = diagnose(run, chosen.source, sample=chosen.images, screen=screen)
    found.save(run.folder)
    if chosen.json:
        print(found.json())
    else:
        # Sentences are wrapped at the screen's width, beside the column of severities.
        screen.console.print(found.table(), soft_wrap=False)

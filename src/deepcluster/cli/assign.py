"""`deepcluster assign RUN --data S --out FILE`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.cli.processes import several_processes
from deepcluster.data.open import must_exist
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError


@dataclass(frozen=True)
class Assign:
    """Cluster and distance of any images, new ones too, from the saved model alone."""

    run: Positional[Path]
    """The run folder."""
    source: Annotated[str, arg(name="data")]
    """Images, as for train."""
    out: Path
    """The table to write: .csv or .parquet with index, path, cluster, distance."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Assigns."""
    chosen = parse(Assign, arguments, prog="deepcluster assign")
    if chosen.out.suffix not in (".csv", ".parquet"):
        raise DeepClusterError(
            f"Assignments are written as .csv or .parquet, not as {chosen.out.name!r}: change --out."
        )
    must_exist(chosen.source)
    with several_processes() as group:
        _assign(chosen, group)


def _assign(chosen: Assign, group: ProcessGroup) -> None:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run

    screen = Screen(quiet=not group.is_first, stderr=chosen.json)
    run = load_run(chosen.run, chosen.device)
    run.group = group
    pixels = run.pixels(chosen.source)
    with screen.bar("assigning", len(pixels)) as advance:
        assignment = run.assign(pixels, check=advance)
    if not group.is_first:
        return
    assignment.save(chosen.out)
    bad, used = (
        int((assignment.cluster < 0).sum()),
        len(set(assignment.cluster[assignment.cluster >= 0].tolist())),
    )
    if chosen.json:
        print(json_module.dumps({"out": str(chosen.out), "images": len(assignment), "bad": bad, "clusters": used}))
        return
    tail = f", {bad:,} that cannot be decoded (cluster -1)" if bad else ""
    screen.say(f"{chosen.out}: {len(assignment):,} images in {used:,} clusters{tail}")

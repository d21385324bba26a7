"""`deepcluster report RUN`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepcluster.cli.parse import parse


@dataclass(frozen=True)
class Report:
    """One self-contained page with the curves, pictures and clusters of a run."""

    run: Positional[Path]
    """The run folder."""
    clusters: int = 24
    """Clusters shown, the largest first."""
    images: int = 12
    """Images shown of each, the nearest to its center first."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Writes RUN/report.html."""
    chosen = parse(Report, arguments, prog="deepcluster report")
    from deepcluster.engine.run import load_run
    from deepcluster.visualize.report import write_report

    page = write_report(load_run(chosen.run), clusters=chosen.clusters, images=chosen.images)
    print(json_module.dumps({"out": str(page)}) if chosen.json else f"{page}: open it in a browser")

"""`deepcluster report RUN`."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from deepcluster.data.open import must_exist


def report(run: Path, /, *, data: str | None = None, clusters: int = 24, images: int = 12, json: bool = False) -> None:
    """Writes RUN/report.html, one self-contained page with the curves, pictures and clusters of a run.

    Args:
        run: the run folder.
        data: the images of the run, if they have moved; None = where they were.
        clusters: number of clusters shown, largest first.
        images: number of images shown of each cluster, nearest to the centroid first.
    """
    must_exist(data)
    from deepcluster.engine.run import load_run
    from deepcluster.visualize.report import write_report

    page = write_report(load_run(run), data, clusters=clusters, images=images)
    print(dumps({"out": str(page)}) if json else f"{page}: open it in a browser")

"""`deepcluster explore RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.data.open import must_exist


@dataclass(frozen=True)
class Explore:
    """A page on 127.0.0.1 to wander through a run's clusters, and to rename, merge, split, hide and export them."""

    run: Positional[Path]
    """The run folder."""
    source: Annotated[str | None, arg(name="data")] = None
    """The training images, where they have moved, or other images, which are assigned to the run's clusters first."""
    port: int = 8765
    """Port on 127.0.0.1; 0 = any that is free."""
    open: bool = False
    """Open the page in a browser."""
    device: str = "auto"
    """auto, cpu, cuda, mps: where features are computed."""
    export: Path | None = None
    """Serve nothing, but write the clusters with all edits: to a .csv, a .json as COCO has it, or a new folder with a
    folder of links for each cluster."""


def command(arguments: list[str]) -> None:
    """Serves the page until Ctrl-C, or exports."""
    chosen = parse(Explore, arguments, prog="deepcluster explore")
    must_exist(chosen.source)
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run
    from deepcluster.explore.explorer import alone, open_explorer
    from deepcluster.explore.server import export_once, listen, serve

    screen = Screen()
    run = load_run(chosen.run, chosen.device)
    if chosen.export is not None:
        explorer = open_explorer(run, chosen.source, screen)
        what, images = export_once(explorer, chosen.export)
        screen.say(f"{chosen.export}: {what} of {images:,} images")
        return
    listening = listen(chosen.port)
    with listening, alone(run.folder):
        explorer = open_explorer(run, chosen.source, screen)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"

        def started(server: object) -> None:
            screen.say(f"{chosen.run}: {address}  (Ctrl-C to stop)")
            if chosen.open:
                import webbrowser

                webbrowser.open(address)

        serve(explorer, listening, started)
    screen.say(f"stopped; edits are in {explorer.place / 'edits.jsonl'}" if explorer.journal.done else "stopped")

"""`deepcluster explore RUN`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from deepcluster.data.open import must_exist
from deepcluster.errors import counted


def explore(
    run: Path,
    /,
    *,
    data: str | None = None,
    port: int = 8765,
    open: bool = False,
    device: str = "auto",
    export: Path | None = None,
) -> None:
    """Serves a page on 127.0.0.1 to browse the clusters of a run, and to rename, merge, split, hide and export them.

    Args:
        run: the run folder.
        data: the training images, if they have moved, or other images, which are first assigned to the run's clusters.
        port: port on 127.0.0.1; 0 = any free port.
        open: open the page in a browser.
        export: do not serve a page, but write the clusters with all edits to this .csv file, .json file (in the format
            of COCO), .parquet file (for Embedding Atlas), or new folder with a folder of links for each cluster.
    """
    must_exist(data)
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run
    from deepcluster.explore.atlas import write_atlas
    from deepcluster.explore.explorer import Explorer, open_explorer
    from deepcluster.explore.exports import write
    from deepcluster.explore.journal import exclusive
    from deepcluster.explore.server import listen, serve

    def opened() -> Explorer:
        explorer = open_explorer(loaded, data, screen)
        if explorer.journal.notice:
            screen.warn(explorer.journal.notice)
        return explorer

    screen = Screen()
    loaded = load_run(run, device)
    if export is not None:
        explorer = opened()
        if export.suffix.lower() == ".parquet":
            what, images = "table for Embedding Atlas", write_atlas(export, explorer, screen)
        else:
            what, images = write(export, explorer.groups, explorer.jobs["images"].wait())
        screen.print(f"{export}: {what} of {counted(images, 'image')}")
        return
    listening = listen(port)
    with listening, exclusive(loaded.folder), contextlib.ExitStack() as held:
        explorer = opened()

        def started(server: object, address: str) -> None:
            screen.print(f"{run}: {address}  (Ctrl-C to stop)")
            if open:
                open_in_browser(address, held, explorer.folder)

        serve(explorer, listening, started)
    screen.print(f"stopped; edits are in {explorer.folder / 'edits.jsonl'}" if explorer.journal.done else "stopped")


def open_in_browser(address: str, held: contextlib.ExitStack, folder: Path) -> None:
    """Opens a page that leads to `address`, and is removed when `held` ends. Other users see the command line of a
    browser, and cannot read this file."""
    import tempfile
    import webbrowser

    place = folder if os.access(folder, os.W_OK) else None  # browsers in a container do not see the system's folder
    for left in folder.glob(".open-*.html"):  # of an explorer that was killed: no other may edit this run
        with contextlib.suppress(OSError):
            left.unlink()
    file = held.enter_context(tempfile.NamedTemporaryFile("w", prefix=".open-", suffix=".html", dir=place))  # noqa: SIM115
    file.write(f'<meta http-equiv="refresh" content="0;url={address}">')
    file.flush()
    webbrowser.open(Path(file.name).as_uri())

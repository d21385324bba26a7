"""`deepcluster explore RUN`."""

from __future__ import annotations

from pathlib import Path

from deepcluster.data.open import must_exist


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
            of COCO), or new folder with a folder of links for each cluster.
    """
    must_exist(data)
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run
    from deepcluster.explore.explorer import Explorer, exclusive, open_explorer
    from deepcluster.explore.exports import write
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
        what, images = write(export, explorer.groups, explorer.jobs["images"].wait())
        screen.say(f"{export}: {what} of {images:,} images")
        return
    listening = listen(port)
    with listening, exclusive(loaded.folder):
        explorer = opened()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"

        def started(server: object) -> None:
            screen.say(f"{run}: {address}  (Ctrl-C to stop)")
            if open:
                import webbrowser

                webbrowser.open(address)

        serve(explorer, listening, started)
    screen.say(f"stopped; edits are in {explorer.folder / 'edits.jsonl'}" if explorer.journal.done else "stopped")

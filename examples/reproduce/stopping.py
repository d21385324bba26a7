"""When did the downstream score of a run stop rising?

    python examples/reproduce/stopping.py runs/a --out runs/stopping

By the values that `deepcluster train ... --watch knn` left, or by scoring the checkpoints that `--keep-every` kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from common import Row, Study, draw_lines, run_script, with_options
from sweep import leave_one_out
from tyro.conf import Positional, arg

from deepcluster.engine import build
from deepcluster.engine.monitor import NAMES
from deepcluster.engine.run import Run, load_run
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.history import curve


def stopping(
    run: Positional[Path],
    out: Path | None = None,
    device: str = "auto",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """The downstream score by epoch, and the epoch after which it no longer rose.

    Args:
        run: run folder.
        out: folder to write; none = studies/ in the run's folder.
        device: auto, cpu, cuda, mps: where checkpoints are scored.
        as_json: print one JSON object.
    """
    loaded = load_run(run, device)
    epochs, scores = curve(loaded.metrics, "watched")
    rows = [{"epoch": int(epoch), "score": float(score)} for epoch, score in zip(epochs, scores, strict=True)]
    watched = loaded.config["settings"].get("watch", "none")
    measure = NAMES.get(watched, watched) if rows else NAMES["knn"]
    rows = rows or score_checkpoints(loaded)
    best = int(np.argmax([row["score"] for row in rows]))
    page = style.figure(6.4, 3.6)
    axes = page.add_subplot()
    x, y = np.array([row["epoch"] for row in rows]), np.array([100 * row["score"] for row in rows])
    draw_lines(axes, {measure: (x, y)}, f"{measure}: best {y[best]:.1f} % after epoch {x[best]}", f"{measure} (%)")
    axes.plot(x[best], y[best], "o", color=style.SERIES[1], markersize=9)
    settings = {"run": str(run), "measure": measure, "best_epoch": int(x[best]), "best_score": rows[best]["score"]}
    Study("stopping", sentence(loaded, rows, best, measure), settings, rows, page).report(
        out or run / "studies", as_json
    )


def score_checkpoints(run: Run) -> list[Row]:
    """Epoch, counted from 1, and leave-one-out kNN score of each kept epoch-NNNN.ckpt."""
    files = sorted((run.folder / "checkpoints").glob("epoch-*.ckpt"))
    if not files:
        raise DeepClusterError(
            f"{run.folder} has neither watched values nor kept checkpoints: train with --watch knn, or with"
            " --keep-every 1."
        )
    source = run.source()
    networks = (build.at_checkpoint(run.config, file).to(run.device) for file in files)
    return [
        {"epoch": int(file.stem.partition("-")[2]) + 1, "score": leave_one_out(run, network, source)[0]}
        for file, network in zip(files, networks, strict=True)
    ]


def sentence(run: Run, rows: list[Row], best: int, measure: str) -> str:
    """Where the score was highest, whether it has risen since, and which file holds that epoch."""
    epoch, later = rows[best]["epoch"], len(rows) - 1 - best
    text = f"The {measure} was highest after epoch {epoch}, at {100 * rows[best]['score']:.1f} %"
    if len(rows) == 1:
        text += "; one value alone does not show when it stopped rising."
    elif not later:
        text += ", the last one scored: it was still rising, and longer training may help."
    else:
        last = rows[-1]
        text += f", and has not risen in the {later} value{'s' * (later > 1)} after it"
        text += f" ({100 * last['score']:.1f} % after epoch {last['epoch']})."
    kept = run.folder / "checkpoints"
    for file in (kept / "best.ckpt", kept / f"epoch-{epoch - 1:04d}.ckpt"):
        if file.exists():
            return f"{text} {file} holds that epoch."
    return text


if __name__ == "__main__":
    run_script(with_options(stopping))

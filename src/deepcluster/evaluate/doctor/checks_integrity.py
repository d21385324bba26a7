"""Checks of files, images and time: is the run complete and readable, are its images, and where did its time go?"""

from __future__ import annotations

from collections.abc import Iterator

from deepcluster.evaluate.doctor.collect import LAST, RunDiagnostics
from deepcluster.evaluate.doctor.findings import Finding, Severity, capitalize, finding, resume

FEW_EPOCHS = 3
"""NMI(t-1,t) begins with the second epoch, and one pair of clusterings shows no direction."""


def check_files(run: RunDiagnostics) -> Iterator[Finding]:
    """Files that cannot be read."""
    if run.damaged:
        problems = " ".join(f"{name} cannot be read ({why})." for name, why in run.damaged.items())
        yield finding(run, "damaged", "bad", {"files": list(run.damaged)}, problems=problems, repair=_repair(run))


def _repair(run: RunDiagnostics) -> str:
    """How the damaged files can be restored from what is still there."""
    parts = []
    if "metrics.jsonl" in run.damaged:
        parts.append("delete the broken lines of metrics.jsonl")
    lost = [name for name in run.damaged if name not in ("metrics.jsonl", LAST)]
    earlier = sorted(name for name in run.checkpoints if name.startswith("checkpoints/epoch-"))
    if LAST in run.damaged and earlier:
        parts.append(f"copy {earlier[-1]} over {LAST} and resume from there: {resume(run)}")
    elif LAST in run.damaged:
        parts.append(
            f"there is no earlier checkpoint (--keep-every keeps some), so train again with --overwrite; {LAST} is not"
            " needed to assign images or to look at them"
        )
    elif lost and LAST in run.checkpoints:
        parts.append(f"write {' and '.join(lost)} again from the last checkpoint: {resume(run)}")
    elif lost:
        parts.append("there is no checkpoint to write them from, so train again with --overwrite")
    return capitalize("; ".join(parts))


def check_length(run: RunDiagnostics) -> Iterator[Finding]:
    """Epochs that are not done, or that have no curves."""
    rows, done = len(run.rows), int(run.epochs_done or 0)
    if rows < done and "metrics.jsonl" not in run.damaged:
        longer = resume(run, None if done < run.epochs else 2 * done)
        yield finding(run, "curves_lost", "warning", {"done": done, "rows": rows}, resume=longer)
    elif 0 < rows < FEW_EPOCHS:
        enough = 10 * FEW_EPOCHS
        as_planned = run.epochs >= enough and not run.finished
        longer = resume(run, None if as_planned else max(enough, run.epochs))
        epochs = f"{rows:,} epoch{'s are' if rows > 1 else ' is'}"
        yield finding(run, "few_epochs", "note", {"done": rows}, epochs=epochs, resume=longer)
    done = max(rows, done)
    if done < run.epochs and not run.finished and (done or not run.damaged):
        yield finding(run, "unfinished", "note" if done else "warning", {"done": done, "asked": run.epochs})


BAD_IMAGES, MANY_BAD_IMAGES = 0.01, 0.1
"""Photo collections lose a file in some thousands; one in a hundred points to a cause, one in ten to a wrong folder."""
DUPLICATES, MANY_DUPLICATES = 0.05, 0.25
"""Web photos hold a few per cent of exact copies; a quarter shifts centroids and sampling."""


def check_images(run: RunDiagnostics) -> Iterator[Finding]:
    """Images that cannot be decoded, or that are there several times."""
    share = run.bad / max(1, run.images)
    if share > BAD_IMAGES:
        severity: Severity = "warning" if share > MANY_BAD_IMAGES else "note"
        yield finding(run, "bad_images", severity, {"bad": run.bad, "share": share})
    share = run.duplicates / max(1, run.decodable)
    if share > DUPLICATES:
        severity = "warning" if share > MANY_DUPLICATES else "note"
        yield finding(run, "duplicates", severity, {"images": run.duplicates, "share": share})


CLUSTERING_TIME, LONG = 0.5, 60.0
"""The paper spends a third of its time on clustering; a half is more than it is worth, unless all of it is under a
minute."""


def check_time(run: RunDiagnostics) -> Iterator[Finding]:
    """More time for clustering than for training."""
    parts = {part: sum(run.series(f"seconds_{part}")) for part in ("train", "features", "cluster")}
    total = sum(parts.values())
    share = 1 - parts["train"] / max(total, LONG)
    if total >= LONG and share > CLUSTERING_TIME:
        interval = 2 * run.setting("method.reassign", 1.0)
        yield finding(run, "clustering_time", "note", {"share": share, **parts}, interval=interval)

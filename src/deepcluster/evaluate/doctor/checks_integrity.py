"""Checks of files, images and time: is the run complete and readable, are its images, and where did its time go?"""

from __future__ import annotations

from collections.abc import Iterator

from deepcluster.evaluate.doctor.collect import LAST, RunDiagnostics
from deepcluster.evaluate.doctor.findings import Finding, alternatives, capitalize, resume

FEW_EPOCHS = 3
"""NMI(t-1,t) begins with the second epoch, and one pair of clusterings shows no direction."""


def check_files(run: RunDiagnostics) -> Iterator[Finding]:
    """Files that cannot be read."""
    if run.damaged:
        yield Finding(
            "damaged",
            "bad",
            " ".join(f"{name} cannot be read ({why})." for name, why in run.damaged.items()),
            "Their content is lost, and was not examined.",
            _repair(run),
            {"files": list(run.damaged)},
        )


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
        yield Finding(
            "curves_lost",
            "warning",
            f"metrics.jsonl has {rows:,} of the {done:,} finished epochs.",
            "The missing part of the curves was not judged, and cannot be computed again.",
            "Put metrics.jsonl back from a copy, or train on, which adds the curves of the epochs to come:"
            f" {resume(run, None if done < run.epochs else 2 * done)}",
            {"done": done, "rows": rows},
        )
    elif 0 < rows < FEW_EPOCHS:
        enough = 10 * FEW_EPOCHS
        as_planned = run.epochs >= enough and not run.finished
        yield Finding(
            "few_epochs",
            "note",
            f"Only {rows:,} epoch{'s are' if rows > 1 else ' is'} done.",
            "Curves and views say little about a network at the start of its training, and were not judged.",
            f"Train longer: {resume(run, None if as_planned else max(enough, run.epochs))}",
            {"done": rows},
        )
    done = max(rows, done)
    if done < run.epochs and not run.finished and (done or not run.damaged):
        yield Finding(
            "unfinished",
            "note" if done else "warning",
            f"{done:,} of {run.epochs:,} epochs are done.",
            "The findings are about a run that is not finished." if done else "There are no curves to judge yet.",
            f"Continue with {resume(run)}",
            {"done": done, "asked": run.epochs},
        )


BAD_IMAGES, MANY_BAD_IMAGES = 0.01, 0.1
"""Photo collections lose a file in some thousands; one in a hundred points to a cause, one in ten to a wrong folder."""
DUPLICATES, MANY_DUPLICATES = 0.05, 0.25
"""Web photos hold a few per cent of exact copies; a quarter shifts centroids and sampling."""


def check_images(run: RunDiagnostics) -> Iterator[Finding]:
    """Images that cannot be decoded, or that are there several times."""
    share = run.bad / max(1, run.images)
    if share > BAD_IMAGES:
        yield Finding(
            "bad_images",
            "warning" if share > MANY_BAD_IMAGES else "note",
            f"{run.bad:,} of {run.images:,} images ({share:.1%}) cannot be decoded.",
            "They are in no cluster; perhaps a download was interrupted or a format is not supported.",
            f"See the reasons in {run.folder}/bad_images.csv, repair the files and train again.",
            {"bad": run.bad, "share": share},
        )
    share = run.duplicates / max(1, run.decodable)
    if share > DUPLICATES:
        yield Finding(
            "duplicates",
            "warning" if share > MANY_DUPLICATES else "note",
            f"{run.duplicates:,} images ({share:.0%}) are exactly as far from their center as others in their cluster.",
            "They are most likely copies of each other, or blank; copies form clusters of their own.",
            "Leave copies out of the folder, or list the images to use in a .txt and give that as --data.",
            {"images": run.duplicates, "share": share},
        )


CLUSTERING_TIME, LONG = 0.5, 60.0
"""The paper spends a third of its time on clustering; a half is more than it is worth, unless all of it is under a
minute."""


def check_time(run: RunDiagnostics) -> Iterator[Finding]:
    """More time for clustering than for training."""
    parts = {part: sum(run.series(f"seconds_{part}")) for part in ("train", "features", "cluster")}
    total = sum(parts.values())
    share = 1 - parts["train"] / max(total, LONG)
    if total >= LONG and share > CLUSTERING_TIME:
        interval = run.setting("method.reassign", 1.0)
        yield Finding(
            "clustering_time",
            "note",
            f"Features and clustering take {share:.0%} of the time.",
            "The paper spends a third; the network could learn more in the same time.",
            alternatives(run, f"cluster half as often: --method.reassign {2 * interval:g}"),
            {"share": share, **parts},
        )

"""Checks of the doctor: is the run whole, are its images, and where did its time go?"""

from __future__ import annotations

from deepcluster.evaluate.doctor.collect import RunDiagnostics, finite
from deepcluster.evaluate.doctor.findings import Finding, rate, resume, ways_out


def damaged(facts: RunDiagnostics) -> Finding | None:
    """Files of the run that cannot be read."""
    if not facts.damaged:
        return None
    return Finding(
        "damaged", "bad", " ".join(f"{name} cannot be read ({why})." for name, why in facts.damaged.items()),
        "What is in there is lost, and was not looked at.", _mended(facts), {"files": list(facts.damaged)},
    )  # fmt: skip


def _mended(facts: RunDiagnostics) -> str:
    """What makes the damaged files whole again, of what is still there."""
    parts = []
    if "metrics.jsonl" in facts.damaged:
        parts.append("delete the broken lines of metrics.jsonl")
    lost = [name for name in facts.damaged if name not in ("metrics.jsonl", LAST)]
    earlier = sorted(name for name in facts.kept if name.startswith("checkpoints/epoch-"))
    if LAST in facts.damaged and earlier:
        parts.append(f"copy {earlier[-1]} over {LAST} and go on from there: {resume(facts)}")
    elif LAST in facts.damaged:
        parts.append(
            f"there is no earlier checkpoint (--keep-every keeps some), so train anew with --overwrite to go on; {LAST}"
            " is not needed to assign images or to look at them"
        )
    elif lost and LAST in facts.kept:
        names = lost[0] if len(lost) == 1 else f"{', '.join(lost[:-1])} and {lost[-1]}"
        parts.append(f"write {names} anew from the last checkpoint: {resume(facts)}")
    elif lost:
        parts.append("there is no checkpoint to write them from, so train anew with --overwrite")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


LAST = "checkpoints/last.ckpt"


def curves_lost(facts: RunDiagnostics) -> Finding | None:
    """Epochs that are done and that metrics.jsonl does not tell of."""
    done, rows = int(facts.done or 0), len(facts.rows)
    if rows >= done or "metrics.jsonl" in facts.damaged:
        return None
    return Finding(
        "curves_lost", "warning", f"metrics.jsonl tells of {rows:,} of the {done:,} epochs that are done.",
        "What is missing of the curves was not judged, and cannot be computed again.",
        "Put metrics.jsonl back from a copy, or train on, which adds the curves of the epochs to come:"
        f" {resume(facts, None if done < (facts.epochs or 0) else 2 * done)}",
        {"done": done, "rows": rows},
    )  # fmt: skip


def unfinished(facts: RunDiagnostics) -> Finding | None:
    """Fewer epochs than were asked for, or none."""
    done, asked = max(len(facts.rows), int(facts.done or 0)), facts.epochs
    if asked is None or done >= asked or facts.finished or (not done and facts.damaged):
        return None
    return Finding(
        "unfinished", "note" if done else "warning", f"{done:,} of {asked:,} epochs are done.",
        "What follows is about a run that is still on its way." if done else "There are no curves to judge yet.",
        f"Go on with {resume(facts)}", {"done": done, "asked": asked},
    )  # fmt: skip


FEW_EPOCHS = 3
"""NMI(t-1,t) begins with the second epoch, and one pair of clusterings shows no direction."""


def few_epochs(facts: RunDiagnostics) -> Finding | None:
    """Too short a run to have curves."""
    done = len(facts.rows)
    if not 0 < done < FEW_EPOCHS or curves_lost(facts):
        return None
    enough = 10 * FEW_EPOCHS
    asked = facts.epochs or 0
    go_on = resume(facts) if asked >= enough and not facts.finished else resume(facts, max(enough, asked))
    return Finding(
        "few_epochs", "note", f"Only {done:,} epoch{'s are' if done > 1 else ' is'} done.",
        "Curves and views say little about a network that has barely begun, and were not judged.",
        f"Train longer: {go_on}", {"done": done},
    )  # fmt: skip


def not_numbers(facts: RunDiagnostics) -> Finding | None:
    """NaN or infinity in the weights or in the loss."""
    losses = [row["epoch"] for row in facts.rows if "loss" in row and not finite(row["loss"])]
    if not facts.not_numbers and not losses:
        return None
    seen = []
    if facts.not_numbers:
        count = len(facts.not_numbers)
        seen.append(
            f"{count:,} tensor{'s hold' if count > 1 else ' holds'} NaN or infinity, first {facts.not_numbers[0]}."
        )
    if losses:
        seen.append(f"The loss is no number in epoch {losses[0] + 1:,}.")
    return Finding(
        "not_numbers", "bad", " ".join(seen), "Training has blown up; features and clusters mean nothing.",
        f"Start again with a lower rate, --optimizer.lr {rate(facts, 0.1)}, or with --optimizer.clip 1.",
        {"tensors": len(facts.not_numbers), "epochs": len(losses)},
    )  # fmt: skip


BAD_IMAGES, MANY_BAD_IMAGES = 0.01, 0.1
"""Photo collections lose a file in some thousands; one in a hundred points to a cause, one in ten to a wrong folder."""


def bad_images(facts: RunDiagnostics) -> Finding | None:
    """Files that cannot be decoded."""
    share = facts.bad / max(1, facts.images)
    if share <= BAD_IMAGES:
        return None
    return Finding(
        "bad_images", "warning" if share > MANY_BAD_IMAGES else "note",
        f"{facts.bad:,} of {facts.images:,} images ({share:.1%}) cannot be decoded.",
        "They are in no cluster; perhaps a download broke off or a format is not known.",
        f"Look at the reasons in {facts.folder}/bad_images.csv, mend the files and train anew.",
        {"bad": facts.bad, "share": share},
    )  # fmt: skip


TWINS, MANY_TWINS = 0.05, 0.25
"""Web photos hold a few per cent of exact copies; a quarter shifts centroids and sampling."""


def duplicates(facts: RunDiagnostics) -> Finding | None:
    """Images with exactly the features of another."""
    share = facts.twins / max(1, facts.good)
    if share <= TWINS:
        return None
    return Finding(
        "duplicates", "warning" if share > MANY_TWINS else "note",
        f"{facts.twins:,} images ({share:.0%}) lie exactly as far from their center as another of their cluster.",
        "They are most likely copies of each other, or blank; copies form clusters of their own.",
        "Leave copies out of the folder, or list the images to use in a .txt and give that as --data.",
        {"images": facts.twins, "share": share},
    )  # fmt: skip


CLUSTERING_TIME, LONG = 0.5, 60.0
"""The paper spends a third of its time on clustering; a half is more than it is worth, unless all of it is under a
minute."""


def clustering_time(facts: RunDiagnostics) -> Finding | None:
    """More time for clusters than for learning."""
    parts = {part: sum(facts.series(f"seconds_{part}")) for part in ("train", "features", "cluster")}
    total = sum(parts.values())
    if total < LONG or (share := 1 - parts["train"] / total) <= CLUSTERING_TIME:
        return None
    interval = facts.setting("method.reassign", 1.0)
    return Finding(
        "clustering_time", "note", f"Features and clustering take {share:.0%} of the time.",
        "The paper spends a third; the network could learn more in the same time.",
        ways_out(facts, f"cluster half as often: --method.reassign {2 * interval:g}"), {"share": share, **parts},
    )  # fmt: skip

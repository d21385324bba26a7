"""The checks: files, images and time; weights, features and views; the curves; the clusters.

Each yields what it finds in a run that `collect.py` has measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np

from deepcluster.clustering.metrics import effective
from deepcluster.engine.health import stuck, swallows
from deepcluster.evaluate.doctor.collect import LAST, RunDiagnostics, is_finite
from deepcluster.evaluate.doctor.findings import (
    MIN_IMAGES,
    NO_GROUP,
    SEVERITIES,
    USUAL_IMAGES,
    Finding,
    Severity,
    capitalize,
    clusters_option,
    fewer_clusters,
    finding,
    has_option,
    max_clusters,
    rate,
    resume,
    round_down,
)

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


HARDLY_MOVED = 1e-4
"""Change of the backbone's weights relative to their norm. Three epochs on the digits change them by a tenth or more;
a ten-thousandth after `FEW_EPOCHS` epochs is not training."""
USUAL_LR = {"sgd": 0.05, "adamw": 0.001, "lars": 0.6}
"""The paper's for SGD (arXiv 1807.05520 §3.3); the usual one for AdamW."""


def check_weights(run: RunDiagnostics) -> Iterator[Finding]:
    """NaN or infinity in weights or loss, and a backbone that still has its initial weights."""
    epochs = [row["epoch"] + 1 for row in run.rows if "loss" in row and not is_finite(row["loss"])]
    seen = []
    if run.not_finite:
        hold = "tensors hold" if len(run.not_finite) > 1 else "tensor holds"
        seen.append(f"{len(run.not_finite):,} {hold} NaN or infinity, first {run.not_finite[0]}.")
    if epochs:
        seen.append(f"The loss is not a finite number in epoch {epochs[0]:,}.")
    if seen:
        values = {"tensors": len(run.not_finite), "epochs": len(epochs)}
        yield finding(run, "not_numbers", "bad", values, problems=" ".join(seen))
    change, lr = run.backbone_change, run.setting("optimizer.lr", 0.0)
    usual = USUAL_LR.get(run.setting("optimizer.name", "sgd"), 0.01)
    if change is not None and change < HARDLY_MOVED and (change == 0 or len(run.rows) >= FEW_EPOCHS):
        moved = f"have changed by only {change:.1e} of their norm" if change else "are exactly those it started with"
        remedy = f"Train again with {rate(run, 10)}, and a --optimizer.warmup that is shorter than the run."
        if lr < usual:
            remedy = f"The learning rate is {lr:g}: train again with --optimizer.lr {max(usual, 10 * lr):.2g}."
        yield finding(run, "frozen_backbone", "bad", {"change": change, "lr": lr}, moved=moved, remedy=remedy)


DEAD, MOSTLY_DEAD = 0.5, 0.9
"""Half of the features without use waste half the network; with a tenth left there is little to cluster."""
RANK, COLLAPSED = 0.5, 0.1
"""Whitening keeps directions with 1e-5 of the largest variance; a healthy network fills all of the width asked for."""


def check_features(run: RunDiagnostics) -> Iterator[Finding]:
    """Outputs of the network that are constant, and features that vary in few directions."""
    if not run.features or not run.directions:
        return
    dead, possible = run.features_dead / run.features, max(1, min(run.directions, run.decodable - 1))
    if dead > DEAD:
        values = {"dead": run.features_dead, "features": run.features}
        yield finding(run, "dead_features", "bad" if dead >= MOSTLY_DEAD else "warning", values)
    elif run.directions_alive < RANK * possible:
        collapsed = run.directions_alive <= max(1, COLLAPSED * possible)
        values = {"alive": run.directions_alive, "directions": possible}
        yield finding(run, "rank_collapse", "bad" if collapsed else "warning", values)


KEPT_NEARLY_ALL = 0.95
"""Share of views that stay in their image's cluster. A well trained network gets near this with strong views too, so
it counts as weakness only together with the next."""
RECOGNIZED = 0.9
"""Share of views whose own image is the nearest of hundreds to the untrained network: on the digits 1.0 without
augmentation, .17 with the preset's. A view that is the image itself teaches no invariance."""
KEPT_FEW, CHANCE_TIMES = 0.1, 1.5
"""Views that still show their image stay with it more often than one in ten, or than chance by half."""
PASSED, PASSED_CHANCE = 1 / 3, 0.4
"""Share of centroids nearer to a view than its image's own; .5 is chance. With many small clusters a view may well
end up next door, but not beyond a third of all (digits: .01 to .04 when healthy, .06 with K = 300, .48 when crops of
1-5 % leave nothing of the digit; CIFAR-10 after six epochs: .12 in color, .23 with Sobel)."""
GRAY_KEPT = 0.5
"""Most images should stay where they are without color; and more of them than of the training views, which vary more
than color."""


def check_views(run: RunDiagnostics) -> Iterator[Finding]:
    """Views that are nearly the image itself, or no longer show what it shows; clusters that are based on color."""
    views = run.agreement
    if views is None:
        return
    values = asdict(views)
    if views.kept > KEPT_NEARLY_ALL and views.recognized > RECOGNIZED:
        yield finding(run, "views_weak", "warning", values)
    if len(run.rows) < FEW_EPOCHS:
        return
    if views.passed > PASSED and views.kept < max(KEPT_FEW, CHANCE_TIMES * views.chance):
        lowest = run.setting("data.crop_scale") or [0.08]
        severity: Severity = "bad" if views.passed > PASSED_CHANCE else "warning"
        yield finding(run, "views_strong", severity, values, scale=max(0.2, min(0.5, 4 * lowest[0])))
    if views.gray_kept < min(GRAY_KEPT, views.kept):
        yield finding(run, "color_reliance", "warning", values)


TREND = 6
"""Epochs before a trend is read: two means of three, since single epochs swing by up to .09 on healthy small runs."""
ABOVE_GUESSING = 1.05
"""A classifier that knows nothing can always predict 1/K, which costs ln K; more is confidently wrong."""
HEAD_AS_INITIALIZED = 1.05
"""The classifier is initialized from N(0, .01); up to this many times that deviation it has not changed."""
GOOD_HEAD_LR = {"sgd": 0.05, "adamw": 0.02, "lars": 0.6}
"""The paper's for SGD (arXiv 1807.05520 §3.3); what learned within fourteen steps on the digits for AdamW."""
LOSS_NEAR_ZERO = 0.1
"""exp(-.1) = .9: nine tenths of the probability go to the pseudo-label of a view that is new to the network, so there
is nothing left to learn from it."""
RISE = 0.1
"""The loss may rise by some per cent when clusters become more even or a rate is raised; a tenth is a trend."""


def check_loss(run: RunDiagnostics) -> Iterator[Finding]:
    """A loss that stays at that of guessing or above, is near zero, or rises."""
    losses, k = run.series("loss"), run.num_pseudo_classes
    if not losses:
        return
    last, guessing, means = losses[-1], math.log(max(1, k)), trend(losses)
    above = len(losses) > 1 and k > 1 and min(losses[-2:]) > ABOVE_GUESSING * guessing
    if above:
        yield finding(run, "loss_above_guessing", "bad", {"loss": last, "ln_k": guessing})
    elif stuck(losses, k) and last <= ABOVE_GUESSING * guessing:
        lr = run.setting("method.head_lr") or run.setting("optimizer.lr", 0.0)
        usual = GOOD_HEAD_LR.get(run.setting("optimizer.name", "sgd"), lr)
        unchanged = run.head_spread is not None and run.head_spread < HEAD_AS_INITIALIZED
        # K = 500 with a head rate of .002 stays at ln 500, where .05 learns (measured on CIFAR-10).
        raised = f"raise its rate, now {lr:g}: --method.head-lr {max(10 * lr, usual):.2g}"
        initial = " Its weights are still the initial ones: the cause is its learning rate, or too few steps."
        values = {"loss": last, "ln_k": guessing, "head_lr": lr, "head_spread": run.head_spread}
        words = {"initial": initial if unchanged else "", "raised": raised if lr < usual or unchanged else ""}
        yield finding(run, "loss_stuck", "bad", values, **words)
    if last < LOSS_NEAR_ZERO and k > 1:
        limit = max_clusters(run)
        more = clusters_option(run, round_down(min(5 * run.k, limit)))
        more = f" or more clusters: {more}" if limit > run.k else ""
        yield finding(run, "loss_near_zero", "warning", {"loss": last}, more=more)
    if means and means[-1] > (1 + RISE) * min(means) and not above:
        yield finding(run, "loss_rising", "warning", {"lowest": min(means), "last": means[-1]})


FALL = 0.1
"""More than means of three epochs differ by on a healthy run (.05 over thirty epochs on the digits)."""
BY_CHANCE = 0.05
"""Share of the way from chance to perfect agreement below which two clusterings have nothing in common. A healthy
run may begin there (3,000 CIFAR-10 images in 200 clusters: .05 after six epochs), so it is read as a trend is."""
NO_RISE, HIGH = 0.01, 0.6
"""A rise that a user would not see on the curve; above .6 an NMI that stands still may have converged: the paper's
and a user's ImageNet runs end between .68 and .8."""
SETTLED, FROZEN = 0.8, 0.95
"""The paper's NMI(t-1,t) saturates below .8 (§4.1); at .95 hardly one image in twenty moves."""
PLATEAU = 12
"""Epochs before leveling off is believed: the last three are compared with three six epochs earlier, since on the
digits three successive epochs stand still by accident."""
REASSIGNED = 0.5
"""When half of the images change cluster, most pseudo-labels were not worth learning; but small clusters trade
images easily, as in our CIFAR-10 preset with ten each, so below `USUAL_IMAGES` it is only worth knowing."""


def check_stability(run: RunDiagnostics) -> Iterator[Finding]:
    """Successive clusterings: with nothing in common, less and less, as much as at first, or nearly everything."""
    values, chance = run.series("nmi_previous"), run.chance_nmi
    means = trend(values)
    first, last, best = (means[0], means[-1], max(means)) if means else (0.0, 0.0, 0.0)
    by_chance = bool(means) and chance is not None and chance < 1 and (last - chance) / (1 - chance) < BY_CHANCE
    if by_chance:
        yield finding(run, "nmi_by_chance", "bad", {"nmi_previous": last, "chance": chance})
    if best - last > FALL:
        yield finding(run, "nmi_falling", "warning", {"best": best, "last": last})
    elif means and not by_chance and best - first < NO_RISE and last < HIGH:
        yield finding(run, "nmi_flat", "warning", {"first": first, "last": last})
    elif len(values) >= PLATEAU and last >= SETTLED and last - means[-7] < NO_RISE:
        yield finding(run, "settled", "note" if last >= FROZEN else "ok", {"nmi_previous": last})
    changes = trend(run.series("reassigned"))
    if changes and changes[-1] > REASSIGNED and not by_chance:
        small = run.decodable < USUAL_IMAGES * max(1, run.k)
        yield finding(run, "reassigned", "note" if small else "warning", {"reassigned": changes[-1]})


DRIFT = 0.02
"""Agreement with labels that a healthy run may lose again (.01 on CIFAR-10 in eighteen epochs), and what NMI(t-1,t)
must have gained meanwhile to call it settling."""


def check_labels(run: RunDiagnostics) -> Iterator[Finding]:
    """Clusters that settle on something other than the labels."""
    columns = ("nmi_labels", "nmi_previous")
    rows = [row for row in run.rows if all(is_finite(row.get(name)) for name in columns)]
    labels, previous = (trend([row[name] for row in rows]) for name in columns)
    best = int(np.argmax(labels)) if labels else 0
    if labels and labels[best] - labels[-1] > DRIFT and previous[-1] - previous[best] > DRIFT:
        values = {"labels_best": labels[best], "labels_last": labels[-1], "previous_last": previous[-1]}
        yield finding(run, "labels_drift", "warning", values, previous_best=previous[best])


def trend(values: Sequence[float]) -> list[float]:
    """Means of three successive epochs, the last one of the last three; empty with fewer than `TREND` epochs."""
    if len(values) < TREND:
        return []
    return [float(np.mean(values[start : start + 3])) for start in range(len(values) - 2)]


def check_number_of_clusters(run: RunDiagnostics) -> Iterator[Finding]:
    """Too few clusters for the classes, or too many for the images."""
    if not run.k or not run.finds_clusters or not run.trains:
        return
    if run.k == 1:
        yield finding(run, "one_cluster", "bad", {"k": 1})
    each = run.decodable / run.k
    if 0 < each < MIN_IMAGES:
        severity: Severity = "bad" if each < NO_GROUP else "warning"
        limit = round_down(max_clusters(run))
        yield finding(run, "few_images", severity, {"images_per_cluster": each, "k": run.k}, limit=limit)
    if run.classes and 2 <= run.classes >= run.k:
        yield finding(run, "under_segmented", "warning", {"k": run.k, "classes": run.classes})


LARGE_SHARE, LARGE_TIMES = 0.2, 10
"""A fifth of all images in one of many clusters, ten times its equal share: on the way to a trivial solution."""
EMPTY, MANY_EMPTY = 0.05, 0.25
"""k-means refills empty clusters within its iterations, so few are left at the end; a quarter is no accident."""
UNEVEN, VERY_UNEVEN = 0.5, 0.2
"""Effective clusters per cluster in use. k-means gives .7 to .95 on photos and digits, a power law less; PIC is
uneven by nature (a third of its clusters under 10 images, the largest near 3,000: appendix of 1807.05520)."""


def check_cluster_sizes(run: RunDiagnostics) -> Iterator[Finding]:
    """One cluster with most of the images (the trivial solution of arXiv 1807.05520 §3.2), empty and uneven ones."""
    sizes, k = run.sizes, run.k
    if sizes is None or not sizes.any():
        return
    used = int((sizes > 0).sum())
    largest, share = int(sizes.max()), float(sizes.max() / sizes.sum())
    trivial = swallows(sizes)
    dominated = k > 1 and (trivial or (share > LARGE_SHARE and share * k > LARGE_TIMES))
    if dominated:
        uniform = run.setting("method.balance", "uniform") == "uniform"
        balance = "" if uniform else "Draw images evenly over clusters: --method.balance uniform. "
        values, images = {"largest": largest, "share": share}, int(sizes.sum())
        yield finding(run, "swallowed", "bad" if trivial else "warning", values, images=images, balance=balance)
    if k - used > EMPTY * k:
        severity: Severity = "warning" if k - used > MANY_EMPTY * k else "note"
        values = {"empty": k - used, "share": 1 - used / k}
        yield finding(run, "empty_clusters", severity, values, fewer=fewer_clusters(run, used))
    elif run.outputs and run.outputs_unused > MANY_EMPTY * run.outputs:
        fewer = fewer_clusters(run, round((1 - run.outputs_unused / run.outputs) * k))
        values = {"unused": run.outputs_unused, "outputs": run.outputs}
        yield finding(run, "unused_outputs", "warning", values, fewer=fewer)
    even = effective(sizes)
    if used >= 3 and even < UNEVEN * used and not dominated:
        severity = "warning" if even < VERY_UNEVEN * used else "note"
        keep = " Keep --method.balance uniform, so that small clusters are learned too."
        balance, fewer = keep if has_option(run, "method.balance") else "", fewer_clusters(run, round(even))
        values = {"effective": even, "used": used}
        yield finding(run, "uneven_sizes", severity, values, fewer=fewer, balance=balance)


CHECKS: tuple[Callable[[RunDiagnostics], Iterable[Finding]], ...] = (
    check_files,
    check_weights,
    check_views,
    check_loss,
    check_number_of_clusters,
    check_cluster_sizes,
    check_features,
    check_stability,
    check_labels,
    check_images,
    check_time,
    check_length,
)
"""All checks. Of two findings of the same severity the likelier cause comes first."""


def run_checks(run: RunDiagnostics) -> list[Finding]:
    """What all checks find, worst first; good signs are left out where something is bad."""
    found = [finding for check in CHECKS for finding in check(run)]
    if any(finding.severity == "bad" for finding in found):
        found = [finding for finding in found if finding.severity != "ok"]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

"""Checks of the curves: the loss, and the agreement of successive clusterings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from deepcluster.engine.health import stuck
from deepcluster.evaluate.doctor.collect import RunDiagnostics, is_finite
from deepcluster.evaluate.doctor.findings import (
    USUAL_IMAGES,
    Finding,
    clusters_option,
    finding,
    max_clusters,
    round_down,
)

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

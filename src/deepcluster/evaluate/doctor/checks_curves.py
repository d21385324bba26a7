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
    alternatives,
    clusters_option,
    fewer_clusters,
    head_rate,
    max_clusters,
    rate,
    rates,
    report,
    round_down,
)

TREND = 6
"""Epochs before a trend is read: two means of three, since single epochs swing by up to .09 on healthy small runs."""
ABOVE_GUESSING = 1.05
"""A classifier that knows nothing can always predict 1/K, which costs ln K; more is confidently wrong."""
HEAD_AS_INITIALIZED = 1.05
"""The classifier is initialized from N(0, .01); up to this many times that deviation it has not changed."""
GOOD_HEAD_LR = {"sgd": 0.05, "adamw": 0.02}
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
        yield Finding(
            "loss_above_guessing",
            "bad",
            f"The loss is {last:.2f}; guessing among {k:,} classes would cost only ln {k:,} = {guessing:.2f}.",
            "The steps are too large: the classifier is confident in wrong answers.",
            f"Lower the rates: {rates(run, 0.2)}.",
            {"loss": last, "ln_k": guessing},
        )
    elif stuck(losses, k) and last <= ABOVE_GUESSING * guessing:
        lr = run.setting("method.head_lr") or run.setting("optimizer.lr", 0.0)
        usual = GOOD_HEAD_LR.get(run.setting("optimizer.name", "sgd"), lr)
        unchanged = run.head_spread is not None and run.head_spread < HEAD_AS_INITIALIZED
        # K = 500 with a head rate of .002 stays at ln 500, where .05 learns (measured on CIFAR-10).
        raised = f"raise its rate, now {lr:g}: --method.head-lr {max(10 * lr, usual):.2g}"
        yield Finding(
            "loss_stuck",
            "bad",
            f"The loss has stayed at ln {k:,} = {guessing:.2f} (now {last:.2f}).",
            "The classifier guesses, so the network learns nothing from it."
            + " Its weights are still the initial ones: the cause is its learning rate, or too few steps." * unchanged,
            alternatives(
                run,
                raised if lr < usual or unchanged else "",
                fewer_clusters(run, run.k // 5),
                "give it more steps between clusterings: --method.reassign 2",
                "a smaller --batch-size",
            ),
            {"loss": last, "ln_k": guessing, "head_lr": lr, "head_spread": run.head_spread},
        )
    if last < LOSS_NEAR_ZERO and k > 1:
        change, limit = "Use stronger views (--data.crop-scale 0.08 1 --data.jitter 0.8)", max_clusters(run)
        if limit > run.k:
            change += f" or more clusters: {clusters_option(run, round_down(min(5 * run.k, limit)))}"
        yield Finding(
            "loss_near_zero",
            "warning",
            f"The loss is {last:.3f}, near zero.",
            "The classifier has memorized every pseudo-label: clusters are too few or views too alike to teach more.",
            f"{change}.",
            {"loss": last},
        )
    if means and means[-1] > (1 + RISE) * min(means) and not above:
        yield Finding(
            "loss_rising",
            "warning",
            f"The loss has risen from {min(means):.2f} to {means[-1]:.2f} (means of three epochs).",
            "It need not fall forever, since the clusters change, but a rise like this means steps that are too large.",
            f"Lower the rate: {rate(run, 0.3)}, or let it fall: --optimizer.schedule cosine.",
            {"lowest": min(means), "last": means[-1]},
        )


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
    values, chance, fewer = run.series("nmi_previous"), run.chance_nmi, fewer_clusters(run, run.k // 2)
    means = trend(values)
    first, last, best = (means[0], means[-1], max(means)) if means else (0.0, 0.0, 0.0)
    by_chance = bool(means) and chance is not None and chance < 1 and (last - chance) / (1 - chance) < BY_CHANCE
    if by_chance:
        yield Finding(
            "nmi_by_chance",
            "bad",
            f"NMI(t-1,t) is {last:.2f}, and random clusters of these sizes would have {chance:.2f}.",
            "Each clustering has nothing to do with the previous one, so the network learns another task every time.",
            alternatives(
                run,
                "let it learn longer from each: --method.reassign 2",
                fewer,
                f"lower the rate: {rate(run, 0.3)}",
            ),
            {"nmi_previous": last, "chance": chance},
        )
    if best - last > FALL:
        yield Finding(
            "nmi_falling",
            "warning",
            f"NMI(t-1,t) has fallen from {best:.2f} to {last:.2f} (means of three epochs).",
            "The clusters were settling and are unstable again: the steps are too large for what is left to learn.",
            alternatives(
                run,
                "let the rate fall: --optimizer.schedule cosine",
                "average the weights: --method.ema-decay 0.99",
                "go back to a checkpoint from before the fall",
            ),
            {"best": best, "last": last},
        )
    elif means and not by_chance and best - first < NO_RISE and last < HIGH:
        yield Finding(
            "nmi_flat",
            "warning",
            f"NMI(t-1,t) was {first:.2f} in the first epochs and is {last:.2f} now: it has not risen.",
            "In a run that learns it rises for a long time (§4.1, figure 2b); these clusters are no clearer than at"
            " first.",
            alternatives(
                run,
                f"raise the classifier's rate: {head_rate(run, 5)}",
                f"raise the backbone's: {rate(run, 3)}",
                fewer,
            ),
            {"first": first, "last": last},
        )
    elif len(values) >= PLATEAU and last >= SETTLED and last - means[-7] < NO_RISE:
        more = f"{clusters_option(run, round_down(2 * run.k))}) or {rate(run, 3)}"
        yield Finding(
            "settled",
            "note" if last >= FROZEN else "ok",
            f"NMI(t-1,t) has levelled off at {last:.2f}.",
            "The clusters hardly change any more: all is learned, or the rate is too low to learn more."
            if last >= FROZEN
            else "The clusters have settled; the paper's runs level off a little below .8.",
            f"Longer training will change little; to learn more use more clusters ({more}."
            if last >= FROZEN
            else "Nothing; longer training will change little.",
            {"nmi_previous": last},
        )
    changes = trend(run.series("reassigned"))
    if changes and changes[-1] > REASSIGNED and not by_chance:
        small = run.decodable < USUAL_IMAGES * max(1, run.k)
        yield Finding(
            "reassigned",
            "note" if small else "warning",
            f"{changes[-1]:.0%} of the images still change cluster from one clustering to the next.",
            ("Small clusters trade images easily; still, much" if small else "Most")
            + " of what the network learns in an epoch is undone in the next.",
            alternatives(
                run,
                "start from the last clusters: --method.init previous",
                "average the weights: --method.ema-decay 0.99",
                fewer,
            ),
            {"reassigned": changes[-1]},
        )


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
        yield Finding(
            "labels_drift",
            "warning",
            f"NMI with the labels has fallen from {labels[best]:.2f} to {labels[-1]:.2f} while NMI(t-1,t) has risen"
            f" from {previous[best]:.2f} to {previous[-1]:.2f}.",
            "The clusters settle on something other than the labels, such as color, background or camera.",
            "Vary in the views what should not count (--data.jitter 0.8, --data.gray 0.2), use edges only"
            f" (--backbone.sobel paper), or stop earlier; what the clusters share is shown by {report(run)}",
            {"labels_best": labels[best], "labels_last": labels[-1], "previous_last": previous[-1]},
        )


def trend(values: Sequence[float]) -> list[float]:
    """Means of three successive epochs, the last one of the last three; empty with fewer than `TREND` epochs."""
    if len(values) < TREND:
        return []
    return [float(np.mean(values[start : start + 3])) for start in range(len(values) - 2)]

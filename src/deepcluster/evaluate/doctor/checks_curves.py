"""Checks of the doctor: what the loss and the agreement of successive clusterings say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deepcluster.engine.health import stuck
from deepcluster.evaluate.doctor.collect import RunDiagnostics, finite
from deepcluster.evaluate.doctor.findings import Finding, clusters, fewer, rate, report, rounded, ways_out
from deepcluster.evaluate.doctor.number_of_clusters import LEAST_IMAGES, USUAL_IMAGES

HEAD_AS_DRAWN = 1.05
"""The classifier is drawn from N(0, .01); a deviation up to this many times that is what it was drawn with."""
GOOD_HEAD_LR = {"sgd": 0.05, "adamw": 0.02}
"""The paper's for SGD (arXiv 1807.05520 §3.3); what learned within fourteen steps on the digits for AdamW."""
ABOVE_GUESSING = 1.05
"""A classifier that knows nothing can always say 1/K, which costs ln K; more is confidently wrong."""


def loss_stuck(facts: RunDiagnostics) -> Finding | None:
    """The loss of a classifier that guesses."""
    losses, k = facts.series("loss"), facts.choices
    if not stuck(losses, k) or losses[-1] > ABOVE_GUESSING * math.log(k):
        return None
    name = facts.setting("optimizer.name", "sgd")
    rate = facts.setting("method.head_lr") or facts.setting("optimizer.lr", 0.0)
    usual = GOOD_HEAD_LR.get(name, rate)
    drawn = facts.head_spread is not None and facts.head_spread < HEAD_AS_DRAWN
    meaning = "The classifier guesses, so the network learns nothing from it."
    if drawn:
        meaning += " Its weights are still as they were drawn: the cause is its learning rate, or too few steps."
    # K = 500 with a head rate of .002 stays at ln 500, where .05 learns (measured on CIFAR-10).
    more = f"raise its rate, now {rate:g}: --method.head-lr {max(10 * rate, usual):.2g}"
    steps = ("give it more steps between clusterings: --method.reassign 2", "a smaller --batch-size")
    return Finding(
        "loss_stuck", "bad", f"The loss has stayed at ln {k:,} = {math.log(k):.2f} (now {losses[-1]:.2f}).", meaning,
        ways_out(facts, more if rate < usual or drawn else "", fewer(facts, 5), *steps),
        {"loss": losses[-1], "ln_k": math.log(k), "head_lr": rate, "head_spread": facts.head_spread},
    )  # fmt: skip


def loss_above_guessing(facts: RunDiagnostics) -> Finding | None:
    """A loss that is worse than guessing."""
    losses, k = facts.series("loss"), facts.choices
    if len(losses) < 2 or k < 2 or min(losses[-2:]) <= ABOVE_GUESSING * math.log(k):
        return None
    return Finding(
        "loss_above_guessing", "bad",
        f"The loss is {losses[-1]:.2f}; guessing among {k:,} classes would cost only ln {k:,} = {math.log(k):.2f}.",
        "The steps are too large: the classifier is sure of what is wrong.",
        f"Lower the rates: --optimizer.lr {rate(facts, 0.2)} --method.head-lr {rate(facts, 0.2, head=True)}.",
        {"loss": losses[-1], "ln_k": math.log(k)},
    )  # fmt: skip


LOSS_NEAR_ZERO = 0.1
"""exp(-.1) = .9: nine tenths of the probability go to the pseudo-label of a view never seen before, so there is
nothing left to learn from it."""


def loss_near_zero(facts: RunDiagnostics) -> Finding | None:
    """Pseudo-labels that are too easy."""
    losses = facts.series("loss")
    if not losses or losses[-1] >= LOSS_NEAR_ZERO or facts.choices < 2:
        return None
    k, most = facts.k or 0, facts.good // LEAST_IMAGES
    stronger = "Use stronger views (--data.crop-scale 0.08 1 --data.jitter 0.8)"
    more = clusters(facts, rounded(min(5 * k, most)))
    change = f"{stronger} or more clusters: {more}." if most > k else f"{stronger}."
    return Finding(
        "loss_near_zero", "warning", f"The loss is {losses[-1]:.3f}, near zero.",
        "The classifier knows every pseudo-label by heart: clusters are too few or views too alike to teach more.",
        change, {"loss": losses[-1]},
    )  # fmt: skip


TREND = 6
"""Epochs before a trend is read: two means of three, since single epochs swing by up to .09 on healthy small runs."""
RISE = 0.1
"""The loss may rise by some per cent when clusters become more even or a rate is raised; a tenth is a trend."""


def loss_rising(facts: RunDiagnostics) -> Finding | None:
    """A loss that has left its lowest point behind."""
    losses = facts.series("loss")
    if len(losses) < TREND:
        return None
    means = _smooth(losses)
    last, lowest = means[-1], min(means)
    if last <= (1 + RISE) * lowest or loss_above_guessing(facts):
        return None
    return Finding(
        "loss_rising", "warning", f"The loss has risen from {lowest:.2f} to {last:.2f} (means of three epochs).",
        "It need not fall forever, since the clusters change, but a rise like this means steps that are too large.",
        f"Lower --optimizer.lr to {rate(facts, 0.3)}, or let it fall: --optimizer.schedule cosine.",
        {"lowest": lowest, "last": last},
    )  # fmt: skip


FALL = 0.1
"""More than means of three epochs differ by on a healthy run (.05 over thirty epochs on the digits)."""
BY_CHANCE = 0.05
"""Share of the way from chance to perfect agreement under which two clusterings have nothing in common. A healthy
run may begin there (3,000 CIFAR-10 images in 200 clusters: .05 after six epochs), so it is read as a trend is."""
NO_RISE, HIGH = 0.01, 0.6
"""A rise that a user would not see on the curve; above .6 an NMI that stands still may just have arrived: the paper's
and a user's ImageNet runs end between .68 and .8."""
SETTLED, FROZEN = 0.8, 0.95
"""The paper's NMI(t-1,t) saturates below .8 (§4.1); at .95 hardly one image in twenty moves."""
PLATEAU = 12
"""Epochs before leveling off is believed: the last three are compared with three six epochs earlier, since on the
digits three successive epochs stand still by accident."""


def nmi_by_chance(facts: RunDiagnostics) -> Finding | None:
    """Successive clusterings that have nothing in common."""
    values, chance = facts.series("nmi_previous"), facts.nmi_chance
    if len(values) < TREND or chance is None or chance >= 1:
        return None
    last = float(np.mean(values[-3:]))
    if (last - chance) / (1 - chance) >= BY_CHANCE:
        return None
    return Finding(
        "nmi_by_chance", "bad",
        f"NMI(t-1,t) is {last:.2f}, and clusters of these sizes dealt out at random would have {chance:.2f}.",
        "Each clustering has nothing to do with the one before, so the network is taught something else every time.",
        ways_out(facts, "let it learn longer from each: --method.reassign 2", fewer(facts, 2),
                  f"calm it with a lower rate: --optimizer.lr {rate(facts, 0.3)}"),
        {"nmi_previous": last, "chance": chance},
    )  # fmt: skip


def nmi_falling(facts: RunDiagnostics) -> Finding | None:
    """Clusters that become less stable."""
    values = facts.series("nmi_previous")
    if len(values) < TREND:
        return None
    means = _smooth(values)
    best, last = max(means), means[-1]
    if best - last <= FALL:
        return None
    return Finding(
        "nmi_falling", "warning", f"NMI(t-1,t) has fallen from {best:.2f} to {last:.2f} (means of three epochs).",
        "The clusters were settling and have come loose again: the steps are too large for what is left to learn.",
        ways_out(facts, "let the rate fall: --optimizer.schedule cosine",
                 "average the weights: --method.averaging 0.99", "go back to a checkpoint from before the fall"),
        {"best": best, "last": last},
    )  # fmt: skip


def nmi_flat(facts: RunDiagnostics) -> Finding | None:
    """Clusters that do not become more stable."""
    values = facts.series("nmi_previous")
    if len(values) < TREND or nmi_by_chance(facts) or nmi_falling(facts):
        return None
    means = _smooth(values)
    if max(means) - means[0] >= NO_RISE or means[-1] >= HIGH:
        return None
    return Finding(
        "nmi_flat", "warning",
        f"NMI(t-1,t) was {means[0]:.2f} in the first epochs and is {means[-1]:.2f} now: it has not risen.",
        "On a run that learns it rises for a long time (§4.1, figure 2b); these clusters are no clearer than at first.",
        ways_out(facts, f"raise the classifier's rate: --method.head-lr {rate(facts, 5, head=True)}",
                  f"raise the backbone's: --optimizer.lr {rate(facts, 3)}", fewer(facts, 2)),
        {"first": means[0], "last": means[-1]},
    )  # fmt: skip


def settled(facts: RunDiagnostics) -> Finding | None:
    """Clusters that have arrived."""
    values = facts.series("nmi_previous")
    if len(values) < PLATEAU or nmi_falling(facts):
        return None
    means = _smooth(values)
    before, last = means[-7], means[-1]
    if last < SETTLED or last - before >= NO_RISE:
        return None
    frozen = last >= FROZEN
    return Finding(
        "settled", "note" if frozen else "ok", f"NMI(t-1,t) has levelled off at {last:.2f}.",
        "The clusters hardly move any more: all is learned, or the rate is too low to learn on." if frozen else
        "The clusters have settled; the paper's runs level off a little below .8.",
        f"Longer training will change little; to go on learning use more clusters"
        f" ({clusters(facts, rounded(2 * (facts.k or 2)))}) or a higher --optimizer.lr {rate(facts, 3)}." if frozen else
        "Nothing; longer training will change little.",
        {"nmi_previous": last},
    )  # fmt: skip


DRIFT = 0.02
"""Agreement with labels that a healthy run may lose again (.01 on CIFAR-10 in eighteen epochs), and what NMI(t-1,t)
must have gained meanwhile to call it settling."""


def labels_drift(facts: RunDiagnostics) -> Finding | None:
    """Clusters that settle on something other than the labels."""
    pairs = [
        (float(row["nmi_labels"]), float(row["nmi_previous"]))
        for row in facts.rows
        if finite(row.get("nmi_labels")) and finite(row.get("nmi_previous"))
    ]
    if len(pairs) < TREND:
        return None
    labels, previous = (_smooth(values) for values in zip(*pairs, strict=True))
    best = int(np.argmax(labels))
    if labels[best] - labels[-1] <= DRIFT or previous[-1] - previous[best] <= DRIFT:
        return None
    return Finding(
        "labels_drift", "warning",
        f"NMI with the labels has fallen from {labels[best]:.2f} to {labels[-1]:.2f} while NMI(t-1,t) has risen from"
        f" {previous[best]:.2f} to {previous[-1]:.2f}.",
        "The clusters settle on something other than the labels, such as color, background or camera.",
        "Vary in the views what should not count (--data.jitter 0.8, --data.gray 0.2), look at edges only"
        f" (--backbone.sobel paper), or stop earlier; what the clusters share is shown by {report(facts)}",
        {"labels_best": labels[best], "labels_last": labels[-1], "previous_last": previous[-1]},
    )  # fmt: skip


REASSIGNED = 0.5
"""When half of the images change cluster, most pseudo-labels were not worth learning; but small clusters trade
images easily, as in our CIFAR-10 preset with ten each, so under `USUAL_IMAGES` it is only worth knowing."""


def reassigned(facts: RunDiagnostics) -> Finding | None:
    """Many images that change cluster to the end."""
    values = facts.series("reassigned")
    if len(values) < TREND or nmi_by_chance(facts):
        return None
    last = float(np.mean(values[-3:]))
    if last <= REASSIGNED:
        return None
    small = facts.good < USUAL_IMAGES * (facts.k or 1)
    return Finding(
        "reassigned", "note" if small else "warning",
        f"{last:.0%} of the images still change cluster from one clustering to the next.",
        "Small clusters trade images easily; still, much of what is taught in an epoch is taken back in the next."
        if small else "Most of what the network is taught in an epoch is taken back in the next.",
        ways_out(facts, "start from the last clusters: --method.init previous",
                  "average the weights: --method.averaging 0.99", fewer(facts, 2)),
        {"reassigned": last},
    )  # fmt: skip


def _smooth(values: Sequence[float]) -> list[float]:
    """Means of three epochs, the last one of the last three."""
    return [float(np.mean(values[start : start + 3])) for start in range(len(values) - 2)]

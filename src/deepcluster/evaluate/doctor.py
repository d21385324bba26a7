"""Is a run healthy, and how many clusters should it have? Sentences with their numbers, and what to change.

Every check is a function of `Facts` that finds one thing, or nothing; its thresholds stand above it with their
reasons. Nothing here reads a file: `vitals.read_facts` does.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deepcluster.clustering.scores import size_stats
from deepcluster.engine.health import stuck, swallows
from deepcluster.evaluate.vitals import Facts, finite

Severity = Literal["bad", "warning", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("bad", "warning", "note", "ok")
"""From worst to best. bad: what comes out is of no use; warning: it would be better otherwise; note: worth knowing;
ok: a good sign."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes:
        check: name of the check.
        seen: what there is, with its number.
        meaning: what that says about the run.
        change: what to do, with our own options.
        values: the numbers behind it.
    """

    check: str
    severity: Severity
    seen: str
    meaning: str
    change: str
    values: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------- is it whole?


def damaged(facts: Facts) -> Finding | None:
    """Files of the run that cannot be read."""
    if not facts.damaged:
        return None
    cures = {
        "metrics.jsonl": "delete the broken lines of metrics.jsonl",
        "checkpoints/last.ckpt": "put the latest checkpoints/epoch-NNNN.ckpt in the place of checkpoints/last.ckpt",
    }
    parts = [cures[name] for name in facts.damaged if name in cures]
    parts.append(f"then write the others anew from the checkpoint: {_resume(facts)}")
    advice = "; ".join(parts).removeprefix("then ")
    return Finding(
        "damaged", "bad", " ".join(f"{name} cannot be read ({why})." for name, why in facts.damaged.items()),
        "What is in there is lost, and was not looked at.", advice[:1].upper() + advice[1:],
        {"files": list(facts.damaged)},
    )  # fmt: skip


def unfinished(facts: Facts) -> Finding | None:
    """Fewer epochs than were asked for, or none."""
    done, asked = len(facts.rows), facts.epochs
    if asked is None or done >= asked or (not done and facts.damaged):
        return None
    return Finding(
        "unfinished", "note" if done else "warning", f"{done:,} of {asked:,} epochs are done.",
        "What follows is about a run that is still on its way." if done else "There are no curves to judge yet.",
        f"Go on with {_resume(facts)}", {"done": done, "asked": asked},
    )  # fmt: skip


FEW_EPOCHS = 3
"""NMI(t-1,t) begins with the second epoch, and one pair of clusterings shows no direction."""


def few_epochs(facts: Facts) -> Finding | None:
    """Too short a run to have curves."""
    done = len(facts.rows)
    if not 0 < done < FEW_EPOCHS:
        return None
    return Finding(
        "few_epochs", "note", f"Only {done:,} epoch{'s are' if done > 1 else ' is'} done.",
        "Curves and views say little about a network that has barely begun, and were not judged.",
        f"Train longer: --epochs {10 * FEW_EPOCHS}.", {"done": done},
    )  # fmt: skip


def not_numbers(facts: Facts) -> Finding | None:
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
        f"Start again with a lower rate, --optimizer.lr {_rate(facts, 0.1)}, or with --optimizer.clip 1.",
        {"tensors": len(facts.not_numbers), "epochs": len(losses)},
    )  # fmt: skip


BAD_IMAGES, MANY_BAD_IMAGES = 0.01, 0.1
"""Photo collections lose a file in some thousands; one in a hundred points to a cause, one in ten to a wrong folder."""


def bad_images(facts: Facts) -> Finding | None:
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


def duplicates(facts: Facts) -> Finding | None:
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


# ---------------------------------------------------------------------------------------------------- loss


HEAD_AS_DRAWN = 1.05
"""The classifier is drawn from N(0, .01); a deviation up to this many times that is what it was drawn with."""
GOOD_HEAD_LR = {"sgd": 0.05, "adamw": 0.02}
"""The paper's for SGD (arXiv 1807.05520 §3.3); what learned within fourteen steps on the digits for AdamW."""
ABOVE_GUESSING = 1.05
"""A classifier that knows nothing can always say 1/K, which costs ln K; more is confidently wrong."""


def loss_stuck(facts: Facts) -> Finding | None:
    """The loss of a classifier that guesses."""
    losses, k = facts.series("loss"), facts.k or 0
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
    steps = "give it more steps between clusterings: --method.reassign 2, or a smaller --batch-size"
    return Finding(
        "loss_stuck", "bad", f"The loss has stayed at ln {k:,} = {math.log(k):.2f} (now {losses[-1]:.2f}).", meaning,
        _sentence(more if rate < usual or drawn else "", _fewer(facts, 5), steps),
        {"loss": losses[-1], "ln_k": math.log(k), "head_lr": rate, "head_spread": facts.head_spread},
    )  # fmt: skip


def loss_above_guessing(facts: Facts) -> Finding | None:
    """A loss that is worse than guessing."""
    losses, k = facts.series("loss"), facts.k or 0
    if len(losses) < 2 or k < 2 or min(losses[-2:]) <= ABOVE_GUESSING * math.log(k):
        return None
    return Finding(
        "loss_above_guessing", "bad",
        f"The loss is {losses[-1]:.2f}; guessing among {k:,} clusters would cost only ln {k:,} = {math.log(k):.2f}.",
        "The steps are too large: the classifier is sure of what is wrong.",
        f"Lower the rates: --optimizer.lr {_rate(facts, 0.2)} --method.head-lr {_rate(facts, 0.2, head=True)}.",
        {"loss": losses[-1], "ln_k": math.log(k)},
    )  # fmt: skip


LOSS_NEAR_ZERO = 0.1
"""exp(-.1) = .9: nine tenths of the probability go to the pseudo-label of a view never seen before, so there is
nothing left to learn from it."""


def loss_near_zero(facts: Facts) -> Finding | None:
    """Pseudo-labels that are too easy."""
    losses = facts.series("loss")
    if not losses or losses[-1] >= LOSS_NEAR_ZERO or (facts.k or 0) < 2:
        return None
    k, most = facts.k or 0, facts.good // LEAST_IMAGES
    stronger = "Use stronger views (--data.crop-scale 0.08 1 --data.jitter 0.8)"
    change = f"{stronger} or more clusters: --method.k {_round(min(5 * k, most))}." if most > k else f"{stronger}."
    return Finding(
        "loss_near_zero", "warning", f"The loss is {losses[-1]:.3f}, near zero.",
        "The classifier knows every pseudo-label by heart: clusters are too few or views too alike to teach more.",
        change, {"loss": losses[-1]},
    )  # fmt: skip


RISE = 0.1
"""The loss may rise by some per cent when clusters become more even or a rate is raised; a tenth is a trend."""


def loss_rising(facts: Facts) -> Finding | None:
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
        f"Lower --optimizer.lr to {_rate(facts, 0.3)}, or let it fall: --optimizer.schedule cosine.",
        {"lowest": lowest, "last": last},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- sizes and K


LARGE_SHARE, LARGE_TIMES = 0.2, 10
"""A fifth of all images in one of many clusters, ten times its equal share: on the way to a trivial solution."""


def swallowed(facts: Facts) -> Finding | None:
    """One cluster that holds most of the images: the trivial solution of arXiv 1807.05520 §3.2."""
    sizes = facts.sizes
    if sizes is None or len(sizes) < 2 or not sizes.sum():
        return None
    largest, share = int(sizes.max()), float(sizes.max() / sizes.sum())
    whole = swallows(sizes)
    if not whole and not (share > LARGE_SHARE and share * len(sizes) > LARGE_TIMES):
        return None
    advice = f"Lower the rates: --optimizer.lr {_rate(facts, 0.2)} --method.head-lr {_rate(facts, 0.2, head=True)};"
    if facts.setting("method.balance", "uniform") != "uniform":
        advice = f"Draw images evenly over clusters: --method.balance uniform. {advice}"
    return Finding(
        "swallowed", "bad" if whole else "warning",
        f"One cluster holds {largest:,} of {int(sizes.sum()):,} images ({share:.0%}).",
        "That is a trivial solution: to the network most images look the same." if whole else
        "It is on the way to swallowing the others, or its images really are all alike.",
        f"{advice} use stronger views (--data.jitter 0.8), and look at its pictures: {_report(facts)}",
        {"largest": largest, "share": share},
    )  # fmt: skip


UNUSED, MANY_UNUSED = 0.05, 0.25
"""k-means refills empty clusters within its rounds, so few are left at the end; a quarter is more than accident."""


def empty_clusters(facts: Facts) -> Finding | None:
    """Clusters without an image."""
    sizes = facts.sizes
    if sizes is None or not sizes.sum():
        return None
    empty, k = int((sizes == 0).sum()), len(sizes)
    if empty <= UNUSED * k:
        return None
    return Finding(
        "empty_clusters", "warning" if empty > MANY_UNUSED * k else "note", f"{empty:,} of {k:,} clusters are empty.",
        "The features do not differ in as many ways as there are clusters.",
        _sentence(_ask(facts, k - empty), "start better: --method.init k-means++"),
        {"empty": empty, "share": empty / k},
    )  # fmt: skip


UNEVEN, VERY_UNEVEN = 0.5, 0.2
"""Effective clusters per cluster in use. k-means gives .7 to .95 on photos and digits, a power law less; PIC is
uneven by nature (a third of its clusters under 10 images, the largest near 3,000: appendix of 1807.05520)."""


def uneven_sizes(facts: Facts) -> Finding | None:
    """Sizes with little entropy."""
    sizes = facts.sizes
    if sizes is None or (sizes > 0).sum() < 3 or swallowed(facts):
        return None
    used = int((sizes > 0).sum())
    even = effective(sizes)
    if even >= UNEVEN * used:
        return None
    return Finding(
        "uneven_sizes", "warning" if even < VERY_UNEVEN * used else "note",
        f"The {used:,} clusters in use are only as even as {even:,.1f} equal ones.",
        "A few clusters hold most images, and many small ones share the rest.",
        _sentence(_ask(facts, round(even)), "start better: --method.init k-means++")
        + " Keep --method.balance uniform, so that small clusters are learned too.",
        {"effective": even, "used": used},
    )  # fmt: skip


LEAST_IMAGES = 10
"""Images a cluster should have: with fewer, half of its images change or come by chance, and the classifier learns
images by heart. The paper has 128 (1.28 M images, K = 10,000); our CIFAR-10 preset goes down to 10."""
NO_GROUP = 2
"""Under two images a cluster there is nothing to group."""
USUAL_IMAGES = 100
"""About the paper's 128 images a cluster, where nothing is known of the kinds."""


def few_images(facts: Facts) -> Finding | None:
    """Clusters that are too small to mean anything."""
    if not facts.k or not facts.good:
        return None
    each = facts.good / facts.k
    if each >= LEAST_IMAGES:
        return None
    return Finding(
        "few_images", "bad" if each < NO_GROUP else "warning",
        f"{facts.good:,} images in {facts.k:,} clusters are {each:.1f} each.",
        "Most clusters are single images: this is telling images apart, not grouping them." if each < NO_GROUP else
        "Such small clusters hang on chance, and the classifier can learn their images by heart.",
        f"Ask for fewer: --method.k {suggested_k(facts)}, at most {_round(max(2, facts.good // LEAST_IMAGES))}.",
        {"images_per_cluster": each, "k": facts.k},
    )  # fmt: skip


OVER_SEGMENTATION = 10
"""Best K over the number of classes: 10,000 for ImageNet's 1,000 (arXiv 1807.05520 §4.1, figure 2c)."""


def under_segmented(facts: Facts) -> Finding | None:
    """No more clusters than classes."""
    if not facts.k or not facts.classes or facts.classes < 2 or facts.k > facts.classes:
        return None
    return Finding(
        "under_segmented", "warning",
        f"There are {facts.k:,} clusters for {facts.classes:,} labeled classes.",
        "Features become better with more clusters than kinds; the paper's best was ten times as many (figure 2c).",
        f"Use --method.k {suggested_k(facts)}, and merge afterwards:"
        f" deepcluster evaluate {shlex.quote(facts.folder)} clusters --k classes",
        {"k": facts.k, "classes": facts.classes},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- NMI


TREND = 6
"""Epochs before a trend is read: two means of three, since single epochs swing by up to .09 on healthy small runs."""
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


def nmi_by_chance(facts: Facts) -> Finding | None:
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
        _sentence("let it learn longer from each: --method.reassign 2", _fewer(facts, 2),
                  f"calm it with a lower rate: --optimizer.lr {_rate(facts, 0.3)}"),
        {"nmi_previous": last, "chance": chance},
    )  # fmt: skip


def nmi_falling(facts: Facts) -> Finding | None:
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
        "Let the rate fall (--optimizer.schedule cosine), average the weights (--method.averaging 0.99), or go back to"
        " a checkpoint from before the fall.",
        {"best": best, "last": last},
    )  # fmt: skip


def nmi_flat(facts: Facts) -> Finding | None:
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
        _sentence(f"raise the classifier's rate: --method.head-lr {_rate(facts, 5, head=True)}",
                  f"raise the backbone's: --optimizer.lr {_rate(facts, 3)}", _fewer(facts, 2)),
        {"first": means[0], "last": means[-1]},
    )  # fmt: skip


def settled(facts: Facts) -> Finding | None:
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
        "settled", "note" if frozen else "ok", f"NMI(t-1,t) has leveled off at {last:.2f}.",
        "The clusters hardly move any more: all is learned, or the rate is too low to learn on." if frozen else
        "The clusters have settled; the paper's runs level off a little below .8.",
        f"Longer training will change little; to go on learning use more clusters (--method.k"
        f" {_round(2 * (facts.k or 2))}) or a higher --optimizer.lr {_rate(facts, 3)}." if frozen else
        "Nothing; longer training will change little.",
        {"nmi_previous": last},
    )  # fmt: skip


DRIFT = 0.02
"""Agreement with labels that a healthy run may lose again (.01 on CIFAR-10 in eighteen epochs), and what NMI(t-1,t)
must have gained meanwhile to call it settling."""


def labels_drift(facts: Facts) -> Finding | None:
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
        f" (--backbone.sobel paper), or stop earlier; what the clusters share is shown by {_report(facts)}",
        {"labels_best": labels[best], "labels_last": labels[-1], "previous_last": previous[-1]},
    )  # fmt: skip


REASSIGNED = 0.5
"""When half of the images change cluster, most pseudo-labels were not worth learning; but small clusters trade
images easily, as in our CIFAR-10 preset with ten each, so under `USUAL_IMAGES` it is only worth knowing."""


def reassigned(facts: Facts) -> Finding | None:
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
        _sentence("start from the last clusters: --method.init previous",
                  "average the weights: --method.averaging 0.99", _fewer(facts, 2)),
        {"reassigned": last},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the network


DEAD, MOSTLY_DEAD = 0.5, 0.9
"""Half of the features without use waste half the network; with a tenth left there is little to cluster."""


def dead_features(facts: Facts) -> Finding | None:
    """Outputs of the network that are the same for every image."""
    if not facts.features or facts.features_dead is None:
        return None
    share = facts.features_dead / facts.features
    if share <= DEAD:
        return None
    return Finding(
        "dead_features", "bad" if share >= MOSTLY_DEAD else "warning",
        f"{facts.features_dead:,} of {facts.features:,} features are the same for every image.",
        "These outputs are dead: steps that were too large have pushed them where no gradient comes back.",
        f"Start again with --optimizer.lr {_rate(facts, 0.2)} and --optimizer.warmup 2.",
        {"dead": facts.features_dead, "features": facts.features},
    )  # fmt: skip


RANK, COLLAPSED = 0.5, 0.1
"""Whitening keeps directions with 1e-5 of the largest variance; a healthy network fills all of the width asked for."""


def rank_collapse(facts: Facts) -> Finding | None:
    """Features that vary in few directions."""
    if not facts.directions or facts.directions_alive is None or dead_features(facts):
        return None
    possible = max(1, min(facts.directions, facts.good - 1))
    if facts.directions_alive >= RANK * possible:
        return None
    collapsed = facts.directions_alive <= max(1, COLLAPSED * possible)
    return Finding(
        "rank_collapse", "bad" if collapsed else "warning",
        f"Features vary in {facts.directions_alive:,} of {possible:,} directions that whitening could keep.",
        "The network says nearly the same of all images." if collapsed else
        "The network tells images apart in few ways; the other directions are empty.",
        f"Lower --optimizer.lr to {_rate(facts, 0.2)}, or start again with another --seed." if collapsed else
        f"Whiten to what is there, --method.whiten {facts.directions_alive}, or lower --optimizer.lr to"
        f" {_rate(facts, 0.3)}.",
        {"alive": facts.directions_alive, "directions": possible},
    )  # fmt: skip


def unused_outputs(facts: Facts) -> Finding | None:
    """Outputs of the classifiers that no image was taught."""
    if not facts.outputs or facts.outputs_unused is None or empty_clusters(facts):
        return None
    share = facts.outputs_unused / facts.outputs
    if share <= MANY_UNUSED:
        return None
    return Finding(
        "unused_outputs", "warning",
        f"{facts.outputs_unused:,} of the classifier's {facts.outputs:,} outputs had no image in the last epoch.",
        "These outputs are dead weight: their clusters were empty while it was trained.",
        _sentence(_ask(facts, round((1 - share) * (facts.k or 0))), "start better: --method.init k-means++"),
        {"unused": facts.outputs_unused, "outputs": facts.outputs},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- views


KEPT_NEARLY_ALL = 0.95
"""Share of views that stay in their image's cluster. A well trained network gets near this with strong views too, so
it counts as weakness only together with the next."""
RECOGNIZED = 0.9
"""Share of views whose own image is the nearest of hundreds to the untrained network: on the digits 1.0 without
augmentation, .17 with the preset's. A view that is the image again teaches no invariance."""
KEPT_FEW, CHANCE_TIMES = 0.1, 1.5
"""Views that still say something of their image stay with it more often than one in ten, or than chance by half."""
PASSED, PASSED_CHANCE = 1 / 3, 0.4
"""Share of centroids nearer to a view than its image's own; .5 is chance. With many small clusters a view may well
land next door, but not beyond a third of all (digits: .01 to .04 when healthy, .06 with K = 300, .48 when crops of
1-5 % leave nothing of the digit; CIFAR-10 after six epochs: .12 in color, .23 with Sobel)."""


def views_weak(facts: Facts) -> Finding | None:
    """Views that are nearly the image itself."""
    seen = facts.agreement
    if seen is None or seen.kept <= KEPT_NEARLY_ALL or seen.recognized <= RECOGNIZED:
        return None
    return Finding(
        "views_weak", "warning",
        f"{seen.kept:.0%} of the training views stay in their image's cluster, and even the untrained network finds the"
        f" image of {seen.recognized:.0%} of them.",
        "The views hardly differ from the images, so the network learns nothing about what should not matter.",
        "Make them stronger: --data.crop-scale 0.2 1 --data.jitter 0.8, or --data.rotate 10 --data.translate 0.1 where"
        " the whole image matters.",
        seen.as_dict(),
    )  # fmt: skip


def views_strong(facts: Facts) -> Finding | None:
    """Views that no longer show what the image shows."""
    seen = facts.agreement
    if seen is None or len(facts.rows) < FEW_EPOCHS or seen.passed <= PASSED:
        return None
    if seen.kept >= max(KEPT_FEW, CHANCE_TIMES * seen.chance):
        return None
    lowest = facts.setting("data.crop_scale") or [0.08]
    return Finding(
        "views_strong", "bad" if seen.passed > PASSED_CHANCE else "warning",
        f"Only {seen.kept:.0%} of the training views stay in their image's cluster ({seen.chance:.0%} by chance).",
        "The views have lost what the clusters rest on, so the pseudo-labels cannot be learned from them.",
        f"Make them weaker: --data.crop-scale {max(0.2, min(0.5, 4 * lowest[0])):.2g} 1, and less of --data.jitter,"
        " --data.rotate, --data.translate and --data.blur.",
        seen.as_dict(),
    )  # fmt: skip


GRAY_KEPT = 0.5
"""Most images should stay where they are without color; and more of them than of the training views, which vary more
than color."""


def color_reliance(facts: Facts) -> Finding | None:
    """Clusters that rest on color."""
    seen = facts.agreement
    if seen is None or len(facts.rows) < FEW_EPOCHS or seen.gray_kept >= min(GRAY_KEPT, seen.kept):
        return None
    return Finding(
        "color_reliance", "warning",
        f"Without color {seen.gray_kept:.0%} of the images stay in their cluster; of the training views"
        f" {seen.kept:.0%} do.",
        "The clusters rest on color more than on shape.",
        "If shape is what you want: --data.jitter 0.8 --data.gray 0.2, or edges in place of color:"
        " --backbone.sobel paper (as the paper does).",
        seen.as_dict(),
    )  # fmt: skip


CLUSTERING_TIME, LONG = 0.5, 60.0
"""The paper spends a third of its time on clustering; a half is more than it is worth, unless all of it is under a
minute."""


def clustering_time(facts: Facts) -> Finding | None:
    """More time for clusters than for learning."""
    parts = {part: sum(facts.series(f"seconds_{part}")) for part in ("train", "features", "cluster")}
    total = sum(parts.values())
    if total < LONG or (share := 1 - parts["train"] / total) <= CLUSTERING_TIME:
        return None
    interval = facts.setting("method.reassign", 1.0)
    return Finding(
        "clustering_time", "note", f"Features and clustering take {share:.0%} of the time.",
        "The paper spends a third; the network could learn more in the same time.",
        f"Cluster half as often: --method.reassign {2 * interval:g}.", {"share": share, **parts},
    )  # fmt: skip


CHECKS: tuple[Callable[[Facts], Finding | None], ...] = (
    damaged, not_numbers, views_strong, loss_stuck, loss_above_guessing, swallowed, dead_features, rank_collapse,
    nmi_by_chance, few_images, views_weak, loss_near_zero, under_segmented, nmi_falling, nmi_flat, labels_drift,
    loss_rising, reassigned, empty_clusters, unused_outputs, uneven_sizes, color_reliance, bad_images, duplicates,
    clustering_time, unfinished, few_epochs, settled,
)  # fmt: skip
"""All checks; of two findings equally bad, the likelier cause stands first."""


def examine(facts: Facts) -> list[Finding]:
    """What all checks find, worst first; good signs are kept back where something is bad."""
    found = [finding for check in CHECKS if (finding := check(facts)) is not None]
    if any(finding.severity == "bad" for finding in found):
        found = [finding for finding in found if finding.severity != "ok"]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def suggested_k(facts: Facts) -> int:
    """A K to try: ten times the classes if there are labels, else a hundred images a cluster; never fewer than ten
    images a cluster, unless even the classes have fewer."""
    most = max(2, facts.good // LEAST_IMAGES)
    if facts.classes and facts.classes > 1:
        k = min(OVER_SEGMENTATION * facts.classes, most)
        if k <= facts.classes:  # labels as fine as this leave no room for ten images each
            return max(2, min(2 * facts.classes, facts.good // NO_GROUP))
        return _round(k)
    return min(most, _round(max(2, facts.good // USUAL_IMAGES)))


def how_many(facts: Facts) -> str:
    """Answers "how many clusters?" for this run's images, with the reasons."""
    if facts.good < 2:
        return "How many clusters cannot be said without images."
    k, most = suggested_k(facts), max(2, facts.good // LEAST_IMAGES)
    if facts.classes and facts.classes > 1:
        why = (
            f"{facts.classes:,} classes are labeled, and more clusters than classes work best: ten times as many in"
            " the paper (figure 2c)"
        )
    else:
        why = "ten times the kinds you expect works best (figure 2c); not knowing them, about a hundred images each"
    limit = f"above {_round(most):,} clusters would have fewer than {LEAST_IMAGES} images"
    now = ""
    if facts.k and facts.sizes is not None:
        now = f" This run has {facts.k:,}, as even as {effective(facts.sizes):,.0f} equal ones"
        low = facts.classes + 1 if facts.classes and facts.classes > 1 else max(2, k // 10)
        fits = low <= facts.k <= max(most, k)
        near = k / 3 <= facts.k <= 3 * k
        now += ": a good number." if fits and near else ": it can work." if fits else ": change it."
    return f"For {facts.good:,} images try --method.k {k}: {why}; {limit}.{now}"


def effective(sizes: np.ndarray) -> float:
    """exp of the entropy of (K,) sizes: as many equal clusters would be as even."""
    used = sizes[sizes > 0]
    if len(used) < 2:
        return float(len(used))
    return float(len(used) ** size_stats(np.repeat(np.arange(len(used)), used), len(used))["size_entropy"])


def _smooth(values: Sequence[float]) -> list[float]:
    """Means of three epochs, the last one of the last three."""
    return [float(np.mean(values[start : start + 3])) for start in range(len(values) - 2)]


def _rate(facts: Facts, factor: float, *, head: bool = False) -> str:
    """A learning rate of the run, changed, as it is typed."""
    rate = facts.setting("optimizer.lr", 0.05)
    if head:
        rate = facts.setting("method.head_lr", rate)
    return f"{rate * factor:.1g}"


def _round(k: int) -> int:
    """Two leading digits, downward."""
    step = 10 ** max(0, len(str(k)) - 2)
    return k // step * step


def _ask(facts: Facts, k: int) -> str:
    """Advice to use about K clusters, but not under twice as many as there are classes; none if that is not fewer."""
    k = max(2, _round(k), 2 * (facts.classes or 1))
    return f"ask for fewer clusters: --method.k {k}" if k < (facts.k or 0) else ""


def _fewer(facts: Facts, divisor: int) -> str:
    """Advice to use a fraction of the run's clusters."""
    return _ask(facts, (facts.k or 0) // divisor)


def _sentence(*parts: str) -> str:
    """Several ways out in one sentence; empty ones are left out."""
    text = ", or ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "."


def _report(facts: Facts) -> str:
    return f"deepcluster report {shlex.quote(facts.folder)}"


def _resume(facts: Facts) -> str:
    return f"deepcluster train --resume {shlex.quote(facts.folder)}"

"""Checks of the doctor: how many clusters there are, and how large they are."""

from __future__ import annotations

import shlex

from deepcluster.engine.health import swallows
from deepcluster.evaluate.doctor.collect import RunDiagnostics
from deepcluster.evaluate.doctor.findings import Finding, ask_for, clusters, has, rate, report, rounded, ways_out
from deepcluster.evaluate.doctor.number_of_clusters import LEAST_IMAGES, NO_GROUP, effective, suggested_k


def one_cluster(facts: RunDiagnostics) -> Finding | None:
    """One cluster alone."""
    if facts.k != 1 or facts.choices > 1:  # turns alone are something to tell apart
        return None
    return Finding(
        "one_cluster", "bad", "There is one cluster alone.",
        "That is a trivial solution: with nothing to tell apart, nothing is learned and the loss is 0.",
        f"Ask for more: {clusters(facts, max(2, suggested_k(facts)))}.", {"k": 1},
    )  # fmt: skip


LARGE_SHARE, LARGE_TIMES = 0.2, 10
"""A fifth of all images in one of many clusters, ten times its equal share: on the way to a trivial solution."""


def swallowed(facts: RunDiagnostics) -> Finding | None:
    """One cluster that holds most of the images: the trivial solution of arXiv 1807.05520 §3.2."""
    sizes = facts.sizes
    if sizes is None or len(sizes) < 2 or not sizes.sum():
        return None
    largest, share = int(sizes.max()), float(sizes.max() / sizes.sum())
    whole = swallows(sizes)
    if not whole and not (share > LARGE_SHARE and share * len(sizes) > LARGE_TIMES):
        return None
    advice = f"Lower the rates: --optimizer.lr {rate(facts, 0.2)} --method.head-lr {rate(facts, 0.2, head=True)};"
    if facts.setting("method.balance", "uniform") != "uniform":
        advice = f"Draw images evenly over clusters: --method.balance uniform. {advice}"
    return Finding(
        "swallowed", "bad" if whole else "warning",
        f"One cluster holds {largest:,} of {int(sizes.sum()):,} images ({share:.0%}).",
        "That is a trivial solution: to the network most images look the same." if whole else
        "It is on the way to swallowing the others, or its images really are all alike.",
        f"{advice} use stronger views (--data.jitter 0.8), and look at its pictures: {report(facts)}",
        {"largest": largest, "share": share},
    )  # fmt: skip


UNUSED, MANY_UNUSED = 0.05, 0.25
"""k-means refills empty clusters within its rounds, so few are left at the end; a quarter is more than accident."""


def empty_clusters(facts: RunDiagnostics) -> Finding | None:
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
        ways_out(facts, ask_for(facts, k - empty), "start better: --method.init k-means++"),
        {"empty": empty, "share": empty / k},
    )  # fmt: skip


UNEVEN, VERY_UNEVEN = 0.5, 0.2
"""Effective clusters per cluster in use. k-means gives .7 to .95 on photos and digits, a power law less; PIC is
uneven by nature (a third of its clusters under 10 images, the largest near 3,000: appendix of 1807.05520)."""


def uneven_sizes(facts: RunDiagnostics) -> Finding | None:
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
        ways_out(facts, ask_for(facts, round(even)), "start better: --method.init k-means++")
        + " Keep --method.balance uniform, so that small clusters are learned too." * has(facts, "method.balance"),
        {"effective": even, "used": used},
    )  # fmt: skip


def few_images(facts: RunDiagnostics) -> Finding | None:
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
        f"Ask for fewer: {clusters(facts, suggested_k(facts))}, at most"
        f" {rounded(max(2, facts.good // LEAST_IMAGES))} clusters.",
        {"images_per_cluster": each, "k": facts.k},
    )  # fmt: skip


def under_segmented(facts: RunDiagnostics) -> Finding | None:
    """No more clusters than classes."""
    if facts.k == 1 and facts.choices > 1:  # only turns are to be told apart
        return None
    if not facts.k or not facts.classes or facts.classes < 2 or facts.k > facts.classes:
        return None
    return Finding(
        "under_segmented", "warning",
        f"There are {facts.k:,} clusters for {facts.classes:,} labelled classes.",
        "Features become better with more clusters than kinds; the paper's best was ten times as many (figure 2c).",
        f"Use {clusters(facts, suggested_k(facts))}, and merge afterwards:"
        f" deepcluster evaluate {shlex.quote(facts.folder)} clusters --k classes",
        {"k": facts.k, "classes": facts.classes},
    )  # fmt: skip

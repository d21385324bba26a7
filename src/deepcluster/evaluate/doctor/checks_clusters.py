"""Checks of the clusters: how many there are, and how large they are."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from deepcluster.engine.health import swallows
from deepcluster.evaluate.doctor.collect import RunDiagnostics
from deepcluster.evaluate.doctor.findings import (
    MIN_IMAGES,
    NO_GROUP,
    Finding,
    alternatives,
    clusters_option,
    effective,
    fewer_clusters,
    has_option,
    max_clusters,
    rates,
    report,
    round_down,
    suggested_k,
)

BETTER_START = "initialize better: --method.init k-means++"


def check_number_of_clusters(run: RunDiagnostics) -> Iterator[Finding]:
    """Too few clusters for the classes, or too many for the images."""
    if not run.k or not run.finds_clusters:
        return
    suggested = clusters_option(run, suggested_k(run))
    if run.k == 1:
        yield Finding(
            "one_cluster",
            "bad",
            "There is only one cluster.",
            "That is a trivial solution: with nothing to tell apart, nothing is learned and the loss is 0.",
            f"Ask for more: {suggested}.",
            {"k": 1},
        )
    each = run.decodable / run.k
    if 0 < each < MIN_IMAGES:
        yield Finding(
            "few_images",
            "bad" if each < NO_GROUP else "warning",
            f"{run.decodable:,} images in {run.k:,} clusters are {each:.1f} each.",
            "Most clusters are single images: this is instance discrimination, not clustering."
            if each < NO_GROUP
            else "Such small clusters depend on chance, and the classifier can memorize their images.",
            f"Ask for fewer: {suggested}, at most {round_down(max_clusters(run))} clusters.",
            {"images_per_cluster": each, "k": run.k},
        )
    if run.classes and 2 <= run.classes >= run.k:
        yield Finding(
            "under_segmented",
            "warning",
            f"There are {run.k:,} clusters for {run.classes:,} labelled classes.",
            "Features are better with more clusters than classes; the paper's best was ten times as many (figure 2c).",
            f"Use {suggested}, and merge afterwards:"
            f" deepcluster evaluate {shlex.quote(run.folder)} clusters --k classes",
            {"k": run.k, "classes": run.classes},
        )


LARGE_SHARE, LARGE_TIMES = 0.2, 10
"""A fifth of all images in one of many clusters, ten times its equal share: on the way to a trivial solution."""
EMPTY, MANY_EMPTY = 0.05, 0.25
"""k-means refills empty clusters within its iterations, so few are left at the end; a quarter is no accident."""
UNEVEN, VERY_UNEVEN = 0.5, 0.2
"""Effective clusters per cluster in use. k-means gives .7 to .95 on photos and digits, a power law less; PIC is
uneven by nature (a third of its clusters under 10 images, the largest near 3,000: appendix of 1807.05520)."""


def check_cluster_sizes(run: RunDiagnostics) -> Iterator[Finding]:
    """One cluster with most of the images (the trivial solution of arXiv 1807.05520 §3.2), empty and uneven ones."""
    sizes, k, used = run.sizes, run.k, run.clusters_used
    if sizes is None or not used:
        return
    largest, share = int(sizes.max()), float(sizes.max() / sizes.sum())
    trivial = swallows(sizes)
    dominated = k > 1 and (trivial or (share > LARGE_SHARE and share * k > LARGE_TIMES))
    if dominated:
        advice = f"Lower the rates: {rates(run, 0.2)};"
        if run.setting("method.balance", "uniform") != "uniform":
            advice = f"Draw images evenly over clusters: --method.balance uniform. {advice}"
        yield Finding(
            "swallowed",
            "bad" if trivial else "warning",
            f"One cluster holds {largest:,} of {int(sizes.sum()):,} images ({share:.0%}).",
            "That is a trivial solution: to the network most images look the same."
            if trivial
            else "It is about to absorb the others, or its images really are all alike.",
            f"{advice} use stronger views (--data.jitter 0.8), and look at its pictures: {report(run)}",
            {"largest": largest, "share": share},
        )
    if k - used > EMPTY * k:
        yield Finding(
            "empty_clusters",
            "warning" if k - used > MANY_EMPTY * k else "note",
            f"{k - used:,} of {k:,} clusters are empty.",
            "The features do not differ in as many ways as there are clusters.",
            alternatives(run, fewer_clusters(run, used), BETTER_START),
            {"empty": k - used, "share": 1 - used / k},
        )
    elif run.outputs and run.outputs_unused > MANY_EMPTY * run.outputs:
        yield Finding(
            "unused_outputs",
            "warning",
            f"{run.outputs_unused:,} of the classifier's {run.outputs:,} outputs had no image in the last epoch.",
            "These outputs are dead weight: their clusters were empty while it was trained.",
            alternatives(run, fewer_clusters(run, round((1 - run.outputs_unused / run.outputs) * k)), BETTER_START),
            {"unused": run.outputs_unused, "outputs": run.outputs},
        )
    even = effective(sizes)
    if used >= 3 and even < UNEVEN * used and not dominated:
        balance = " Keep --method.balance uniform, so that small clusters are learned too."
        yield Finding(
            "uneven_sizes",
            "warning" if even < VERY_UNEVEN * used else "note",
            f"The {used:,} clusters in use are only as even as {even:,.1f} equal ones.",
            "A few clusters hold most images, and many small ones share the rest.",
            alternatives(run, fewer_clusters(run, round(even)), BETTER_START)
            + (balance if has_option(run, "method.balance") else ""),
            {"effective": even, "used": used},
        )

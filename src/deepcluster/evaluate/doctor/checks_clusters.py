"""Checks of the clusters: how many there are, and how large they are."""

from __future__ import annotations

from collections.abc import Iterator

from deepcluster.engine.health import swallows
from deepcluster.evaluate.doctor.collect import RunDiagnostics
from deepcluster.evaluate.doctor.findings import (
    MIN_IMAGES,
    NO_GROUP,
    Finding,
    Severity,
    effective,
    fewer_clusters,
    finding,
    has_option,
    max_clusters,
    round_down,
)


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
    sizes, k, used = run.sizes, run.k, run.clusters_used
    if sizes is None or not used:
        return
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

"""Is a run healthy, and how many clusters should it have? Sentences with their numbers, and what to change.

Every check is a function of `RunDiagnostics` that finds one thing, or nothing; its thresholds stand above it with their
reasons, by theme in the files `check_*.py`. Nothing there reads a file: `vitals.collect` does.
"""

from __future__ import annotations

from collections.abc import Callable

from deepcluster.evaluate.doctor.checks_clusters import (
    empty_clusters,
    few_images,
    one_cluster,
    swallowed,
    under_segmented,
    uneven_sizes,
)
from deepcluster.evaluate.doctor.checks_curves import (
    labels_drift,
    loss_above_guessing,
    loss_near_zero,
    loss_rising,
    loss_stuck,
    nmi_by_chance,
    nmi_falling,
    nmi_flat,
    reassigned,
    settled,
)
from deepcluster.evaluate.doctor.checks_integrity import (
    bad_images,
    clustering_time,
    curves_lost,
    damaged,
    duplicates,
    few_epochs,
    not_numbers,
    unfinished,
)
from deepcluster.evaluate.doctor.checks_network import (
    color_reliance,
    dead_features,
    rank_collapse,
    unused_outputs,
    views_strong,
    views_weak,
)
from deepcluster.evaluate.doctor.collect import RunDiagnostics
from deepcluster.evaluate.doctor.findings import SEVERITIES, Finding

CHECKS: tuple[Callable[[RunDiagnostics], Finding | None], ...] = (
    damaged, not_numbers, one_cluster, views_strong, loss_stuck, loss_above_guessing, swallowed, dead_features,
    rank_collapse, nmi_by_chance, few_images, views_weak, loss_near_zero, under_segmented, nmi_falling, nmi_flat,
    labels_drift, loss_rising, reassigned, empty_clusters, unused_outputs, uneven_sizes, color_reliance, bad_images,
    duplicates, clustering_time, curves_lost, unfinished, few_epochs, settled,
)  # fmt: skip
"""All checks; of two findings equally bad, the likelier cause stands first."""


def examine(facts: RunDiagnostics) -> list[Finding]:
    """What all checks find, worst first; good signs are kept back where something is bad."""
    found = [finding for check in CHECKS if (finding := check(facts)) is not None]
    if any(finding.severity == "bad" for finding in found):
        found = [finding for finding in found if finding.severity != "ok"]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

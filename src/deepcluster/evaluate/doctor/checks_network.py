"""Checks of the network: its weights, its features, and where augmented views end up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from deepcluster.evaluate.doctor.checks_integrity import FEW_EPOCHS
from deepcluster.evaluate.doctor.collect import RunDiagnostics, is_finite
from deepcluster.evaluate.doctor.findings import Finding, Severity, finding, rate

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

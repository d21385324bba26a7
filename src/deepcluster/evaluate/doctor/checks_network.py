"""Checks of the network: its weights, its features, and where augmented views end up."""

from __future__ import annotations

from collections.abc import Iterator

from deepcluster.evaluate.doctor.checks_integrity import FEW_EPOCHS
from deepcluster.evaluate.doctor.collect import RunDiagnostics, is_finite
from deepcluster.evaluate.doctor.findings import Finding, alternatives, rate

HARDLY_MOVED = 1e-4
"""Change of the backbone's weights relative to their norm. Three epochs on the digits change them by a tenth or more;
a ten-thousandth after `FEW_EPOCHS` epochs is not training."""
USUAL_LR = {"sgd": 0.05, "adamw": 0.001}
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
        yield Finding(
            "not_numbers",
            "bad",
            " ".join(seen),
            "Training has diverged; features and clusters mean nothing.",
            f"Start again with a lower rate, {rate(run, 0.1)}, or with --optimizer.clip 1.",
            {"tensors": len(run.not_finite), "epochs": len(epochs)},
        )
    change, lr = run.backbone_change, run.setting("optimizer.lr", 0.0)
    usual = USUAL_LR.get(run.setting("optimizer.name", "sgd"), 0.01)
    if change is not None and change < HARDLY_MOVED and (change == 0 or len(run.rows) >= FEW_EPOCHS):
        yield Finding(
            "frozen_backbone",
            "bad",
            "The backbone's weights are exactly those it started with."
            if change == 0
            else f"The backbone's weights have changed by only {change:.1e} of their norm.",
            "The backbone has learned nothing: features and clusters are those of before training, whatever the loss.",
            f"The learning rate is {lr:g}: train again with --optimizer.lr {max(usual, 10 * lr):.2g}."
            if lr < usual
            else f"Train again with {rate(run, 10)}, and a --optimizer.warmup that is shorter than the run.",
            {"change": change, "lr": lr},
        )


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
        yield Finding(
            "dead_features",
            "bad" if dead >= MOSTLY_DEAD else "warning",
            f"{run.features_dead:,} of {run.features:,} features are the same for every image.",
            "These outputs are dead: steps that were too large have pushed them where the gradient is zero.",
            f"Start again with {rate(run, 0.2)} and --optimizer.warmup 2.",
            {"dead": run.features_dead, "features": run.features},
        )
    elif run.directions_alive < RANK * possible:
        collapsed = run.directions_alive <= max(1, COLLAPSED * possible)
        whiten = f"whiten to the directions in use: --method.whiten {run.directions_alive}"
        yield Finding(
            "rank_collapse",
            "bad" if collapsed else "warning",
            f"Features vary in {run.directions_alive:,} of {possible:,} directions that whitening could keep.",
            "The network outputs nearly the same for all images."
            if collapsed
            else "The network tells images apart in few ways; the other directions are empty.",
            f"Use {rate(run, 0.2)}, or start again with another --seed."
            if collapsed
            else alternatives(run, whiten, f"lower the rate: {rate(run, 0.3)}"),
            {"alive": run.directions_alive, "directions": possible},
        )


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
    if views.kept > KEPT_NEARLY_ALL and views.recognized > RECOGNIZED:
        yield Finding(
            "views_weak",
            "warning",
            f"{views.kept:.0%} of the training views stay in their image's cluster, and even the untrained network"
            f" finds the image of {views.recognized:.0%} of them.",
            "The views hardly differ from the images, so the network learns nothing about what should not matter.",
            "Make them stronger: --data.crop-scale 0.2 1 --data.jitter 0.8, or --data.rotate 10 --data.translate 0.1"
            " where the whole image matters.",
            views.as_dict(),
        )
    if len(run.rows) < FEW_EPOCHS:
        return
    if views.passed > PASSED and views.kept < max(KEPT_FEW, CHANCE_TIMES * views.chance):
        lowest = run.setting("data.crop_scale") or [0.08]
        yield Finding(
            "views_strong",
            "bad" if views.passed > PASSED_CHANCE else "warning",
            f"Only {views.kept:.0%} of the training views stay in their image's cluster ({views.chance:.0%} by"
            " chance).",
            "The views have lost what the clusters are based on, so the pseudo-labels cannot be learned from them.",
            f"Make them weaker: --data.crop-scale {max(0.2, min(0.5, 4 * lowest[0])):.2g} 1, and less of --data.jitter,"
            " --data.rotate, --data.translate and --data.blur.",
            views.as_dict(),
        )
    if views.gray_kept < min(GRAY_KEPT, views.kept):
        yield Finding(
            "color_reliance",
            "warning",
            f"Without color {views.gray_kept:.0%} of the images stay in their cluster; of the training views"
            f" {views.kept:.0%} do.",
            "The clusters are based on color more than on shape.",
            "If shape is what you want: --data.jitter 0.8 --data.gray 0.2, or edges in place of color:"
            " --backbone.sobel paper (as the paper does).",
            views.as_dict(),
        )

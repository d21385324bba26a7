"""Checks of the doctor: the network's outputs, and what clusters make of its training views."""

from __future__ import annotations

from deepcluster.evaluate.doctor.checks_clusters import MANY_UNUSED, empty_clusters
from deepcluster.evaluate.doctor.checks_integrity import FEW_EPOCHS
from deepcluster.evaluate.doctor.collect import RunDiagnostics
from deepcluster.evaluate.doctor.findings import Finding, ask_for, rate, ways_out

DEAD, MOSTLY_DEAD = 0.5, 0.9
"""Half of the features without use waste half the network; with a tenth left there is little to cluster."""


def dead_features(facts: RunDiagnostics) -> Finding | None:
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
        f"Start again with --optimizer.lr {rate(facts, 0.2)} and --optimizer.warmup 2.",
        {"dead": facts.features_dead, "features": facts.features},
    )  # fmt: skip


RANK, COLLAPSED = 0.5, 0.1
"""Whitening keeps directions with 1e-5 of the largest variance; a healthy network fills all of the width asked for."""


def rank_collapse(facts: RunDiagnostics) -> Finding | None:
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
        f"Lower --optimizer.lr to {rate(facts, 0.2)}, or start again with another --seed." if collapsed else
        ways_out(facts, f"whiten to what is there: --method.whiten {facts.directions_alive}",
                 f"lower the rate: --optimizer.lr {rate(facts, 0.3)}"),
        {"alive": facts.directions_alive, "directions": possible},
    )  # fmt: skip


def unused_outputs(facts: RunDiagnostics) -> Finding | None:
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
        ways_out(facts, ask_for(facts, round((1 - share) * (facts.k or 0))), "start better: --method.init k-means++"),
        {"unused": facts.outputs_unused, "outputs": facts.outputs},
    )  # fmt: skip


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


def views_weak(facts: RunDiagnostics) -> Finding | None:
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


def views_strong(facts: RunDiagnostics) -> Finding | None:
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


def color_reliance(facts: RunDiagnostics) -> Finding | None:
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

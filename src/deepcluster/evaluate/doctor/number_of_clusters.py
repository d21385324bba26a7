"""How many clusters should a run have? Numbers with their reasons (arXiv 1807.05520 §4.1, figure 2c)."""

from __future__ import annotations

import numpy as np

from deepcluster.clustering.metrics import size_stats
from deepcluster.evaluate.doctor.collect import RunDiagnostics
from deepcluster.evaluate.doctor.findings import rounded

LEAST_IMAGES = 10
"""Images a cluster should have: with fewer, half of its images change or come by chance, and the classifier learns
images by heart. The paper has 128 (1.28 M images, K = 10,000); our CIFAR-10 preset goes down to 10."""
NO_GROUP = 2
"""Under two images a cluster there is nothing to group."""
USUAL_IMAGES = 100
"""About the paper's 128 images a cluster, where nothing is known of the kinds."""
OVER_SEGMENTATION = 10
"""Best K over the number of classes: 10,000 for ImageNet's 1,000 (arXiv 1807.05520 §4.1, figure 2c)."""


def suggested_k(facts: RunDiagnostics) -> int:
    """A K to try: ten times the classes if there are labels, else a hundred images a cluster; never fewer than ten
    images a cluster, unless even the classes have fewer."""
    most = max(2, facts.good // LEAST_IMAGES)
    if facts.classes and facts.classes > 1:
        k = min(OVER_SEGMENTATION * facts.classes, most)
        if k <= facts.classes:  # labels as fine as this leave no room for ten images each
            return max(2, min(2 * facts.classes, facts.good // NO_GROUP))
        return rounded(k)
    return min(most, rounded(max(2, facts.good // USUAL_IMAGES)))


def how_many(facts: RunDiagnostics) -> str:
    """Answers "how many clusters?" for this run's images, with the reasons."""
    if facts.good < 2:
        return "How many clusters cannot be said without images."
    k, most = suggested_k(facts), max(2, facts.good // LEAST_IMAGES)
    if facts.classes and facts.classes > 1:
        why = (
            f"{facts.classes:,} classes are labelled, and more clusters than classes work best: ten times as many in"
            " the paper (figure 2c)"
        )
    else:
        why = "ten times the kinds you expect works best (figure 2c); not knowing them, about a hundred images each"
    limit = f"above {rounded(most):,} clusters would have fewer than {LEAST_IMAGES} images"
    if facts.k == 1 and facts.choices > 1:
        return (
            f"This run tells turns apart and has no clusters. A method with clusters could begin with its weights; for"
            f" {facts.good:,} images try {k:,} there: {why}; {limit}."
        )
    now = ""
    if facts.k and facts.sizes is not None:
        now = f" This run has {facts.k:,}, as even as {effective(facts.sizes):,.0f} equal ones"
        low = facts.classes + 1 if facts.classes and facts.classes > 1 else max(2, k // 10)
        fits = low <= facts.k <= max(most, k)
        near = k / 3 <= facts.k <= 3 * k
        now += ": a good number." if fits and near else ": it can work." if fits else ": change it."
    return f"For {facts.good:,} images try {_tried(facts, k)}: {why}; {limit}.{now}"


def _tried(facts: RunDiagnostics, k: int) -> str:
    """About K clusters, as they are asked for; where the algorithm finds their number, which setting moves it."""
    if facts.algorithm == "kmeans":
        return f"--method.k {k}"
    if facts.algorithm == "pic":
        return f"about {k:,} clusters, of which PIC finds fewer by a larger --method.sigma"
    return f"about {k:,} clusters, which the clusterer that was handed over settles"


def effective(sizes: np.ndarray) -> float:
    """exp of the entropy of (K,) sizes: as many equal clusters would be as even."""
    used = sizes[sizes > 0]
    if len(used) < 2:
        return float(len(used))
    return float(len(used) ** size_stats(np.repeat(np.arange(len(used)), used), len(used))["size_entropy"])

"""`Finding`, the result of a check; its words, which are in findings.ini; and advice in terms of options of the run.

This file knows settings and commands, and no check.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from configparser import ConfigParser
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from deepcluster.clustering.metrics import effective
from deepcluster.evaluate.doctor.collect import RunDiagnostics

Severity = Literal["bad", "warning", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("bad", "warning", "note", "ok")
"""From worst to best. bad: the result is of no use; warning: it would be better otherwise; note: worth knowing;
ok: a good sign."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str  # name of the check
    severity: Severity  # one of `SEVERITIES`
    seen: str  # the observation, with its number
    meaning: str  # what that says about the run
    change: str  # what to do, with our own options
    values: dict[str, Any] = field(default_factory=dict)  # the numbers behind it


def finding(run: RunDiagnostics, check: str, severity: Severity, values: dict[str, Any], **words: Any) -> Finding:
    """A finding in the words of findings.ini, where `check` is its section; sentences there have in braces the numbers
    behind it, the run, the advice below, or other `words`."""
    advice = {
        "rate": _Scaled(rate, run),
        "head_rate": _Scaled(head_rate, run),
        "rates": _Scaled(rates, run),
        "fewer": _Scaled(lambda run, factor: fewer_clusters(run, int(run.k * factor)), run),
        "more": _Scaled(lambda run, factor: clusters_option(run, round_down(int(run.k * factor))), run),
        "suggested": clusters_option(run, suggested_k(run)),
        "resume": resume(run),
        "report": report(run),
        "folder": shlex.quote(run.folder),
    }
    known = {"run": run, **advice, **values, **words}

    def lines(part: str) -> list[str]:
        section = _texts()[check]
        text = section.get(f"{part}.{severity}", section.get(part, ""))
        return [line.format_map(known) for line in text.strip().split("\n")]

    seen, meaning, change, after = (" ".join(lines(part)) for part in ("seen", "meaning", "change", "after"))
    change = change or alternatives(run, *lines("try")) + after
    return Finding(check, severity, seen, meaning, change, values)


@cache
def _texts() -> ConfigParser:
    texts = ConfigParser(interpolation=None, delimiters=("=",))
    texts.read(Path(__file__).with_name("findings.ini"), encoding="utf-8")
    return texts


@dataclass(frozen=True)
class _Scaled:
    """`{rate[0.3]}` in findings.ini."""

    option: Callable[[RunDiagnostics, float], str]
    run: RunDiagnostics

    def __getitem__(self, factor: str) -> str:
        return self.option(self.run, float(factor))


KMEANS_OPTIONS = ("k", "iterations", "init", "spherical", "backend")
"""Settings that have no effect where the algorithm is not k-means."""
SIGMA_STEP = 1.5
"""PIC: a factor for sigma that changes the number of clusters and not its order of magnitude."""


def has_option(run: RunDiagnostics, option: str) -> bool:
    """Whether the run's method has an option such as `method.init` and follows it."""
    group, _, name = option.replace("-", "_").partition(".")
    if group != "method":
        return True
    return name in run.setting("method", {}) and (run.algorithm == "kmeans" or name not in KMEANS_OPTIONS)


def alternatives(run: RunDiagnostics, *parts: str) -> str:
    """Several remedies in one sentence, without those that are empty or name an option that the run does not have.
    Where none is left, the advice is to look at the clusters."""
    fitting = [
        part
        for part in parts
        if part and all(has_option(run, name) for name in re.findall(r"--(method\.[\w-]+)", part))
    ]
    return capitalize(", or ".join(fitting)) + "." if fitting else f"See what the clusters share: {report(run)}"


def fewer_clusters(run: RunDiagnostics, k: int) -> str:
    """Advice to use about K clusters, at least two for each class; empty if that is not fewer than now."""
    k = max(2, round_down(k), 2 * (run.classes or 1))
    return f"ask for fewer clusters: {clusters_option(run, k)}" if k < run.k else ""


def clusters_option(run: RunDiagnostics, k: int) -> str:
    """The option that gives about K clusters; PIC and custom clusterers find their number by other settings."""
    if not run.trains:
        return f"--k {k}"
    if run.algorithm == "kmeans":
        return f"--method.k {k}"
    if run.algorithm == "pic":
        factor = SIGMA_STEP if k < run.k else 1 / SIGMA_STEP
        return f"--method.sigma {run.setting('method.sigma', 0.2) * factor:.2g}"
    return "in the settings of the custom clusterer"


def rate(run: RunDiagnostics, factor: float) -> str:
    """The backbone's learning rate times a factor, as an option."""
    return f"--optimizer.lr {run.setting('optimizer.lr', 0.05) * factor:.1g}"


def head_rate(run: RunDiagnostics, factor: float) -> str:
    """The classifier's learning rate times a factor, as an option; by default it is the backbone's."""
    return f"--method.head-lr {run.setting('method.head_lr', run.setting('optimizer.lr', 0.05)) * factor:.1g}"


def rates(run: RunDiagnostics, factor: float) -> str:
    """Both learning rates times a factor, as options."""
    return rate(run, factor) + (f" {head_rate(run, factor)}" if has_option(run, "method.head_lr") else "")


def report(run: RunDiagnostics) -> str:
    """The command that writes the run's report."""
    return f"deepcluster report {shlex.quote(run.folder)}"


def resume(run: RunDiagnostics, epochs: int | None = None) -> str:
    """The command that resumes the run, for another number of epochs if one is given."""
    longer = "" if epochs is None else f" --epochs {epochs}"
    return f"deepcluster train --resume {shlex.quote(run.folder)}{longer}"


def capitalize(text: str) -> str:
    """With a capital first letter; the rest stays."""
    return text[:1].upper() + text[1:]


def round_down(k: int) -> int:
    """To two leading digits."""
    step: int = 10 ** max(0, len(str(k)) - 2)
    return k // step * step


# How many clusters a run should have (arXiv 1807.05520 §4.1, figure 2c).

MIN_IMAGES = 10
"""Images a cluster should have: with fewer, half of its images change or come by chance, and the classifier memorizes
images. The paper has 128 (1.28 M images, K = 10,000); our CIFAR-10 preset goes down to 10."""
NO_GROUP = 2
"""Below two images per cluster there is nothing to group."""
USUAL_IMAGES = 100
"""About the paper's 128 images per cluster, where the number of classes is unknown."""
OVER_SEGMENTATION = 10
"""Best K over the number of classes: 10,000 for ImageNet's 1,000 (§4.1, figure 2c)."""


def max_clusters(run: RunDiagnostics) -> int:
    """The largest K with `MIN_IMAGES` images per cluster."""
    return int(max(2, run.decodable // MIN_IMAGES))


def suggested_k(run: RunDiagnostics) -> int:
    """A K to try: ten times the classes if there are labels, else a hundred images per cluster; never fewer than ten
    images per cluster, unless the classes themselves have fewer."""
    limit, classes = max_clusters(run), run.classes or 0
    if classes <= 1:
        return min(limit, round_down(max(2, run.decodable // USUAL_IMAGES)))
    if limit <= classes:  # labels as fine as this leave no room for ten images each
        return max(2, min(2 * classes, run.decodable // NO_GROUP))
    return round_down(min(OVER_SEGMENTATION * classes, limit))


def how_many(run: RunDiagnostics) -> str:
    """Answers "how many clusters?" for this run's images, with the reasons."""
    if run.decodable < 2:
        return "How many clusters cannot be said without images."
    if not run.trains:
        asked = f"This run has the {run.k:,} that were asked for; without --k they are chosen by the images."
        return run.k_auto or asked
    k, limit, classes = suggested_k(run), max_clusters(run), run.classes or 0
    why = "ten times the classes you expect works best (figure 2c); not knowing them, about a hundred images each"
    if classes > 1:
        best = "more clusters than classes work best: ten times as many in the paper (figure 2c)"
        why = f"{classes:,} classes are labelled, and {best}"
    why += f"; above {round_down(limit):,} clusters would have fewer than {MIN_IMAGES} images"
    if not run.finds_clusters:
        said = "This run predicts rotations and has no clusters. A method with clusters could start from its weights"
        return f"{said}; for {run.decodable:,} images try {k:,} there: {why}."
    tried = {
        "kmeans": f"--method.k {k}",
        "pic": f"about {k:,} clusters, of which PIC finds fewer by a larger --method.sigma",
    }.get(run.algorithm, f"about {k:,} clusters, which the custom clusterer determines")
    current = ""
    if run.sizes is not None and run.k:
        low = classes + 1 if classes > 1 else max(2, k // 10)
        fits = low <= run.k <= max(limit, k)
        verdict = "change it" if not fits else "a good number" if k / 3 <= run.k <= 3 * k else "it can work"
        current = f" This run has {run.k:,}, as even as {effective(run.sizes):,.0f} equal ones: {verdict}."
    return f"For {run.decodable:,} images try {tried}: {why}.{current}"

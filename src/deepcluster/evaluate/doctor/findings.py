"""What a check of the doctor hands back, and the words in which it advises: options that this very run has.

This file knows settings and commands, and no check.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

from deepcluster import config
from deepcluster.evaluate.doctor.collect import RunDiagnostics

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


OF_KMEANS = ("iterations", "init", "spherical", "backend")
"""Settings of DeepCluster that only its k-means follows."""


def has(facts: RunDiagnostics, option: str) -> bool:
    """Whether the run's method has an option such as `method.init` and follows it."""
    group, _, name = option.replace("-", "_").partition(".")
    if group != "method":
        return True
    kind = config.METHODS.get(facts.setting("method.name", "deepcluster"), config.DeepClusterParams)
    if name == "k" or name in OF_KMEANS:
        return hasattr(kind(), name) and facts.algorithm == "kmeans"
    return hasattr(kind(), name)


def ways_out(facts: RunDiagnostics, *parts: str) -> str:
    """Several ways out in one sentence; those that are empty or name an option that the run has not are left out.
    Where none is left, a look at the clusters is what remains."""
    fitting = [
        part for part in parts if part and all(has(facts, name) for name in re.findall(r"--(method\.[\w-]+)", part))
    ]
    if not fitting:
        return f"See what the clusters share: {report(facts)}"
    text = ", or ".join(fitting)
    return text[:1].upper() + text[1:] + "."


def ask_for(facts: RunDiagnostics, k: int) -> str:
    """Advice to use about K clusters, but not under twice as many as there are classes; none if that is not fewer."""
    k = max(2, rounded(k), 2 * (facts.classes or 1))
    return f"ask for fewer clusters: {clusters(facts, k)}" if k < (facts.k or 0) else ""


def fewer(facts: RunDiagnostics, divisor: int) -> str:
    """Advice to use a fraction of the run's clusters."""
    return ask_for(facts, (facts.k or 0) // divisor)


SIGMA_STEP = 1.5
"""PIC: a factor for sigma that changes the number of clusters and not its order."""


def clusters(facts: RunDiagnostics, k: int) -> str:
    """How about K clusters are had; PIC and clusterers of one's own find their number by other settings."""
    if facts.algorithm == "kmeans":
        return f"--method.k {k}"
    if facts.algorithm == "pic":
        factor = SIGMA_STEP if k < (facts.k or 0) else 1 / SIGMA_STEP
        return f"--method.sigma {facts.setting('method.sigma', 0.2) * factor:.2g}"
    return "in the settings of the clusterer that was handed over"


def rate(facts: RunDiagnostics, factor: float, *, head: bool = False) -> str:
    """A learning rate of the run, changed, as it is typed."""
    value = facts.setting("optimizer.lr", 0.05)
    if head:
        value = facts.setting("method.head_lr", value)
    return f"{value * factor:.1g}"


def rounded(k: int) -> int:
    """Two leading digits, downward."""
    step = 10 ** max(0, len(str(k)) - 2)
    return k // step * step


def report(facts: RunDiagnostics) -> str:
    """The command that draws the run's page."""
    return f"deepcluster report {shlex.quote(facts.folder)}"


def resume(facts: RunDiagnostics, epochs: int | None = None) -> str:
    """The command that goes on with the run, to another length if one is given."""
    longer = "" if epochs is None else f" --epochs {epochs}"
    return f"deepcluster train --resume {shlex.quote(facts.folder)}{longer}"

"""Runs all checks on a run folder, and prints what they found on the screen or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.doctor.checks import run_checks
from deepcluster.evaluate.doctor.collect import SAMPLE, collect
from deepcluster.evaluate.doctor.findings import Finding, Severity, how_many, suggested_k
from deepcluster.io import write_text

COLORS: dict[Severity, str] = {"bad": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}


@dataclass(frozen=True)
class Diagnosis:
    """The findings about one run."""

    run: str  # its folder
    findings: list[Finding]  # worst first
    how_many: str  # the answer to "how many clusters?"
    suggested_k: int | None  # the number in it; None without images
    missing: list[str]  # what could not be examined, and why

    @property
    def first(self) -> str:
        """What to try first, in one line."""
        if not self.findings or self.findings[0].severity == "ok":
            return "Nothing has to be changed."
        change = self.findings[0].change
        return f"Nothing is wrong. {change}" if self.findings[0].severity == "note" else change

    def json(self) -> str:
        """One JSON object."""
        return json.dumps({**asdict(self), "first": self.first}, indent=2, ensure_ascii=False, allow_nan=False)

    def save(self, folder: Path | str) -> Path:
        """Writes `folder/evaluation/doctor.json` atomically; DeepClusterError if it cannot be written."""
        return write_text(Path(folder) / "evaluation" / "doctor.json", self.json() + "\n")

    def table(self) -> RenderableType:
        """For the terminal: a summary, each finding with its meaning and remedy, and what to try first."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True)
        rows.add_column()
        for finding in self.findings:
            text = Text(finding.seen, style="bold")
            text.append(f"\n{finding.meaning}\n→ {finding.change}", style="not bold")
            rows.add_row(Text(finding.severity, style=COLORS[finding.severity]), Padding(text, (0, 0, 1, 0)))
        rest = Text("How many clusters? ", style="bold")
        rest.append(self.how_many, style="not bold")
        rest.append("\nWhat to try first: ")
        rest.append(self.first, style="not bold")
        for sentence in self.missing:
            rest.append(f"\n{sentence}", style="not bold dim")
        return Group(Text(self._summary(), style="bold"), Text(), *([rows] if self.findings else []), rest)

    def _summary(self) -> str:
        """One line about all findings."""
        count = Counter(finding.severity for finding in self.findings)
        words: dict[Severity, str] = {"bad": "bad", "warning": "warnings", "note": "notes"}
        parts = [f"{count[name]} {name if count[name] == 1 else many}" for name, many in words.items() if count[name]]
        if parts and not count["bad"] and not count["warning"]:
            parts.insert(0, "nothing wrong")
        return f"{self.run}: {', '.join(parts)}" if parts else f"{self.run} looks healthy."


def diagnose(run: Run, data: Any = None, *, sample: int = SAMPLE, screen: Screen | None = None) -> Diagnosis:
    """Examines a run folder.

    Args:
        run: finished, stopped or broken.
        data: the training images, where they have moved; None = where they were.
        sample: how many images are examined in augmented views, at most; 0 = none.
        screen: shows a progress bar; None = silence.

    Raises:
        DeepClusterError: `data` is given and cannot be opened or holds another number of images; `sample` is negative.
    """
    if sample < 0:
        raise DeepClusterError(f"--images is {sample}: give 0 images or more.")
    found = collect(run, data, sample=sample, screen=screen)
    k = suggested_k(found) if found.decodable > 1 else None
    return Diagnosis(found.folder, run_checks(found), how_many(found), k, found.missing)

"""What `deepcluster doctor` hands back: the findings, on the screen and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.doctor.collect import SAMPLE, collect
from deepcluster.evaluate.doctor.examine import examine
from deepcluster.evaluate.doctor.findings import Finding, Severity
from deepcluster.evaluate.doctor.number_of_clusters import how_many, suggested_k
from deepcluster.io import write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

COLORS: dict[Severity, str] = {"bad": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}


@dataclass(frozen=True)
class Diagnosis:
    """The findings about one run, worst first.

    Attributes:
        how_many: the answer to "how many clusters?".
        suggested_k: the number in it; None without images.
        missing: what could not be looked at, and why.
    """

    run: str
    findings: list[Finding]
    how_many: str
    suggested_k: int | None
    missing: list[str]

    @property
    def first(self) -> str:
        """What to try first, in one line."""
        if not self.findings or self.findings[0].severity == "ok":
            return "Nothing has to be changed."
        change = self.findings[0].change
        return f"Nothing is wrong. {change}" if self.findings[0].severity == "note" else change

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "first": self.first}

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def save(self, folder: Path | str) -> Path:
        """Writes `folder/evaluation/doctor.json`, whole or not at all.

        Raises:
            DeepClusterError: the folder cannot be written.
        """
        file = Path(folder) / "evaluation" / "doctor.json"
        try:
            return write_text(file, self.json() + "\n")
        except OSError as error:
            raise DeepClusterError(f"{file} cannot be written ({error.strerror or error}): make room there.") from error

    def table(self) -> RenderableType:
        """For the terminal: a line that sums up, each finding with its meaning and cure, and what to try first."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True)
        rows.add_column()
        for finding in self.findings:
            text = Text(finding.seen, style="bold")
            text.append(f"\n{finding.meaning}", style="not bold")
            text.append(f"\n→ {finding.change}", style="not bold")
            rows.add_row(Text(finding.severity, style=COLORS[finding.severity]), Padding(text, (0, 0, 1, 0)))
        rest = Text("How many clusters? ", style="bold")
        rest.append(self.how_many, style="not bold")
        rest.append("\nWhat to try first: ")
        rest.append(self.first, style="not bold")
        for sentence in self.missing:
            rest.append(f"\n{sentence}", style="not bold dim")
        return Group(Text(self._sum(), style="bold"), Text(), *([rows] if self.findings else []), rest)

    def _sum(self) -> str:
        """One line about all findings."""
        count = {name: sum(finding.severity == name for finding in self.findings) for name in COLORS}
        parts = [f"{count[name]} {name}" for name in COLORS if count[name] and name != "ok"]
        if parts and not count["bad"] and not count["warning"]:
            parts.insert(0, "nothing wrong")
        return f"{self.run}: {', '.join(parts)}" if parts else f"{self.run} looks healthy."


def diagnose(run: Run, data: Any = None, *, sample: int = SAMPLE, screen: Screen | None = None) -> Diagnosis:
    """Examines a run folder.

    Args:
        run: finished, stopped or broken.
        data: the training images where they are now; None = where they were.
        sample: at most so many images are looked at in views; 0 = none.
        screen: shows a bar meanwhile; None = silence.

    Raises:
        DeepClusterError: `data` is given and cannot be opened or holds another number of images; `sample` is negative.
    """
    if sample < 0:
        raise DeepClusterError(f"{sample} is no number of images to look at: give --images 0 or more.")
    facts = collect(run, data, sample=sample, screen=screen)
    k = suggested_k(facts) if facts.good > 1 else None
    return Diagnosis(str(run.folder), examine(facts), how_many(facts), k, list(facts.missing))

"""What every evaluation protocol hands back: settings, scores as fractions of 1, and the single draws.

This file does not know any protocol.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deepcluster.io import write_text

SHOWN = 60
"""Rows of a table of details that a terminal is shown; the JSON has them all."""


@dataclass(frozen=True)
class Result:
    """One evaluation, as printed and as written to `RUN/evaluation/PROTOCOL.json`."""

    protocol: str  # its name, such as "knn"
    settings: dict[str, Any]  # everything needed to repeat or compare it, in plain values and sentences
    scores: dict[str, float]  # fractions of 1; a mean over draws has its deviation beside it as `NAME_std`
    draws: list[dict[str, Any]] = field(default_factory=list)  # one for every repetition of a random step
    # name -> rows of a table, such as one for every class; written only where there are any
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The parts as plain JSON values; a score that is not a number becomes None."""
        return {name: _plain(part) for name, part in vars(self).items() if part or name != "details"}

    def json(self) -> str:
        """The result as one JSON object."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def save(self, folder: str | Path) -> Path:
        """Writes `folder/PROTOCOL.json`, whole or not at all, and returns its path; DeepClusterError if it cannot."""
        return write_text(Path(folder) / f"{self.protocol}.json", self.json() + "\n")

    def table(self) -> RenderableType:
        """The scores for the terminal, in per cent, deviations beside their means; then what they mean."""
        table = Table(title=self.protocol, title_justify="left")
        table.add_column("score")
        table.add_column("%", justify="right")
        if any(name.endswith("_std") for name in self.scores):
            table.add_column("±", justify="right")
        for name, value in self.scores.items():
            if not (name.endswith("_std") and name.removesuffix("_std") in self.scores):
                deviation = self.scores.get(f"{name}_std")
                table.add_row(name, _percent(value), *([] if deviation is None else [_percent(deviation)]))
        # settings that are sentences; numbers are for the JSON
        notes = [f"{name}: {said}" for name, said in self.settings.items() if isinstance(said, str) and " " in said]
        details = [_detail(name, rows) for name, rows in self.details.items() if len(rows) <= SHOWN]
        return Group(table, *details, Text("\n".join(notes), style="dim"))


def mean_and_std(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the draws that have it and, of several, its standard deviation (n - 1) as NAME_std."""
    scores = {}
    for name in dict.fromkeys(name for draw in draws for name in draw):
        values = [draw[name] for draw in draws if name in draw]
        scores[name] = statistics.fmean(values)
        if len(values) > 1:
            scores[f"{name}_std"] = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return scores


def _detail(name: str, rows: list[dict[str, Any]]) -> RenderableType:
    """Rows as a table: fractions in per cent, whole numbers and words as they are."""
    table = Table(title=name, title_justify="left")
    numbers = {column for row in rows for column, value in row.items() if not isinstance(value, str)}
    for column in rows[0] if rows else ():
        shares = any(isinstance(row[column], float) for row in rows)
        said = column.replace("_", " ") + (" %" if shares else "")
        table.add_column(said, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else _percent(value) for value in row.values()))
    return table


def _percent(value: float | str) -> str:
    """A fraction in per cent; words as they are."""
    return value if isinstance(value, str) else f"{100 * value:.2f}" if math.isfinite(value) else "n/a"


def _plain(value: Any) -> Any:
    """`value` with NumPy numbers, paths, tuples and NaN made into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value

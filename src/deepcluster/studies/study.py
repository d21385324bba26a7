"""What every study hands back: rows, one sentence, a picture; and how they get to disk.

This file does not know any study.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.errors import DeepClusterError
from deepcluster.io import write_json, write_text
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One study: DIR/NAME.csv, NAME.json and NAME.png.

    Attributes:
        name: stem of the three files, such as "k".
        sentence: what the rows say.
        settings: everything needed to repeat it, in plain values and sentences.
        rows: the table, one mapping a row; scores are fractions of 1.
        shown: columns for the terminal; empty = all.
        more: further tables by name, written as NAME-MORE.csv and into the JSON.
    """

    name: str
    sentence: str
    settings: dict[str, Any]
    rows: list[Row]
    shown: tuple[str, ...] = ()
    more: dict[str, list[Row]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not a number becomes None."""
        parts: dict[str, Any] = {"study": self.name, "sentence": self.sentence, "settings": self.settings}
        return _plain(parts | {"rows": self.rows} | self.more)

    def save(self, folder: Path, picture: Figure) -> None:
        """Writes table and picture, each whole or not at all.

        Raises:
            DeepClusterError: the folder cannot be written.
        """
        self.save_tables(folder)
        style.save(picture, folder / f"{self.name}.png")

    def save_tables(self, folder: Path) -> None:
        """Writes the tables alone."""
        write_text(folder / f"{self.name}.csv", as_csv(self.rows))
        for name, rows in self.more.items():
            write_text(folder / f"{self.name}-{name}.csv", as_csv(rows))
        write_json(folder / f"{self.name}.json", self.as_dict())

    def table(self, rows: int = 40) -> RenderableType:
        """The table for the terminal: every row, or as many spread evenly, and the last."""
        from rich.table import Table

        columns = list(self.shown) or _columns(self.rows)
        table = Table(title=self.name, title_justify="left")
        for name in columns:
            numbers = all(not isinstance(row.get(name), str) for row in self.rows)
            words = name.replace("_", " ")
            # what does not fit is folded, texts before numbers; nothing is cut
            least = max(map(len, words.split())) if numbers else None
            table.add_column(words, justify="right" if numbers else "left", overflow="fold", min_width=least)
        step = max(1, math.ceil(len(self.rows) / rows))
        kept = self.rows[::step]
        if self.rows and kept[-1] is not self.rows[-1]:
            kept = [*kept, self.rows[-1]]
        for row in kept:
            table.add_row(*(cell(row.get(name)) for name in columns))
        return table


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as text, with every column that any row has."""
    columns = _columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(name) is None else row[name] for name in columns])
    return text.getvalue()


def read_study(folder: Path, name: str) -> dict[str, Any]:
    """The JSON of a study.

    Raises:
        DeepClusterError: there is none, or it is damaged.
    """
    file = folder / f"{name}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["study"] != name or not isinstance(found["rows"], list):
            raise KeyError(name)
    except OSError as error:
        raise DeepClusterError(
            f"{folder} holds no {name}.json: give the folder that `deepcluster study {name} ... --out` wrote."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeepClusterError(
            f"{file} is damaged or no study of {name}: make it again with `deepcluster study {name}`."
        ) from error
    return found


def run_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each run folder: its own, with its parents' where two would be alike."""
    parts = [folder.resolve().parts[1:] or ("/",) for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise DeepClusterError("The same run is named twice: name each run once.")


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

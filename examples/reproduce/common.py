"""What the scripts beside this one share: every study leaves a table, a picture and a sentence."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deepcluster.cli.parse import parse
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.io import write_json, write_text
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name -> (T,) epochs and (T,) values."""


@dataclass(frozen=True)
class Study:
    """One study, saved as NAME.csv, NAME.json and NAME.png.

    Attributes:
        name: stem of the files.
        sentence: what the rows say.
        settings: what is needed to repeat it, as JSON values.
        rows: the table; scores are fractions of 1.
        figure: the picture.
        more: further tables by name, saved as NAME-MORE.csv and into the JSON.
    """

    name: str
    sentence: str
    settings: dict[str, Any]
    rows: list[Row]
    figure: Figure
    more: dict[str, list[Row]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the picture."""
        return {
            "study": self.name,
            "sentence": self.sentence,
            "settings": self.settings,
            "rows": self.rows,
            **self.more,
        }

    def save(self, folder: Path) -> None:
        """Writes all files, each completely or not at all."""
        write_text(folder / f"{self.name}.csv", as_csv(self.rows))
        for name, rows in self.more.items():
            write_text(folder / f"{self.name}-{name}.csv", as_csv(rows))
        write_json(folder / f"{self.name}.json", self.as_dict())
        style.save(self.figure, folder / f"{self.name}.png")

    def report(self, folder: Path, as_json: bool) -> None:
        """Saves the study, then prints it: as one JSON object, or as table and sentence."""
        self.save(folder)
        if as_json:
            print(json.dumps(self.as_dict() | {"out": str(folder)}))
            return
        table = Table(title=self.name, title_justify="left")
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        for name in columns:
            table.add_column(name.replace("_", " "), overflow="fold")
        for row in self.rows[:: max(1, len(self.rows) // 40)]:
            table.add_row(*(_cell(row.get(name)) for name in columns))
        Console(highlight=False).print(table)
        print(f"{self.sentence}\n{folder / self.name}.png, .csv, .json")


def run_script(command: Callable[[list[str]], None]) -> None:
    """Calls `command` with the words of the command line; a mistake ends with status 2 and one sentence."""
    name = Path(sys.argv[0]).name
    try:
        command(sys.argv[1:])
    except DeepClusterError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print("stopped and saved; the same command continues", file=sys.stderr)
        sys.exit(128 + int(stopped.args[0]))


def with_options(function: Callable[..., None]) -> Callable[[list[str]], None]:
    """A command whose options are the parameters of `function`, explained by its docstring."""
    return lambda arguments: parse(function, arguments, prog=Path(sys.argv[0]).name)


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as text, with every column that any row has."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw_lines(axes: Axes, lines: Lines, title: str, unit: str) -> None:
    """One line per name over epochs; a legend where there are several."""
    from matplotlib.ticker import MaxNLocator

    style.quiet(axes, title, "epoch", unit)
    for number, (name, (x, y)) in enumerate(lines.items()):
        color, dashes = style.SERIES[number % len(style.SERIES)], "-" if number < len(style.SERIES) else "--"
        axes.plot(x, y, color=color, linewidth=1.8, linestyle=dashes, marker="o", markersize=3, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

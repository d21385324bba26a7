"""What a run tells: a line and a bar on the screen, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from deepcluster.config import SIZES
from deepcluster.errors import counted
from deepcluster.io import append, write_bytes
from deepcluster.reading import MOST_TEXT, judged, parse_json, read_bytes, read_text

NUMBERS = (
    "loss", "nmi_previous", "reassigned", "clusters_used", "size_min", "size_max", "size_entropy", "lr",
    "images_per_second", "seconds_train", "seconds_features", "seconds_cluster", "nmi_labels", "purity", "watched",
)  # fmt: skip
"""What the rows of metrics.jsonl hold beside the epoch, where they hold it."""


class Bar:
    """A bar that counts images; calling it moves it on."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def __call__(self, images: int = 1) -> None:
        self.progress.advance(self.task, images)

    def describe(self, text: str) -> None:
        """Changes the words before it."""
        self.progress.update(self.task, description=text)

    def to(self, images: int) -> None:
        """Moves it to so many."""
        self.progress.update(self.task, completed=images)


class _Rate(ProgressColumn):
    """Images, or what else is counted, per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else "", style="dim")


class Screen(Console):
    """rich's console with progress bars: none where the output is not a terminal, and nothing at all when quiet."""

    def __init__(self, quiet: bool = False, *, stderr: bool = False) -> None:
        # Under --json the lines go to stderr, so that stdout holds the object alone.
        super().__init__(quiet=quiet, stderr=stderr, markup=False, highlight=False, soft_wrap=True)
        self.bars = not quiet and not stderr and sys.stdout.isatty()

    def warn(self, line: str) -> None:
        """One line that should not be missed."""
        self.print(f"warning: {line}", style="yellow")

    @contextmanager
    def bar(self, what: str, total: int, unit: str = "images") -> Iterator[Bar]:
        """A bar that counts images, or other units, with a rate and the time that is left."""
        columns = TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), _Rate(unit)
        progress = Progress(*columns, TimeRemainingColumn(), console=self, transient=True)
        with progress if self.bars and total > 0 else nullcontext():
            yield Bar(progress, progress.add_task(what, total=total))


class Metrics:
    """`metrics.jsonl`, one object an epoch, and the same numbers for TensorBoard. A row is put behind the others, so
    that the thousandth epoch costs what the first one does. Epochs of an earlier part of the run are kept `until` one:
    later lines are from work that is done again. Only one process is to `write`; the others remember."""

    def __init__(self, folder: Path, until: int, write: bool = True) -> None:
        self.write = write
        self.file, self.folder = folder / "metrics.jsonl", folder / "tensorboard"
        self.earlier = [row for row in read_metrics(folder) if row["epoch"] < until]
        self.losses = [float(row["loss"]) for row in self.earlier if row.get("loss") is not None]
        self.until = until
        self._writer: Any = None
        kept = "".join(map(_text, self.earlier)).encode()
        self._size = len(kept)
        if write and self.file.exists() and read_bytes(self.file, MOST_TEXT) != kept:
            write_bytes(self.file, kept)

    def add(self, row: dict[str, Any]) -> None:
        """One epoch."""
        row = {name: _plain(value) for name, value in row.items()}
        self.losses.append(row["loss"])
        if not self.write:
            return
        text = _text(row).encode()
        append(self.file, text, self._size)
        self._size += len(text)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self.until)
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, none when it has not been written yet; DeepClusterError for a line that is no
    JSON object of an epoch and its numbers."""
    file = folder / "metrics.jsonl"
    advice = "restore it, or delete that line."
    *lines, cut = (read_text(file, advice=advice) if file.exists() else "").split("\n")
    if cut and not lines:
        lines = [cut]
    rows = []  # without what a kill has cut short: the epoch is done again
    for number, text in enumerate(lines, 1):
        if text:
            with judged(f"Line {number:,} of {file}", advice):
                rows.append(_row(parse_json(text)))
    return rows


def seconds_taken(rows: Sequence[Mapping[str, Any]]) -> float:
    """Everything that the epochs took."""
    parts = [f"seconds_{part}" for part in ("train", "features", "cluster")]
    return float(sum(row.get(part) or 0.0 for row in rows for part in parts))


def _row(value: Any) -> dict[str, Any]:
    """One epoch of metrics.jsonl; a quantity that it does not have is missing or null. ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if type(value.get("epoch")) is not int or not 0 <= value["epoch"] <= SIZES["epochs"]:
        raise ValueError("its epoch is no whole number")
    for name in NUMBERS:
        if isinstance(value.get(name, 0.0), (bool, str, list, dict)):
            raise ValueError(f"its {name} is no number")
    return value


def clusters_of(used: int, smallest: int, largest: int) -> str:
    """How many clusters, and their sizes: 12 clusters of 3-40, 1 cluster of 7."""
    return f"{counted(used, 'cluster')} of {smallest:,}{f'-{largest:,}' * (largest > smallest)}"


def line(row: dict[str, Any], epochs: int, left: str = "", width: int = sys.maxsize) -> str:
    """One epoch in one line of text, which ends with the time that is `left`; where it is wider than the screen, it
    goes on in another one, between two values."""
    parts = [f"epoch {row['epoch'] + 1}/{epochs}", f"loss {row['loss']:.3f}"]
    for name, label in (("nmi_previous", "NMI(t-1,t)"), ("nmi_labels", "NMI(labels)"), ("purity", "purity")):
        if row.get(name) is not None and row["clusters_used"] > 1:
            parts.append(f"{label} {row[name]:.3f}")
    if row.get("watched") is not None:
        parts.append(f"watched {100 * row['watched']:.1f} %")
    if row["clusters_used"] > 1:
        parts.append(clusters_of(row["clusters_used"], row["size_min"], row["size_max"]))
    if row.get("rankme") is not None:
        parts.append(f"RankMe {row['rankme']:.1f}")
    parts.append(f"{row['images_per_second']:,.0f} images/s")
    if left and row["epoch"] + 1 < epochs:
        parts.append(f"{left} left")
    text = "  ".join(part.replace(" ", "\xa0") for part in parts)
    return textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False).replace("\xa0", " ")


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

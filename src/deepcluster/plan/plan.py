"""A plan: a job on a machine, as tables that people read and as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepcluster.plan.constants import Constants, assumed, load
from deepcluster.plan.job import Job
from deepcluster.plan.memory import Item, disk, memory, peak
from deepcluster.plan.stages import Stage, Wire, stages

if TYPE_CHECKING:
    from rich.console import RenderableType

HOUR = 3600.0


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        job: the run in numbers. constants: what its seconds come from, for one process of as many as share a machine.
        memory, disk: bytes of the first process, which has the most. stages: the work of an epoch.
    """

    job: Job
    constants: Constants
    memory: list[Item]
    disk: list[Item]
    stages: list[Stage]

    @property
    def epoch_seconds(self) -> float:
        """An epoch, clusterings with the share that falls on it."""
        return sum(stage.seconds * stage.times for stage in self.stages)

    @property
    def run_seconds(self) -> float:
        """All epochs, what is done once, and the clustering after the last epoch."""
        once = sum(stage.seconds for stage in self.stages if not stage.times)
        last = (
            0.0
            if once
            else sum(s.seconds for s in self.stages if s.name in ("features", "whitening", "k-means", "PIC"))
        )
        return self.job.epochs * self.epoch_seconds + once + last

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        job = dataclasses.asdict(self.job)
        places = ("memory", "device") if self.job.device != "cpu" else ("memory",)
        return {
            "job": job | {"machines": self.job.machines, "steps": self.job.steps, "share": self.job.share},
            "memory": [dataclasses.asdict(item) for item in self.memory],
            "peak": {place: dict(zip(("bytes", "when"), peak(self.memory, place), strict=True)) for place in places},
            "disk": [dataclasses.asdict(item) for item in self.disk],
            "stages": [
                {
                    "name": stage.name,
                    "times_per_epoch": stage.times,
                    "flops": stage.flops,
                    "bytes_sent": stage.told.sent,
                    "messages": stage.told.messages,
                    "seconds": stage.seconds,
                    "parts": stage.parts,
                }
                for stage in self.stages
            ],
            "seconds_per_epoch": self.epoch_seconds,
            "seconds_of_the_run": self.run_seconds,
            "constants": dataclasses.asdict(self.constants),
        }

    def tables(self) -> RenderableType:
        """For a terminal of 80 columns."""
        from rich.console import Group
        from rich.text import Text

        return Group(
            Text(self.title() + "\n"),
            _items("memory of a process, the first", self.memory, ("when", "place")),
            Text(self._peaks() + "\n"),
            _items("disk of the first process", self.disk, ("when",)),
            Text(),
            self._work(),
            Text("\n" + "\n".join(self._notes()), style="dim"),
        )

    def title(self) -> str:
        """What is planned, in two lines."""
        job = self.job
        clusters = f"{job.k:,} clusters" + (f" in {job.supers} super-clusters" if job.supers > 1 else "")
        where = f"{job.processes} process{'es' if job.processes > 1 else ''} on {job.machines} machine"
        return (
            f"{job.images:,} images, {clusters}, {job.network.name}\n"
            f"{where}{'s' if job.machines > 1 else ''}, {job.device}, {'16' if job.half else '32'}-bit,"
            f" batches of {job.batch:,} ({job.steps:,} steps an epoch)"
        )

    def _peaks(self) -> str:
        said = []
        for place, name in (("device", "GPU"), ("memory", "machine's memory")):
            most, when = peak(self.memory, place)
            if most:
                said.append(f"{name}: at most {amount(most)}, while {_DOING[when]}")
        return "; ".join(said)

    def _work(self) -> RenderableType:
        from rich.table import Table

        table = Table(title="an epoch of each process", title_justify="left")
        table.add_column("stage")
        for name in ("times", "operations", "sent", "messages", "hours"):
            table.add_column(name, justify="right")
        for stage in self.stages:
            times, shown = stage.times or 1, "once" if not stage.times else f"{stage.times:.3g}"
            told = stage.told
            table.add_row(
                stage.name,
                shown,
                f"{stage.flops * times:.2e}" if stage.flops else "-",
                amount(told.sent * times),
                f"{told.messages * times:,.0f}",
                _hours(stage.seconds * times),
            )
            for part, seconds in stage.parts.items():
                if len(stage.parts) > 1 and seconds * times >= 0.01 * self.epoch_seconds:
                    table.add_row(f"  {part}", "", "", "", "", _hours(seconds * times), style="dim")
        table.add_section()
        table.add_row("an epoch", "", "", "", "", _hours(self.epoch_seconds))
        table.add_row(f"{self.job.epochs} epochs", "", "", "", "", _hours(self.run_seconds))
        return table

    def _notes(self) -> list[str]:
        c, job = self.constants, self.job
        speed, whose = c.speed(job.network.name)
        notes = []
        if c.source == "assumed":
            notes.append(f"NOT MEASURED: constants assumed for {c.name}. `deepcluster plan --measure` takes them here.")
        else:
            notes.append(f"Constants of {c.name}, {c.threads} thread(s) a process, {c.source}.")
            if c.assumed:
                notes.append(f"Assumed all the same: {', '.join(c.assumed)}.")
            if whose == "any":
                notes.append(f"{job.network.name} was not measured, but another network: measure it with its preset.")
        search = f"search {2 / c.plain.product:.2g} flop/s"
        notes.append(
            f"Training {speed.train:.2g} flop/s, descriptions {speed.describe:.2g}, {search}, covariance"
            f" {2 / c.scatter64:.2g} (float64) and {2 / c.scatter32:.2g} (float32)."
        )
        notes.append(
            f"Disk {amount(c.write)}/s written, {amount(c.read)}/s read; decoding {c.decode * 1e3:.2g} ms an image and"
            f" core{'' if job.cached == 'no' else ', not needed'}."
        )
        if not job.alone:
            notes.append(
                f"Between processes {amount(c.link)}/s and {c.message * 1e6:.2g} us a message; between machines"
                f" {amount(c.network)}/s and {c.network_message * 1e6:.2g} us."
            )
        if job.grouping == "pic":
            notes.append("PIC finds its number of clusters itself; 20 images for each are assumed.")
        return notes


_DOING = {"training": "training", "features": "describing all images", "clustering": "clustering"}


def make_plan(job: Job, constants: Constants | None = None, **changes: Any) -> Plan:
    """The plan of `job` on a machine.

    Args:
        constants: those of one process; None = what was measured on this machine, or else what is assumed.
        changes: constants to take in place of those, by name.
    """
    c = constants or load(job.device) or assumed(job.device)
    c = dataclasses.replace(c, **changes)
    if job.device == "cpu":
        c = c.slower(c.cores / (job.per_machine * c.threads))
    return Plan(job, c, memory(job, c.resident), disk(job), stages(job, c))


def wire_of(plan: Plan) -> Wire:
    """How the plan's processes tell each other things."""
    return Wire(plan.job.processes, plan.job.per_machine, plan.constants)


def amount(size: float) -> str:
    """Bytes as one would say them."""
    if size <= 0:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"


def _hours(seconds: float) -> str:
    hours = seconds / HOUR
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}" if hours >= 1e-4 else f"{hours:.1g}" if hours else "-"


def _items(title: str, items: list[Item], columns: tuple[str, ...]) -> RenderableType:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    for column in columns:
        table.add_column(column)
    for item in items:
        table.add_row(item.name, amount(item.bytes), *(getattr(item, column) for column in columns))
    return table

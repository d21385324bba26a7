"""One self-contained page about a run: figures, curves, cluster sizes, a contact sheet per cluster, and the pictures
that were drawn of it.

Everything is inside the file: no script, no font, no picture from elsewhere. What cannot be shown any more,
because the images have moved, is said in a sentence and the page is written all the same.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.engine.health import rotation_only, turns_of
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import history, report_text, sizes, style
from deepcluster.visualize.contact_sheets import Contact, Read, contact, distances, largest, majority, reader
from deepcluster.visualize.grid import thumbnail
from deepcluster.visualize.saved_figures import gather

if TYPE_CHECKING:
    from deepcluster.data.source import ImageSource
    from deepcluster.engine.run import Run

ROWS_SHOWN = 500
"""Rows of the table of all clusters; a page with ten thousand would be slow to open."""


@dataclass(frozen=True)
class Picture:
    """One thumbnail: its bytes as a data URI, None where the image is gone, and what it is called."""

    uri: str | None
    path: str
    tiny: bool = False


@dataclass(frozen=True)
class Card:
    """A cluster with its pictures."""

    contact: Contact
    nearest: list[Picture]
    farthest: list[Picture]


@dataclass(frozen=True)
class Row:
    """A line of the table of all clusters."""

    cluster: int
    size: int
    share: float
    label: str | None
    purity: float | None


def write_report(
    run: Run, *, clusters: int = 24, images: int = 12, farthest: int = 6, command: str | None = None
) -> Path:
    """Write `RUN/report.html` and return its path.

    Args:
        run: a finished, stopped or running run.
        clusters: contact sheets, of the largest clusters.
        images: nearest images of each.
        farthest: farthest images of each, folded away at first.
        command: the exact command that made the run; None = one with its main settings.

    Raises:
        DeepClusterError: the run folder cannot be written.
    """
    html = page(run, clusters=clusters, images=images, farthest=farthest, command=command)
    return style.write(Path(run.folder) / "report.html", html.encode())


def page(run: Run, *, clusters: int, images: int, farthest: int = 0, command: str | None = None) -> str:
    """The page as text; see `write_report`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder, config, metrics = Path(run.folder), run.config, run.metrics
    assignment, k = _clusters(run)
    counts = None if assignment is None else np.bincount(assignment[assignment >= 0], minlength=k)
    source, gone = _source(run, config, assignment)
    bad, bad_rows = report_text.bad_images(folder)
    cards: list[Card] = []
    if assignment is not None and source is not None:
        cards, unread = contact_cards(run, source, assignment, k, clusters, images, farthest)
        gone = gone or unread
    images_seen = None if counts is None else int(counts.sum())
    curves = [
        Markup(style.svg(history.figure([panel], metrics)))  # every text in it is ours
        for panel in history.panels(metrics, k, images_seen, turns_of(config))
    ]
    labels = None if source is None else source.labels
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")  # fmt: skip
    return template.render(
        title=f"{config.get('preset', 'run')} on {report_text.short(str(config.get('data', 'images')))}",
        lead=_lead(config, len(metrics), counts),
        config=config,
        created=str(config.get("created", ""))[:16].replace("T", " "),
        figures=report_text.key_figures(config, metrics, counts),
        summary=report_text.summary(config, metrics, counts),
        remarks=report_text.remarks(config, metrics, counts, bad, folder),
        evaluations=report_text.evaluations(folder),
        curves=curves,
        spread=None if counts is None or not counts.sum() else sizes.summary(counts),
        sizes=[] if counts is None or not counts.sum() else [Markup(svg) for svg in _size_plots(counts)],
        cards=cards,
        shown=0 if counts is None else min(clusters, int((counts > 0).sum())),
        rows=[] if counts is None or assignment is None else _rows(assignment, counts, labels, source),
        used=0 if counts is None else int((counts > 0).sum()),
        gone=gone,
        pictures=gather(folder / "pictures"),
        bad=bad,
        bad_rows=bad_rows,
        command=command or report_text.command(config, folder),
        settings=report_text.flat(config.get("settings", {})),
        versions=report_text.flat(config.get("versions", {})),
    )


def contact_cards(
    run: Run, source: ImageSource, assignment: np.ndarray, k: int, clusters: int, images: int, farthest: int
) -> tuple[list[Card], str]:
    """A card for each of the largest non-empty clusters, and a sentence where images cannot be read."""
    numbers = np.array([c for c in largest(assignment, k)[:clusters] if (assignment == c).any()], dtype=np.int64)
    sentence = ""
    try:
        distance = distances(run, source, numbers)
    except (DeepClusterError, OSError) as error:
        distance, sentence = None, f"Images stand in the order of the source: {error}"
    chosen = [
        contact(
            int(number),
            assignment,
            distance,
            images=images,
            farthest=farthest if distance is not None else 0,
            labels=source.labels,
            classes=source.classes,
        )
        for number in numbers
    ]
    count = sum(len(each.nearest) + len(each.farthest) for each in chosen)
    side = 112 if count <= 450 else 80 if count <= 1000 else 56  # keeps the page to a few megabytes
    read = reader(source, side)

    def pictures(indices: np.ndarray) -> list[Picture]:
        return [_picture(read, int(index), source.path(int(index)), side) for index in indices]

    cards = [Card(each, pictures(each.nearest), pictures(each.farthest)) for each in chosen]
    missing = sum(picture.uri is None for card in cards for picture in card.nearest + card.farthest)
    if missing:
        sentence = f"{missing:,} of the {count:,} images on this page can no longer be read from {source.name}."
    return cards, sentence


def embed(image: np.ndarray, side: int) -> str:
    """An (H, W, 3) uint8 image as a square data URI: PNG where it is tiny, JPEG otherwise."""
    from PIL import Image

    square = Image.fromarray(thumbnail(image, min(side, *image.shape[:2])))
    buffer = io.BytesIO()
    kind = "png" if square.width <= 48 else "jpeg"
    options: dict[str, Any] = {"optimize": True} if kind == "png" else {"quality": 82, "optimize": True}
    square.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(read: Read, index: int, path: str, side: int) -> Picture:
    image = read(index)
    if image is None:
        return Picture(None, path)
    return Picture(embed(image, side), path, tiny=min(image.shape[:2]) <= 48)


def _clusters(run: Run) -> tuple[np.ndarray | None, int]:
    """Assignment and K; None and the K asked for where nothing has been clustered yet."""
    try:
        if rotation_only(run.config):
            return None, 1
        return np.asarray(run.assignment), len(run.centroids)
    except DeepClusterError:
        if all((Path(run.folder) / name).exists() for name in ("assignment.npy", "model.safetensors")):
            raise  # there are clusters, and they are damaged
        return None, int(run.config.get("settings", {}).get("method", {}).get("k", 1))


def _source(run: Run, config: dict[str, Any], assignment: np.ndarray | None) -> tuple[ImageSource | None, str]:
    """The training images, or None and a sentence that says why they cannot be shown."""
    try:
        source = run.source()
        mark = config.get("source_fingerprint")
        same = mark is None or source.fingerprint() == mark
    except (DeepClusterError, OSError) as error:
        return None, f"The images cannot be shown: {error}"
    if not same or (assignment is not None and len(source) != len(assignment)):
        return None, (
            f"The images cannot be shown: {source.name} no longer holds the images this run was trained on. "
            "Put them back and run `deepcluster report` again."
        )
    return source, ""


def _lead(config: dict[str, Any], epochs: int, counts: np.ndarray | None) -> str:
    """The run in one sentence."""
    done = f"after {epochs:,} epoch{'s' * (epochs != 1)}"
    if rotation_only(config):
        return f"{config.get('images', 'All')} images, {done}; a run that tells turns apart and has no clusters."
    if counts is None:
        return f"{config.get('images', 'All')} images, not clustered yet, {done}."
    used = int((counts > 0).sum())
    return f"{int(counts.sum()):,} images in {used:,} cluster{'s' * (used != 1)}, {done}, found without labels."


def _size_plots(counts: np.ndarray) -> Sequence[str]:
    plots = []
    for draw in (sizes.draw_sorted, sizes.draw_histogram):
        figure = style.figure(4.7, 2.6)
        draw(figure.add_subplot(), counts)
        plots.append(style.svg(figure))
    return plots


def _rows(
    assignment: np.ndarray, counts: np.ndarray, labels: np.ndarray | None, source: ImageSource | None
) -> list[Row]:
    """The largest clusters with their main class; members are found by one sort, not one scan a cluster."""
    numbers = largest(assignment, len(counts))[:ROWS_SHOWN]
    order = np.argsort(assignment, kind="stable")
    starts = np.searchsorted(assignment[order], np.arange(len(counts) + 1))
    rows = []
    for number in numbers:
        name, share = None, None
        if labels is not None and source is not None:
            name, share = majority(labels[order[starts[number] : starts[number + 1]]], source.classes)
        size = int(counts[number])
        rows.append(Row(int(number), size, size / max(int(counts.sum()), 1), name, share))
    return rows

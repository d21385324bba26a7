"""One self-contained page about a run: figures, curves, cluster sizes, a contact sheet per cluster, and its pictures.

Everything is inside the file: no script, no font, no picture from elsewhere. What cannot be shown any more,
because the images have moved, is said in a sentence and the page is written all the same.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deepcluster.clustering.metrics import effective
from deepcluster.config import params_of
from deepcluster.data.decode import decode
from deepcluster.data.formats import BYTES
from deepcluster.data.naming import printable, short_name
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource, known_labels
from deepcluster.engine import scores
from deepcluster.engine.clock import duration
from deepcluster.engine.run import Run
from deepcluster.errors import BadImage, DeepClusterError, counted, warn
from deepcluster.io import write_text
from deepcluster.reading import read_bytes
from deepcluster.visualize import history, report_text, sizes, style
from deepcluster.visualize.clustered_images import (
    ClusteredImages,
    check_training_images,
    class_name,
    reader,
    training_clusters,
)
from deepcluster.visualize.clusters import NAMING, clarity, clearness, contact, largest, main_classes, named_by
from deepcluster.visualize.images import encoded, thumbnail

ROWS_SHOWN = 500
"""Rows of the table of all clusters; a page with ten thousand would be slow to open."""
FARTHEST = 6
"""Images of each cluster that are farthest from its center, folded away at first."""
PICTURES = {
    "filters": "First-layer filters",
    "activations": "Images found to excite {}",
    "top-images": "Images that excite filters of {} most",
    "neighbors": "Nearest neighbors, trained and untrained",
    "map": "The features on a plane ({})",
    "purity": "Size and purity of clusters",
    "confusion": "Clusters and classes",
    "compare": "Comparison with another run: {}",
}
"""Beginning of a file's name in RUN/pictures -> its title; the rest of the name stands for the braces."""
MOST_BYTES = 4_000_000
"""Of all those pictures together; as text they take a third more."""
MOST_BYTES_EACH = 600_000


def environment() -> Environment:
    """Where the page's templates are, and what they call."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    words = (counted, report_text.number, duration, effective, math.log, np.median)
    found.globals |= {word.__name__: word for word in words} | {"naming": NAMING, "named_by": named_by}
    return found


def write_report(run: Run, data: str | None = None, *, clusters: int = 24, images: int = 12) -> Path:
    """One self-contained page with the curves, pictures and clusters of a run, RUN/report.html; returns its path.

    Args:
        data: the images of the run, if they have moved; None = where they were.
        clusters: clusters shown, the largest first.
        images: images shown of each, the nearest to its center first.
    """
    config, metrics = run.config, run.metrics
    assignment, k = _clusters(run)
    bad_rows = run.bad_images()
    counts: np.ndarray | None = None
    cards: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    plots: list[str] = []
    spread: str | None = None
    clear: list[str] = []
    source, problem = _source(run, data)
    if assignment is not None:
        counts = np.bincount(assignment[assignment >= 0], minlength=k)
        rows = _rows(assignment, counts, source)
        if source is not None:
            try:
                shown = training_clusters(run, source)
            except DeepClusterError as error:  # the page is written all the same, and says why it has no order
                unknown = np.full(len(assignment), np.nan, np.float32)
                shown, problem = ClusteredImages(source, assignment, unknown, k), str(error)
            sure = clarity(counts, shown.mean_distance, np.asarray(run.centroids))
            clear = [clearness(value) for value in sure]
            cards, unreadable = _cards(shown, largest(counts)[: min(clusters, np.count_nonzero(counts))], images, sure)
            problem = problem or unreadable
        if counts.any():
            spread = sizes.summary(counts)
            for draw in (sizes.draw_sorted, sizes.draw_histogram):
                page = style.figure(4.7, 2.6)
                draw(page.add_subplot(), counts)
                plots.append(style.svg(page))
    if problem:
        warn(problem)
    clustered = None if counts is None else int(counts.sum())
    curves = [
        style.svg(history.panel_figure([(panel, panel.curves(metrics))]))
        for panel in history.panels(metrics, k, clustered, params_of(config).rotations_predicted)
    ]
    numbers = report_text.Numbers(config, metrics, counts, clear)
    template = environment().get_template("report.html")
    html = template.render(
        title=short_name(str(config.get("data", "images"))),
        run=numbers,
        remarks=report_text.remarks(numbers, len(bad_rows), run.folder),
        evaluations=scores.evaluations(run.folder),
        curves=[Markup(svg) for svg in curves],  # every text in them is ours
        spread=spread,
        sizes=[Markup(svg) for svg in plots],
        cards=cards,
        clusters=clusters,
        rows=rows,
        gone=problem,
        pictures=saved_pictures(run.folder / "pictures"),
        bad=len(bad_rows),
        bad_rows=bad_rows[: report_text.BAD_SHOWN],
        command=report_text.command(config, run.folder),
        settings=scores.flat(report_text.settings_used(config)),
        versions=scores.flat(config.get("versions", {})),
    )
    return write_text(run.folder / "report.html", printable(html))


def saved_pictures(folder: Path) -> list[dict[str, str]]:
    """Title and data URI of the pictures that `deepcluster visualize` left in `folder`, in the order of `PICTURES`.

    A picture larger than its share of `MOST_BYTES` becomes a JPEG, and smaller until it fits.
    """
    named = [
        (title.format(path.stem[len(kind) + 1 :]), path)
        for kind, title in PICTURES.items()
        for path in sorted(folder.glob(f"{kind}-*.png" if "{}" in title else f"{kind}.png"))
    ]
    most = min(MOST_BYTES_EACH, MOST_BYTES // max(len(named), 1))
    found = [(title, embedded_file(path, most)) for title, path in named]
    return [{"title": title, "uri": uri} for title, uri in found if uri is not None]


def embedded_file(path: Path, most: int) -> str | None:
    """A PNG file as a data URI of about `most` bytes before its encoding; None where it is not a picture."""
    from PIL import Image

    try:
        content, kind = read_bytes(path, BYTES), "png"
        picture = Image.fromarray(decode(content))
    except (OSError, ValueError, BadImage):
        return None  # half a file, or another program's
    while len(content) > most and min(picture.size) > 32:
        if kind == "jpeg":
            picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)
        content, kind = encoded(np.asarray(picture), tiny=0, quality=86)
    return _data_uri(content, kind)


def embedded_thumbnail(image: np.ndarray, side: int) -> str:
    """An (H, W, 3) uint8 image as a square data URI: PNG where it is tiny, JPEG otherwise."""
    return _data_uri(*encoded(thumbnail(image, min(side, *image.shape[:2])), tiny=48))


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _cards(
    shown: ClusteredImages, numbers: np.ndarray, images: int, clear: np.ndarray
) -> tuple[list[dict[str, Any]], str]:
    """A card for each of some clusters, and a sentence where images cannot be read."""
    contacts = [contact(shown, number, images=images, farthest=FARTHEST) for number in numbers.tolist()]
    contacts.sort(key=lambda each: ((each.purity or 0) < NAMING, -np.nan_to_num(clear[each.cluster], nan=-2)))
    count = sum(len(each.nearest) + len(each.farthest) for each in contacts)
    side = 112 if count <= 450 else 80 if count <= 1000 else 56  # keeps the page to a few megabytes
    read = reader(shown.source, side)

    def pictures(indices: np.ndarray) -> list[dict[str, Any]]:
        found = []
        for index in indices.tolist():
            image = read(index)
            uri = None if image is None else embedded_thumbnail(image, side)
            tiny = image is not None and min(image.shape[:2]) <= 48
            found.append({"uri": uri, "path": shown.source.path(index), "tiny": tiny})
        return found

    cards: list[dict[str, Any]] = [
        {
            "contact": each,
            "clearness": clearness(clear[each.cluster]),
            "nearest": pictures(each.nearest),
            "farthest": pictures(each.farthest),
        }
        for each in contacts
    ]
    missing = sum(picture["uri"] is None for each in cards for picture in each["nearest"] + each["farthest"])
    problem = f"{missing:,} of the {count:,} images on this page can no longer be read from {shown.source.name}."
    return cards, problem if missing else ""


def _clusters(run: Run) -> tuple[np.ndarray | None, int]:
    """Assignment and K; None and the K asked for where nothing has been clustered yet."""
    try:
        if not params_of(run.config).finds_clusters:
            return None, 1
        return np.asarray(run.assignment), len(run.centroids)
    except DeepClusterError:
        if all((run.folder / name).exists() for name in ("assignment.npy", "model.safetensors")):
            raise  # there are clusters, and they are damaged
        return None, int(run.config.get("settings", {}).get("method", {}).get("k", 1))


def _source(run: Run, data: str | None) -> tuple[ImageSource | None, str]:
    """The training images, or None and a sentence that says why they cannot be shown."""
    try:
        source = run.source() if data is None else open_images(data)
        check_training_images(run, source)
    except (DeepClusterError, OSError) as error:
        return None, f"The images cannot be shown: {error}"
    return source, ""


def _rows(assignment: np.ndarray, counts: np.ndarray, source: ImageSource | None) -> list[dict[str, Any]]:
    """The table of the largest clusters, with the main class of each."""
    rows = [
        {"cluster": number, "size": int(counts[number]), "share": counts[number] / max(counts.sum(), 1), "label": None}
        for number in largest(counts)[:ROWS_SHOWN].tolist()
    ]
    if source is not None and (labels := known_labels(source)) is not None:
        label, purity = main_classes(assignment, labels, len(counts))
        for row in rows:
            if (main := label[row["cluster"]]) >= 0:
                row |= {"label": class_name(source.classes, main), "purity": purity[row["cluster"]]}
    return rows

"""`deepcluster visualize RUN neighbors`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from deepcluster.cli.pictures.common import Picture, called, pixels_of

if TYPE_CHECKING:
    import numpy as np

    from deepcluster.data.cache import Pixels
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Neighbors(Picture):
    """The nearest images of some queries, by the trained network and by the same one before training."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to search; by default those the run was trained on."""
    queries: int = 8
    """How many queries, drawn at random, of different classes where there are labels."""
    index: tuple[int, ...] = ()
    """Positions of the queries in the source, in place of drawing them."""
    k: int = 10
    """Neighbors of each."""
    tap: str | None = None
    """Layer whose features are compared; by default the network's output."""
    image_size: int | None = None
    """For a backbone by name: side of the images it sees; by default what its weights were made for."""
    seed: int = 0
    """Of the queries, and of the untrained network where it is no run's."""

    def load(self) -> Subject:
        from deepcluster.engine.run import load_subject

        return load_subject(self.model, device=self.device, image_size=self.image_size)


def draw(subject: Subject, chosen: Neighbors, screen: Screen) -> list[Path]:
    """Writes neighbors.png."""
    from deepcluster.visualize import style
    from deepcluster.visualize.page import titled

    pixels = pixels_of(subject, chosen.source)
    networks = {"trained": subject, "untrained": subject.untrained(chosen.seed)}
    picture, text = sheet(networks, pixels, chosen, screen)
    title = f"The {chosen.k} nearest images of each query"
    file = chosen.folder(subject) / "neighbors.png"
    return [style.save(titled(picture, title, f"{called(subject)}: {text}"), file)]


def sheet(networks: dict[str, Subject], pixels: Pixels, chosen: Neighbors, screen: Screen) -> tuple[np.ndarray, str]:
    """Rows of neighbors by each network, and the sentences that say what they are."""
    import numpy as np

    from deepcluster.visualize.contact_sheets import reader
    from deepcluster.visualize.neighbor_sheets import agreement, nearest_rows, neighbor_sheet
    from deepcluster.visualize.report_text import short

    rows, labels, queries = {}, pixels.source.labels, np.array([], np.int64)
    labels = None if labels is None or not (np.asarray(labels) >= 0).any() else np.asarray(labels)
    for name, network in networks.items():
        with screen.bar(name, len(pixels)) as bar:
            features = network.features(pixels, chosen.tap, bar)
        if not len(queries):
            queries = _queries(features, labels, chosen, pixels)
        rows[name] = nearest_rows(features, queries, chosen.k, subject_device(network))
    text = f"neighbors by cosine among {len(pixels):,} images of {short(pixels.source.name)}, nearest first."
    if labels is not None:
        shares = [f"{agreement(queries, found, labels) or 0:.0%} by {name}" for name, found in rows.items()]
        text += f" Green frames: of the query's class; orange: of another. Of the query's class: {', '.join(shares)}."
    read = reader(pixels.source, 96)
    return neighbor_sheet(queries, rows, read, labels=labels, classes=pixels.source.classes), text


def subject_device(subject: Subject) -> str:
    """Where similarities are computed: half a million rows are many for a CPU."""
    return subject.device if subject.device.startswith("cuda") else "cpu"


def _queries(features: np.ndarray, labels: np.ndarray | None, chosen: Neighbors, pixels: Pixels) -> np.ndarray:
    import numpy as np

    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize.neighbor_sheets import draw_queries

    good = np.flatnonzero(np.isfinite(features).all(axis=1))
    known: Sequence[int] = chosen.index
    for index in known:
        if index not in good:
            raise DeepClusterError(
                f"Image {index} cannot be a query: {pixels.source.name} has no image that can be decoded there."
            )
    if known:
        return np.array(known, np.int64)
    return draw_queries(good, chosen.queries, chosen.seed, None if labels is None else labels[good])

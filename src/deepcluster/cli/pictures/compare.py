"""`deepcluster visualize RUN compare --other RUN2`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from deepcluster.cli.pictures.common import Picture, pixels_of

if TYPE_CHECKING:
    import numpy as np

    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Compare(Picture):
    """Two runs side by side: their curves, their first filters, and their neighbors of the same queries."""

    other: str
    """The second run, or another network."""
    source: Annotated[str | None, arg(name="data")] = None
    """Images that neighbors are searched among; by default those the first run was trained on."""
    queries: int = 6
    """How many queries, drawn at random, of different classes where there are labels."""
    k: int = 10
    """Neighbors of each."""
    image_size: int | None = None
    """For backbones by name: side of the images they see; by default what their weights were made for."""
    seed: int = 0
    """Of the queries."""

    def load(self) -> Subject:
        return self.one(self.model)

    def one(self, name: str) -> Subject:
        """The first or the second network."""
        from deepcluster.engine.run import load_subject

        by_name = not (Path(name) / "run.json").is_file() and not Path(name).is_file()
        return load_subject(name, device=self.device, image_size=self.image_size if by_name else None)


def draw(subject: Subject, chosen: Compare, screen: Screen) -> list[Path]:
    """Writes compare-history.png (of two runs), compare-filters.png (where both have filters) and
    compare-neighbors.png."""
    from deepcluster.cli.pictures import neighbors
    from deepcluster.engine.run import Run
    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize import style
    from deepcluster.visualize.compare import compare_figure, short_names
    from deepcluster.visualize.page import titled

    other = chosen.one(chosen.other)
    if chosen.image_size is not None and isinstance(subject, Run) and isinstance(other, Run):
        raise DeepClusterError("Both runs know the size of their images: leave out --image-size.")
    names = short_names([chosen.model, chosen.other])
    both, folder = dict(zip(names, (subject, other), strict=True)), chosen.folder(subject)
    pixels = pixels_of(subject, chosen.source)
    queries = neighbors.Neighbors(
        model=chosen.model, what="neighbors", queries=chosen.queries, k=chosen.k, seed=chosen.seed
    )
    picture, text = neighbors.sheet(both, pixels, queries, screen)
    files = []
    if isinstance(subject, Run) and isinstance(other, Run):
        page = compare_figure({name: run.metrics for name, run in zip(names, (subject, other), strict=True)})
        files.append(style.save(page, folder / "compare-history.png"))
    filters = _filters(both, screen)
    if filters is not None:
        files.append(style.save(filters, folder / "compare-filters.png"))
    title = f"The {chosen.k} nearest images of the same queries"
    text = text[:1].upper() + text[1:]
    return [*files, style.save(titled(picture, title, text), folder / "compare-neighbors.png")]


def _filters(both: dict[str, Subject], screen: Screen) -> np.ndarray | None:
    """The filters of both side by side, or None where one has none."""
    from deepcluster.cli.pictures import filters
    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize.compare import side_by_side
    from deepcluster.visualize.page import titled

    try:
        pictures = {name: filters.sheet(network) for name, network in both.items()}
    except DeepClusterError as error:
        screen.say(f"no picture of filters: {error}")
        return None
    said = [text for _, text in pictures.values()]
    alike = len(set(said)) == 1
    texts = f"Both: {said[0]}" if alike else " ".join(f"{name}: {text}" for name, (_, text) in pictures.items())
    return titled(side_by_side({name: sheet for name, (sheet, _) in pictures.items()}), "First-layer filters", texts)

"""`deepcluster visualize RUN compare --other RUN2`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from deepcluster.cli.pictures.common import Picture

if TYPE_CHECKING:
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

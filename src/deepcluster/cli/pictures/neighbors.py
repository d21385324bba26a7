"""`deepcluster visualize RUN neighbors`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from deepcluster.cli.pictures.common import Picture

if TYPE_CHECKING:
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

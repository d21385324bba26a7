"""The options that pictures share, and where pictures are put."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Picture:
    model: Positional[str]
    """A run folder; for some pictures also a file of weights or a backbone (timm:NAME, torchvision:NAME, or alexnet,
    vgg16, convnet with --untrained)."""
    what: Positional[str]
    """The picture's name."""
    out: Path | None = None
    """Folder for the PNG files; by default RUN/pictures, or evaluations/NAME/pictures for what is no run."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object with the files' names."""

    def load(self) -> Subject:
        """What is drawn."""
        from deepcluster.engine.run import load_subject

        return load_subject(self.model, device=self.device)

    def folder(self, subject: Subject) -> Path:
        """Where the pictures go."""
        if self.out is not None:
            return self.out
        return (subject.folder if hasattr(subject, "folder") else subject.results) / "pictures"


@dataclass(frozen=True, kw_only=True)
class OfNetwork(Picture):
    """A picture that needs no clusters."""

    untrained: bool = False
    """Draw the same network before it learned anything."""
    image_size: int | None = None
    """For a backbone by name: side of the images it sees; by default what its weights were made for."""
    seed: int = 0
    """Of whatever is drawn at random, the untrained network among it."""

    def load(self) -> Subject:
        from deepcluster.engine.run import load_subject

        return load_subject(
            self.model, device=self.device, image_size=self.image_size, untrained=self.untrained, seed=self.seed
        )


@dataclass(frozen=True, kw_only=True)
class OfImages(Picture):
    """A picture of images in their clusters."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to draw, new ones too, which are assigned to the run's clusters; by default those it was trained on."""

"""The options that every protocol of `deepcluster evaluate` has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Common:
    model: Positional[str]
    """A run folder, a file of weights, or a backbone (any timm model as timm:NAME, a torchvision one as
    torchvision:NAME); --backbone NAME in its place says the same."""
    protocol: Positional[str]
    """The protocol's name."""
    source: Annotated[str | None, arg(name="data")] = None
    """Labelled images, as for train; where a protocol says so, by default the images the run was trained on."""
    untrained: bool = False
    """Score the same network without what it learned: the baseline of every table."""
    image_size: int | None = None
    """For a backbone by name: side of the images it sees; by default what its weights were made for."""
    seed: int = 0
    """Of whatever the protocol draws; repetitions take the numbers that follow."""
    out: Path | None = None
    """Folder for PROTOCOL.json; by default RUN/evaluation, or evaluations/NAME for what is no run."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object."""

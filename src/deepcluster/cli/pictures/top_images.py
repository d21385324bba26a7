"""`deepcluster visualize RUN top-images`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from deepcluster.cli.pictures.common import OfNetwork


@dataclass(frozen=True, kw_only=True)
class TopImages(OfNetwork):
    """The nine images that excite each filter most, whole and cropped to what it saw (paper's figures 4 and 5)."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to search; by default those the run was trained on."""
    taps: tuple[str, ...] = ()
    """Layers, such as conv1 conv3 conv5, all in one pass; by default the deepest one that has maps."""
    filters: tuple[int, ...] = ()
    """Numbers of filters of each layer; by default --count of them drawn at random."""
    count: int = 12
    """How many filters of each layer where none are named."""
    images: int = 9
    """Images of each filter."""
    score: Literal["mean", "max"] = "mean"
    """What ranks the images: the mean of the filter's map (the paper's), or its maximum."""
    beside: Literal["paper", "fourier"] | None = None
    """Also draw the image that excites the filter most, by this recipe of `activations`, at the left."""
    steps: int | None = None
    """Steps of that recipe; by default its own."""

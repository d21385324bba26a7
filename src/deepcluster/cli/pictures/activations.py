"""`deepcluster visualize RUN activations`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepcluster.cli.pictures.common import OfNetwork


@dataclass(frozen=True, kw_only=True)
class Activations(OfNetwork):
    """Images that excite filters, or clusters, as much as possible, by gradient ascent (paper's figure 4)."""

    tap: str | None = None
    """Layer, such as conv3; by default the deepest one that has maps."""
    filters: tuple[int, ...] = ()
    """Numbers of filters; by default --count of them drawn at random."""
    count: int = 16
    """How many filters where none are named."""
    clusters: tuple[int, ...] = ()
    """Numbers of a run's clusters, in place of filters."""
    by: Literal["centroid", "logit"] | None = None
    """For clusters: come near the centroid (default), or raise the answer of the last checkpoint's classifier."""
    recipe: Literal["paper", "fourier"] = "paper"
    """paper = bare pixels from noise, steps of one length, weight decay and blur; fourier = waves of decorrelated
    colors seen through random shifts, sizes and turns."""
    objective: Literal["contrast", "channel", "neuron"] | None = None
    """contrast = the filter's mean against all others of its layer (the paper's), channel = the filter's mean (the
    default of fourier), neuron = the middle of its map."""
    steps: int | None = None
    """Steps; by default 1000 (paper; its authors advise 30000 for the first layer, 3000 for the last) or 256."""
    lr: float | None = None
    """Length of a step: 3 (paper; 30 for the last layer), or Adam's rate, 0.05 (fourier)."""
    decay: float | None = None
    """Weight of the squared length of the image that is taken off; by default 1e-5 (paper) or 0."""
    smooth: float = 0.0
    """Weight of the mean difference of neighboring pixels that is taken off."""
    size: int | None = None
    """Side of the images in pixels; by default what the network sees."""

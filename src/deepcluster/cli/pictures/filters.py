"""`deepcluster visualize RUN filters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepcluster.cli.pictures.common import OfNetwork


@dataclass(frozen=True, kw_only=True)
class Filters(OfNetwork):
    """The filters of the first convolution, in colors or over the two edge maps of Sobel (paper's figure 3)."""

    order: Literal["norm", "index", "pca"] = "norm"
    """norm = the strongest first, index = as the network has them, pca = like ones together."""
    shared: bool = False
    """One scale for all filters; by default each is as bright as it can be."""
    sobel: Literal["pair", "direction", "gray"] = "pair"
    """Behind Sobel: pair = both channels in gray, direction = edges by hue, gray = the filter on the gray image that
    filter and Sobel amount to together."""

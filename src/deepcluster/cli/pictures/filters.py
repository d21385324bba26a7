"""`deepcluster visualize RUN filters`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.pictures.common import OfNetwork, called

if TYPE_CHECKING:
    import numpy as np

    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


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


def draw(subject: Subject, chosen: Filters, screen: Screen) -> list[Path]:
    """Writes filters.png."""
    from deepcluster.visualize import style
    from deepcluster.visualize.page import titled

    picture, text = sheet(subject, chosen.order, chosen.shared, chosen.sobel)
    page = titled(picture, f"First-layer filters of {called(subject)}", text)
    return [style.save(page, chosen.folder(subject) / "filters.png")]


def sheet(subject: Subject, order: str = "norm", shared: bool = False, sobel: str = "pair") -> tuple[np.ndarray, str]:
    """The tiles of a network's first filters, and the sentences that say what they are."""
    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize.filters import filter_sheet, first_filters, ordered, tiles

    weights = first_filters(subject.backbone)
    count, channels, height, width = weights.shape
    if channels == 3 and sobel != "pair":
        raise DeepClusterError(f"{subject.name} has no Sobel layer: leave out --sobel.")
    pictures = tiles(weights[ordered(weights, order)], shared=shared, sobel=sobel)
    said = {
        "pair": "Left half: weights over the horizontal differences that Sobel gives (left minus right); right half:"
        " over the vertical ones (top minus bottom).",
        "direction": "Hue is the direction of the edge that a weight answers to, brightness is its strength.",
        "gray": f"Each filter is drawn together with Sobel before it, as {height + 2} x {width + 2} weights on the gray"
        " image.",
    }
    order_said = {"norm": "the strongest first", "index": "in the network's order", "pca": "like ones together"}[order]
    zero = "" if channels == 2 and sobel == "direction" else " Mid-gray is zero."
    scale = "All filters share one scale." if shared else "Each filter has its own scale."
    text = (
        f"{count} filters of {height} x {width} pixels over {'two edge maps' if channels == 2 else 'colors'},"
        f" {order_said}. {said[sobel] if channels == 2 else ''}{zero} {scale}"
    )
    return filter_sheet(pictures, halves=channels == 2 and sobel == "pair"), " ".join(text.split())

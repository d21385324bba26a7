"""`deepcluster visualize RUN map`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from deepcluster.cli.pictures.common import OfNetwork


@dataclass(frozen=True, kw_only=True)
class Map(OfNetwork):
    """The features of images on a plane, a dot each, colored by cluster or class; or the images themselves."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to lay out; by default those the run was trained on."""
    layout: tuple[Literal["pca", "tsne", "umap"], ...] = ("pca", "tsne")
    """pca, tsne, umap (needs the package umap-learn); a picture each."""
    points: int = 5000
    """Images at most, drawn at random."""
    color: Literal["auto", "cluster", "label", "none"] = "auto"
    """auto = by cluster for a run, by label for another network that is shown labelled images."""
    thumbnails: bool = False
    """Small images in place of dots, none over another."""
    tap: str | None = None
    """Layer whose features are laid out; by default the network's output."""
    perplexity: float = 30.0
    """Of t-SNE: about how many neighbors count."""

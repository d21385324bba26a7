"""Which layers of a network have filters, how many, and which of them to draw; and how clusters lie behind features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepcluster.clustering.whitening import Whitening
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps
from deepcluster.visualize.top_images import maps_of, there_is


@torch.no_grad()
def layers(backbone: Backbone) -> dict[str, tuple[int, int, int]]:
    """Filters, height and width of the map of every tap, for an image of the network's size."""
    device = next(backbone.parameters()).device
    blank = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=device)
    with read_taps(backbone.eval(), backbone.taps) as seen:
        backbone(blank)
        return {tap: tuple(maps_of(seen[tap]).shape[1:]) for tap in backbone.taps}  # type: ignore[misc]


@torch.no_grad()
def takes(backbone: Backbone, size: int) -> None:
    """
    Raises:
        DeepClusterError: the network cannot be shown images of `size` pixels.
    """
    device = next(backbone.parameters()).device
    try:
        backbone.eval()(torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise DeepClusterError(
            f"{backbone.name} cannot take images of {size} px; it was made for {backbone.image_size} px: choose another"
            " --size, or leave it out."
        ) from error


def deepest(backbone: Backbone) -> str:
    """The last tap that has maps of more than one place, or the last one."""
    found = layers(backbone)
    maps = [tap for tap, (_, height, width) in found.items() if height * width > 1]
    return maps[-1] if maps else list(found)[-1]


def chosen_filters(backbone: Backbone, tap: str, asked: Sequence[int], count: int, seed: int) -> list[int]:
    """The filters asked for, or `count` of the layer's drawn with `seed`, ascending.

    Raises:
        DeepClusterError: no such tap or filter.
    """
    found = layers(backbone)
    if tap not in found:
        raise DeepClusterError(f"Backbone {backbone.name!r} has no tap {tap!r}; it has {', '.join(backbone.taps)}.")
    width = found[tap][0]
    if asked:
        there_is(tap, asked, width)
        return list(asked)
    if count < 1:
        raise DeepClusterError(f"count={count} is no number of filters: ask for one or more.")
    return sorted(np.random.default_rng(seed).permutation(width)[:count].tolist())


def embedding(model: Model) -> Callable[[Tensor], Tensor]:
    """(B, D) features to (B, P) unit rows in the space of the centroids, as `Model.embed`, with gradients."""

    def embed(features: Tensor) -> Tensor:
        if isinstance(model.whitening, Whitening):
            mean, directions = model.whitening.mean.to(features), model.whitening.components.to(features)
            placed = (features - mean) @ directions.T
            return functional.normalize(placed, dim=1) if model.whitening.l2 else placed
        assert model.neck is not None
        return functional.normalize(model.neck.to(features.device).eval()(features), dim=1)

    return embed

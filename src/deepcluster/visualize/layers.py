"""Which layers of a network have filters, how many, and which of them to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps


def feature_maps(activations: Tensor) -> Tensor:
    """(B, F, H, W) of a tap's output: maps as they are, vectors as maps of one position, tokens as a row of positions.

    A tap whose output was not rectified, such as a residual block's in some networks, is taken as it is.
    """
    if activations.ndim == 4:
        return activations
    if activations.ndim == 3:
        return activations.transpose(1, 2)[:, :, None, :]
    return activations[:, :, None, None]


class _Reached(Exception):
    """The layer has been computed."""


def tap_output(backbone: Backbone, tap: str, images: Tensor) -> Tensor:
    """What a tap gives for (B, 3, H, W) images; later layers are not computed."""

    def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
        raise _Reached(output)

    handle = backbone.tap_module(tap).register_forward_hook(stop)
    try:
        backbone(images)
    except _Reached as reached:
        output: Tensor = reached.args[0]
        return output
    finally:
        handle.remove()
    raise AssertionError(f"{backbone.name} does not compute its tap {tap}")


@torch.no_grad()
def layer_shapes(backbone: Backbone) -> dict[str, tuple[int, int, int]]:
    """Filters, height and width of the map of every tap, for an image of the network's size."""
    with read_taps(backbone.eval(), backbone.taps) as activations:
        backbone(next(backbone.parameters()).new_zeros(1, 3, backbone.image_size, backbone.image_size))
        return {tap: tuple(feature_maps(activations[tap]).shape[1:]) for tap in backbone.taps}  # type: ignore[misc]


def deepest_layer(backbone: Backbone) -> str:
    """The last tap that has maps of more than one position, or the last one."""
    shapes = layer_shapes(backbone)
    maps = [tap for tap, (_, height, width) in shapes.items() if height * width > 1]
    return maps[-1] if maps else list(shapes)[-1]


def check_tap(backbone: Backbone, tap: str) -> None:
    """A DeepClusterError where the network has no such tap."""
    if tap not in backbone.taps:
        raise DeepClusterError(f"Backbone {backbone.name!r} has no tap {tap!r}; it has {', '.join(backbone.taps)}.")


def check_filters(tap: str, numbers: Sequence[int], width: int) -> None:
    """A DeepClusterError where the layer of `width` filters does not have one of these."""
    for number in numbers:
        if not 0 <= number < width:
            raise DeepClusterError(f"{tap} has no filter {number}: its {width:,} filters are 0 to {width - 1}.")


def choose_filters(backbone: Backbone, tap: str, asked: Sequence[int], count: int, seed: int) -> list[int]:
    """The filters asked for, or `count` of the layer's drawn with `seed`, ascending; a DeepClusterError where there
    is no such tap or filter."""
    check_tap(backbone, tap)
    width = layer_shapes(backbone)[tap][0]
    if asked:
        check_filters(tap, asked, width)
        return list(asked)
    if count < 1:
        raise DeepClusterError(f"--count {count} is not a number of filters: ask for one or more.")
    return sorted(np.random.default_rng(seed).permutation(width)[:count].tolist())

"""What an image is to excite, as terms that add up: `channel("conv3", [7]) - 1e-5 * l2()`.

An objective gives one number for each image of a batch, and knows nothing of how an image is changed to make it larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.visualize.layers import check_filters, check_tap, feature_maps, tap_output


@dataclass(frozen=True)
class Forward:
    """Images that a network is shown, and what it makes of them.

    Attributes:
        shown: (B, 3, H, W), as the network takes them.
        original: the images of which those are views, before any normalization.
    """

    backbone: Backbone
    shown: Tensor
    original: Tensor

    @cached_property
    def features(self) -> Tensor:
        """(B, D) output of the network."""
        output: Tensor = self.backbone(self.shown)
        return output

    def maps(self, tap: str, filters: Sequence[int]) -> Tensor:
        """(B, F, H, W) maps of a tap, before the ReLU for images whose own filter is silent: there the gradient is 0. A
        DeepClusterError where there is no such tap or filter."""
        before_relu: dict[str, Tensor] = {}

        def keep(relu: nn.Module, inputs: Any) -> None:
            before_relu["last"] = feature_maps(inputs[0].clone())  # an inplace ReLU would change it

        check_tap(self.backbone, tap)
        relus = [part for part in self.backbone.tap_module(tap).modules() if isinstance(part, nn.ReLU)]
        handles = [part.register_forward_pre_hook(keep) for part in relus]
        try:
            maps = feature_maps(tap_output(self.backbone, tap, self.shown))
        finally:
            for handle in handles:
                handle.remove()
        check_filters(tap, filters, maps.shape[1])
        before = before_relu.get("last", maps)
        silent = _own(maps.detach().amax((2, 3)), filters) <= 0
        return torch.where(silent[:, None, None, None], before, maps) if before.shape == maps.shape else maps


@dataclass(frozen=True)
class Objective:
    """A number for each image of a batch, (B,); objectives add, subtract and take factors."""

    score: Callable[[Forward], Tensor]

    def __add__(self, other: Objective) -> Objective:
        return Objective(lambda found: self.score(found) + other.score(found))

    def __mul__(self, factor: float) -> Objective:
        return Objective(lambda found: self.score(found) * factor)

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + -other


def channel(tap: str, filters: Sequence[int]) -> Objective:
    """The mean of a filter's map; image b is for filter `filters[b]`."""
    return _of_maps(tap, filters, lambda maps: maps.mean((2, 3)))


def neuron(tap: str, filters: Sequence[int]) -> Objective:
    """The central position of a filter's map."""
    return _of_maps(tap, filters, lambda maps: maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2])


def contrast(tap: str, filters: Sequence[int]) -> Objective:
    """Log-softmax over the means of all filters of the layer, at the wanted one: the paper's objective.

    A filter that is silent everywhere is taken, with its rivals, before the ReLU, as the authors' script has it.
    """
    return _of_maps(tap, filters, lambda maps: maps.mean((2, 3)).log_softmax(1))


def _of_maps(tap: str, filters: Sequence[int], values: Callable[[Tensor], Tensor]) -> Objective:
    """For each image its own filter's of the (B, F) `values` of (B, F, H, W) maps."""
    return Objective(lambda found: _own(values(found.maps(tap, filters)), filters))


def closeness(embed: Callable[[Tensor], Tensor], centers: Tensor) -> Objective:
    """Minus half the squared distance of an image to its own of the (B, P) centers; of unit rows the cosine, less one.

    Args:
        embed: from (B, D) features to (B, P) in the space of the centers; gradients must pass.
    """
    return Objective(lambda found: -(embed(found.features) - centers.to(found.features)).square().sum(1) / 2)


def logit(weight: Tensor, bias: Tensor, relu: bool = False) -> Objective:
    """The logit of a linear classifier, perhaps behind a ReLU: one row of `weight` (B, D) and `bias` (B,) an image."""

    def score(found: Forward) -> Tensor:
        features = found.features.relu() if relu else found.features
        return (features * weight.to(features)).sum(1) + bias.to(features)

    return Objective(score)


def l2() -> Objective:
    """Sum of the squares of all values of an image."""
    return Objective(lambda found: found.original.square().flatten(1).sum(1))


def total_variation() -> Objective:
    """Mean absolute difference of neighboring pixels, down and across."""
    return Objective(lambda found: sum(found.original.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3)))  # type: ignore[arg-type,return-value]


class FrozenNetwork:
    """A network in evaluation mode on which objectives are evaluated.

    Args:
        normalize: whether images are normalized first, with the network's own mean and deviation.
    """

    def __init__(self, backbone: Backbone, *, normalize: bool, device: str = "cpu") -> None:
        self.backbone = backbone.to(device).eval()
        self.device = device
        mean, std = (backbone.mean, backbone.std) if normalize else ((0.0,) * 3, (1.0,) * 3)
        self.mean, self.std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (mean, std))

    def score(self, images: Tensor, objective: Objective, original: Tensor | None = None) -> Tensor:
        """(B,) the objective of (B, 3, H, W) images.

        Args:
            original: the images of which `images` are views, for `l2` and `total_variation`; None = `images`.
        """
        shown = (images - self.mean) / self.std
        return objective.score(Forward(self.backbone, shown, images if original is None else original))


def _own(table: Tensor, filters: Sequence[int]) -> Tensor:
    """(B,) of (B, F): of each image, the column of its own filter."""
    if len(filters) != len(table):
        raise DeepClusterError(f"{len(filters)} filters need as many images, not {len(table)}: give one image each.")
    return table.gather(1, torch.as_tensor(list(filters), device=table.device)[:, None])[:, 0]

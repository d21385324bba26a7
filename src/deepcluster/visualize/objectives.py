"""What an image is to excite, as things that add up: `channel("conv3", [7]) - 1e-5 * l2()`.

An objective gives one number for each image of a batch. It names the taps it looks at, and knows nothing of how an
image is changed to make the number larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.visualize.top_images import maps_of, there_is


@dataclass(frozen=True)
class Seen:
    """What one forward pass left behind.

    Attributes:
        images: (B, 3, H, W) as they were made, before any normalization.
        maps: tap -> (B, F, H, W) activations.
        before: tap -> the same before the last ReLU; the activations themselves where there is no ReLU.
        features: (B, D) output of the network; None where nobody asked for it.
    """

    images: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    before: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A number for each image of a batch, (B,); objectives add, subtract and take factors.

    Attributes:
        score: from what a forward pass left behind to (B,).
        taps: layers that it looks at.
        features: whether it looks at the output of the network.
    """

    score: Callable[[Seen], Tensor]
    taps: frozenset[str] = frozenset()
    features: bool = False

    def __call__(self, seen: Seen) -> Tensor:
        return self.score(seen)

    def __add__(self, other: Objective) -> Objective:
        return Objective(lambda seen: self(seen) + other(seen), self.taps | other.taps, self.features or other.features)

    def __mul__(self, factor: float) -> Objective:
        return Objective(lambda seen: self(seen) * factor, self.taps, self.features)

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + -other


def channel(tap: str, filters: Sequence[int]) -> Objective:
    """The mean of a filter's map; image b is for filter `filters[b]`."""
    return Objective(lambda seen: _means(seen, tap, filters), frozenset([tap]))


def neuron(tap: str, filters: Sequence[int]) -> Objective:
    """The place in the middle of a filter's map."""

    def score(seen: Seen) -> Tensor:
        maps = _alive(seen, tap, filters)
        return _own(maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2], filters)

    return Objective(score, frozenset([tap]))


def against_others(tap: str, filters: Sequence[int]) -> Objective:
    """Log of the softmax over the means of all filters of the layer, at the one wanted: the paper's objective.

    A filter that is silent everywhere is taken, with its rivals, before the ReLU, as the authors' script has it.
    """

    def score(seen: Seen) -> Tensor:
        means = _alive(seen, tap, filters).mean((2, 3))
        return -functional.cross_entropy(means, torch.tensor(list(filters)).to(means.device), reduction="none")

    return Objective(score, frozenset([tap]))


def closeness(embed: Callable[[Tensor], Tensor], centers: Tensor) -> Objective:
    """Minus half the squared distance of an image to its center; for unit rows that is the cosine, less one.

    Args:
        embed: from (B, D) features to (B, P) in the space of the centers; gradients must pass.
        centers: (B, P), one an image.
    """

    def score(seen: Seen) -> Tensor:
        assert seen.features is not None
        return -(embed(seen.features) - centers.to(seen.features)).square().sum(1) / 2

    return Objective(score, features=True)


def logit(weight: Tensor, bias: Tensor, relu: bool = False) -> Objective:
    """The linear answer of a classifier to an image, one row of the classifier an image.

    Args:
        weight: (B, D).
        bias: (B,).
        relu: the classifier begins with a ReLU.
    """

    def score(seen: Seen) -> Tensor:
        assert seen.features is not None
        features = seen.features.relu() if relu else seen.features
        return (features * weight.to(features)).sum(1) + bias.to(features)

    return Objective(score, features=True)


def l2() -> Objective:
    """Sum of the squares of all numbers of an image."""
    return Objective(lambda seen: seen.images.square().flatten(1).sum(1))


def total_variation() -> Objective:
    """Mean absolute difference of neighboring pixels, down and across."""

    def score(seen: Seen) -> Tensor:
        down = seen.images.diff(dim=2).abs().flatten(1).mean(1)
        return down + seen.images.diff(dim=3).abs().flatten(1).mean(1)

    return Objective(score)


class Glass:
    """A frozen network that objectives are seen through.

    Args:
        backbone: put in evaluation mode; its parameters take no gradients while images pass.
        normalize: whether images are normalized first, with the network's own mean and deviation.
        device: where it computes.
    """

    def __init__(self, backbone: Backbone, *, normalize: bool, device: str = "cpu") -> None:
        self.backbone = backbone.to(device).eval()
        self.device = device
        self.mean = torch.tensor(backbone.mean if normalize else (0.0, 0.0, 0.0), device=device).view(3, 1, 1)
        self.std = torch.tensor(backbone.std if normalize else (1.0, 1.0, 1.0), device=device).view(3, 1, 1)

    def see(self, images: Tensor, objective: Objective, original: Tensor | None = None) -> Tensor:
        """(B,) the objective of (B, 3, H, W) images.

        Args:
            original: what `l2` and `total_variation` look at, where `images` is a view of it.
        """
        shown = images if original is None else original
        if not objective.taps and not objective.features:
            return objective(Seen(shown))
        with _watched(self.backbone, objective) as (maps, before):
            features = None
            with suppress(_Enough):
                features = self.backbone((images - self.mean) / self.std)
        return objective(Seen(shown, maps, before, features))


class _Enough(Exception):
    """All that was asked for has been seen: layers further up need not compute."""


@contextmanager
def _watched(backbone: Backbone, objective: Objective) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Maps after and before the last ReLU of the objective's taps, of the forward pass inside the block.

    Raises:
        DeepClusterError: the backbone has no tap of that name.
    """
    for tap in objective.taps:
        if tap not in backbone.taps:
            raise DeepClusterError(f"Backbone {backbone.name!r} has no tap {tap!r}; it has {', '.join(backbone.taps)}.")
    maps: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    handles = []

    def watch(tap: str) -> None:
        module = backbone.tap_module(tap)

        def keep_input(relu: nn.Module, inputs: Any) -> None:
            # an inplace ReLU would change what is kept
            before[tap] = maps_of(inputs[0].clone())

        def keep_output(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            maps[tap] = maps_of(output)
            if tap not in before or before[tap].shape != maps[tap].shape:
                before[tap] = maps[tap]
            if len(maps) == len(objective.taps) and not objective.features:
                raise _Enough

        for part in module.modules():
            if isinstance(part, nn.ReLU):
                handles.append(part.register_forward_pre_hook(keep_input))
        handles.append(module.register_forward_hook(keep_output))

    try:
        for tap in objective.taps:
            watch(tap)
        yield maps, before
    finally:
        for handle in handles:
            handle.remove()


def _alive(seen: Seen, tap: str, filters: Sequence[int]) -> Tensor:
    """(B, F, H, W) maps of a tap, before the ReLU for images whose own filter is silent: there the gradient is 0."""
    maps, before = seen.maps[tap], seen.before[tap]
    there_is(tap, filters, maps.shape[1])
    if before is maps:
        return maps
    silent = _own(maps.detach().amax((2, 3)), filters) <= 0
    return torch.where(silent[:, None, None, None], before, maps)


def _means(seen: Seen, tap: str, filters: Sequence[int]) -> Tensor:
    return _own(_alive(seen, tap, filters).mean((2, 3)), filters)


def _own(table: Tensor, filters: Sequence[int]) -> Tensor:
    """(B,) of (B, F): of each image, the column of its own filter."""
    columns = torch.as_tensor(list(filters), device=table.device)
    if len(columns) != len(table):
        raise DeepClusterError(f"{len(columns)} filters need as many images, not {len(table)}: give one image each.")
    return table[torch.arange(len(table), device=table.device), columns]

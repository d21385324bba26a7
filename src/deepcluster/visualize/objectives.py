"""What an image is to excite, as terms that add up: `channel("conv3", [7]) - 1e-5 * l2()`.

An objective gives one number for each image of a batch. It names the taps it needs, and knows nothing of how an
image is changed to make the number larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone
from deepcluster.visualize.layers import check_filters, check_tap, feature_maps


@dataclass(frozen=True)
class Activations:
    """The result of one forward pass.

    Attributes:
        images: (B, 3, H, W), before any normalization.
        maps: tap -> (B, F, H, W) activations.
        before_relu: tap -> the same before the last ReLU; the activations themselves where there is no ReLU.
        features: (B, D) output of the network; None if no objective needs it.
    """

    images: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    before_relu: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A number for each image of a batch, (B,); objectives add, subtract and take factors.

    Attributes:
        score: from activations to (B,).
        taps: layers that it needs.
        features: whether it needs the output of the network.
    """

    score: Callable[[Activations], Tensor]
    taps: frozenset[str] = frozenset()
    features: bool = False

    def __add__(self, other: Objective) -> Objective:
        taps, features = self.taps | other.taps, self.features or other.features
        return Objective(lambda found: self.score(found) + other.score(found), taps, features)

    def __mul__(self, factor: float) -> Objective:
        return Objective(lambda found: self.score(found) * factor, self.taps, self.features)

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
    return Objective(lambda found: _own(values(_live_maps(found, tap, filters)), filters), frozenset([tap]))


def closeness(embed: Callable[[Tensor], Tensor], centers: Tensor) -> Objective:
    """Minus half the squared distance of an image to its own of the (B, P) centers; of unit rows the cosine, less one.

    Args:
        embed: from (B, D) features to (B, P) in the space of the centers; gradients must pass.
    """

    def score(found: Activations) -> Tensor:
        assert found.features is not None
        return -(embed(found.features) - centers.to(found.features)).square().sum(1) / 2

    return Objective(score, features=True)


def logit(weight: Tensor, bias: Tensor, relu: bool = False) -> Objective:
    """The logit of a linear classifier, one of the rows of `weight` (B, D) and `bias` (B,) an image.

    Args:
        relu: the classifier begins with a ReLU.
    """

    def score(found: Activations) -> Tensor:
        assert found.features is not None
        features = found.features.relu() if relu else found.features
        return (features * weight.to(features)).sum(1) + bias.to(features)

    return Objective(score, features=True)


def l2() -> Objective:
    """Sum of the squares of all values of an image."""
    return Objective(lambda found: found.images.square().flatten(1).sum(1))


def total_variation() -> Objective:
    """Mean absolute difference of neighboring pixels, down and across."""
    return Objective(lambda found: sum(found.images.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3)))  # type: ignore[arg-type,return-value]


class FrozenNetwork:
    """A network in evaluation mode on which objectives are evaluated.

    Args:
        backbone: put in evaluation mode; its parameters get no gradients.
        normalize: whether images are normalized first, with the network's own mean and deviation.
        device: where it computes.
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
        original = images if original is None else original
        with _recorded(self.backbone, objective) as (maps, before_relu):
            features = None
            with suppress(_AllRecorded):
                features = self.backbone((images - self.mean) / self.std)
        return objective.score(Activations(original, maps, before_relu, features))


class _AllRecorded(Exception):
    """Everything that the objective needs is recorded: later layers need not compute."""


@contextmanager
def _recorded(backbone: Backbone, objective: Objective) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Maps after and before the last ReLU of the objective's taps, of the forward pass inside the block.

    Raises:
        DeepClusterError: the backbone has no tap of that name.
    """
    maps: dict[str, Tensor] = {}
    before_relu: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    def record(tap: str) -> None:
        def keep_input(relu: nn.Module, inputs: Any) -> None:
            before_relu[tap] = feature_maps(inputs[0].clone())  # an inplace ReLU would change it

        def keep_output(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            maps[tap] = feature_maps(output)
            if tap not in before_relu or before_relu[tap].shape != maps[tap].shape:
                before_relu[tap] = maps[tap]
            if len(maps) == len(objective.taps) and not objective.features:
                raise _AllRecorded

        module = backbone.tap_module(tap)
        relus = [part for part in module.modules() if isinstance(part, nn.ReLU)]
        handles.extend(part.register_forward_pre_hook(keep_input) for part in relus)
        handles.append(module.register_forward_hook(keep_output))

    try:
        for tap in objective.taps:
            check_tap(backbone, tap)
            record(tap)
        yield maps, before_relu
    finally:
        for handle in handles:
            handle.remove()


def _live_maps(found: Activations, tap: str, filters: Sequence[int]) -> Tensor:
    """(B, F, H, W) maps of a tap, before the ReLU for images whose own filter is silent: there the gradient is 0."""
    maps, before_relu = found.maps[tap], found.before_relu[tap]
    check_filters(tap, filters, maps.shape[1])
    if before_relu is maps:
        return maps
    silent = _own(maps.detach().amax((2, 3)), filters) <= 0
    return torch.where(silent[:, None, None, None], before_relu, maps)


def _own(table: Tensor, filters: Sequence[int]) -> Tensor:
    """(B,) of (B, F): of each image, the column of its own filter."""
    if len(filters) != len(table):
        raise DeepClusterError(f"{len(filters)} filters need as many images, not {len(table)}: give one image each.")
    return table.gather(1, torch.as_tensor(list(filters), device=table.device)[:, None])[:, 0]

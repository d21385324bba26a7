"""The one class that every network is used through: images in, one feature vector per image out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError, first_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Parts:
    """A network without its classifier, as the builders of this package return it.

    Attributes:
        trunk: (B, C, H, W) -> (B, dim).
        dim: width of its output.
        taps: readable name -> path of a submodule of `trunk`; "" is the trunk itself.
        head_relu: the output is taken before its last ReLU, which the cluster head applies.
        torchvision: the torchvision model whose keys the trunk's state dict has; None = there is none.
        mean, std: what pretrained weights expect images to be normalized with, RGB in [0, 1].
    """

    trunk: nn.Module
    dim: int
    taps: dict[str, str]
    head_relu: bool = False
    torchvision: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class Backbone(nn.Module):
    """Input layer (perhaps Sobel) and trunk: (B, 3, H, W) -> (B, dim).

    Attributes:
        name: as the user wrote it.
        dim, head_relu, torchvision, mean, std: see `Parts`.
        taps: names that `read_taps` can read, in the order of depth.
        image_size: side of the images it was built for, in pixels.
        config: keyword arguments of `build_backbone` that make this backbone again, without its weights.
    """

    def __init__(self, name: str, sobel: nn.Module, parts: Parts, image_size: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.sobel = sobel
        self.trunk = parts.trunk
        self.name = name
        self.dim = parts.dim
        self.head_relu = parts.head_relu
        self.image_size = image_size
        self.mean = parts.mean
        self.std = parts.std
        self.torchvision = parts.torchvision
        self.config = config
        self._tap_paths = dict(parts.taps)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The modules with parameters of their own in the order of depth, divided after each tap: of a ResNet its stem
        and four stages, of a transformer its blocks. What comes after the last tap is one more."""
        order = {path: number for number, (path, _) in enumerate(self.trunk.named_modules())}
        ends = [max(at for path, at in order.items() if _within(path, tap)) for tap in self._tap_paths.values()]
        found: dict[int, list[nn.Module]] = {}
        for path, module in self.trunk.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                stage = min((end for end in ends if end >= order[path]), default=len(order))
                found.setdefault(stage, []).append(module)
        return [found[stage] for stage in sorted(found)]

    def freeze(self, stages: int) -> None:
        """The first so many stages are not trained: neither their parameters nor their batch-norm statistics change.

        Raises:
            DeepClusterError: nothing would be left to train.
        """
        all_stages = self.stages
        if not 0 <= stages < len(all_stages):
            raise DeepClusterError(
                f"--backbone.frozen is {stages}: {self.name} has {len(all_stages)} stages, of which 0 to"
                f" {len(all_stages) - 1} can be frozen."
            )
        for module in (module for stage in all_stages[:stages] for module in stage):
            module.frozen = True  # type: ignore[assignment]
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def fix_statistics(self) -> None:
        """Batch-norm goes on normalizing by the statistics it has; its scales and shifts are trained."""
        for module in self.trunk.modules():
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.frozen = True  # type: ignore[assignment]
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self.trunk.modules():
            if getattr(module, "frozen", False):
                module.eval()
        return self

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(self._tap_paths)

    def tap_module(self, tap: str) -> nn.Module:
        """The submodule whose output is `tap`. Raises: KeyError."""
        return self.trunk.get_submodule(self._tap_paths[tap])

    @torch.no_grad()
    def refusal(self, size: int) -> str:
        """Why the network cannot take images of `size` pixels, in its own words; "" where it can."""
        training = self.training
        try:
            self.eval()(next(self.parameters()).new_zeros(1, 3, size, size))
        except Exception as error:  # networks refuse a size each in their own way
            return first_line(error)
        finally:
            self.train(training)
        return ""

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.trunk(self.sobel(images))
        return out


def _within(path: str, module: str) -> bool:
    """Whether the submodule at `path` is `module` or lies in it; "" is the whole."""
    return not module or path == module or path.startswith(module + ".")

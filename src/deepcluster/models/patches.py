"""A network whose layers are fitted, not trained: k-means of patches, then whitening (Coates, Lee and Ng 2011, "An
analysis of single-layer networks in unsupervised feature learning").

Seconds of fitting make better features of small images than minutes of gradient descent on a CPU: docs/measured.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Parts

AT_ONCE = 16
"""Images that pass through the filters together on a CPU: the maps of more do not fit into its caches."""
CONTRAST = (10 / 255) ** 2
"""Added to the variance of a patch, so that flat ones stay flat; Coates et al. add 10 at a range of 255."""
TINY = 1e-6
"""Added below the root, whose slope at 0 has no end."""
LARGEST = 48
"""Pixels that images are shrunk to unless sides are given: larger ones cost more and score the same."""


class Root(nn.Module):
    """The square root, element by element, which spreads the many small responses."""

    def forward(self, pooled: Tensor) -> Tensor:
        return (pooled + TINY).sqrt()


class PatchNet(nn.Module):
    """(B, C, H, W) -> (B, dim).

    Every patch is brought to mean 0 and deviation 1 and compared with `filters`; the responses above 0 are averaged
    over cells x cells parts of the image, at each of `sides`; their roots are whitened.
    """

    def __init__(self, channels: int, filters: int, patch: int, sides: Sequence[int], cells: int, dim: int) -> None:
        super().__init__()
        self.patch, self.sides, self.cells = patch, tuple(sides), cells
        self.filters = nn.Conv2d(channels, filters, patch)
        self.pool = Root()
        self.whitening = nn.Linear(len(sides) * filters * cells**2, dim)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu" and len(images) > AT_ONCE:
            pooled = torch.cat([self._pooled(part) for part in torch.split(images, AT_ONCE)])
        else:
            pooled = self._pooled(images)
        out: Tensor = self.whitening(self.pool(pooled))
        return out

    def at_sides(self, images: Tensor) -> list[Tensor]:
        """The images (B, C, H, W) at each of the sides, in pixels."""
        return [
            images
            if images.shape[2:] == (side, side)
            else F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
            for side in self.sides
        ]

    def _pooled(self, images: Tensor) -> Tensor:
        """(B, sides x filters x cells^2), the mean responses above 0."""
        return torch.cat([self._cells(image) for image in self.at_sides(images)], dim=1)

    def _cells(self, images: Tensor) -> Tensor:
        images = images.contiguous()
        weight = self.filters.weight
        # what subtracting the mean of each patch comes to; maps of one channel after the other are quicker to average
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)).contiguous()
        responses = F.conv2d(images, weight).div_(self._deviation(images))
        assert self.filters.bias is not None
        responses = responses.add_(self.filters.bias.view(1, -1, 1, 1)).relu_()
        return F.adaptive_avg_pool2d(responses, self.cells).flatten(1)

    def _deviation(self, images: Tensor) -> Tensor:
        """(B, 1, H', W'), of the numbers in each patch."""
        count = images.shape[1] * self.patch**2
        mean = F.avg_pool2d(images.mean(1, keepdim=True), self.patch, 1)
        square = F.avg_pool2d(images.square().mean(1, keepdim=True), self.patch, 1)
        return ((square - mean.square()).clamp_min(0) * (count / (count - 1)) + CONTRAST).sqrt()


def build_patches(
    channels: int,
    size: int,
    *,
    filters: int = 256,
    patch: int = 6,
    sides: Sequence[int] | None = None,
    cells: int = 4,
    dim: int = 384,
) -> Parts:
    """A PatchNet for (channels, size, size) input with values in [0, 1]; `engine.patches.fit_patches` fits it.

    Args:
        filters: number of k-means centroids of the patches.
        patch: their side in pixels.
        sides: pixels that the image is shrunk to, one after the other; None = its own up to 48.
        cells: the responses are averaged over so many parts of the image in each direction.
        dim: width of the output.

    Taps: pool, the roots of the averages; fc, their whitening.

    Raises:
        DeepClusterError: a number below 1, or a side smaller than the patch or than the cells.
    """
    sides = sides or (min(size, LARGEST),)
    if min(filters, patch, cells, dim) < 1 or patch + cells - 1 > min(sides):
        raise DeepClusterError(
            f"No patches network has {filters} filters of {patch} pixels, sides {list(sides)}, {cells} cells and dim"
            f" {dim}: each is at least 1, and a side at least {patch + cells - 1} pixels for so many cells."
        )
    trunk = PatchNet(channels, filters, patch, sides, cells, dim)
    return Parts(trunk, dim, {"pool": "pool", "fc": ""}, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

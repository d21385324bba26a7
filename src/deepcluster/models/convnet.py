"""A small network for tiny images: a stack of 3x3 convolutions and a mean over the last map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Parts
from deepcluster.models.weight_init import initialize_


class Mean(nn.Module):
    """(B, C, H, W) -> (B, C), the mean over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


class ConvNet(nn.Module):
    """(B, C, H, W) -> (B, D): blocks of convolution, batch-norm, perhaps max-pool, ReLU; a mean.

    The pool stands before the ReLU: the maximum of the rectified is the rectified maximum, and the ReLU then
    has a quarter of the numbers to look at.
    """

    def __init__(self, channels: int, widths: Sequence[int], pools: Sequence[int]) -> None:
        super().__init__()
        blocks = []
        for number, width in enumerate(widths, start=1):
            block: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            if number in pools:
                block.append(nn.MaxPool2d(2))
            blocks.append(nn.Sequential(*block, nn.ReLU(inplace=True)))
            channels = width
        self.features = nn.Sequential(*blocks)
        self.pool = Mean()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.pool(self.features(images))
        return out


def build_convnet(
    channels: int,
    size: int,
    *,
    widths: Sequence[int] = (16, 32, 64, 128, 128),
    pools: Sequence[int] | None = None,
) -> Parts:
    """A ConvNet for (channels, size, size) input.

    Args:
        widths: output channels of each convolution.
        pools: numbers of the convolutions, from 1, that a 2x2 max-pool follows; by default 1, 3 and 5, as far
            as there are so many. A pool that would leave no map of so small an image is left out.

    Taps conv1, conv2, ... are the output of each block, after its pool; pool is the mean.

    Raises:
        DeepClusterError: no widths, or a pool after a convolution that does not exist.
    """
    if not widths or min(widths) < 1:
        raise DeepClusterError(f"A convnet needs widths of at least one channel, not {list(widths)}.")
    if pools is None:
        pools = [number for number in (1, 3, 5) if number <= len(widths)]
    if not all(1 <= number <= len(widths) for number in pools):
        raise DeepClusterError(
            f"pools={list(pools)} must number convolutions from 1 to {len(widths)}; give fewer pools or more widths."
        )
    fitting = sorted(set(pools))[: max(size.bit_length() - 1, 0)]
    trunk = ConvNet(channels, widths, fitting)
    initialize_(trunk)
    taps = {f"conv{number + 1}": f"features.{number}" for number in range(len(widths))}
    return Parts(trunk, widths[-1], taps | {"pool": "pool"})

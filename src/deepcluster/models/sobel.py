"""The fixed input layer of the paper: colors to gray, gray to two edge maps. It is never trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError

SOBELS = ("none", "paper", "deepercluster")

EDGES = torch.tensor(
    [
        [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]],
        [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]],
    ]
)
"""The Sobel pair, (2, 3, 3)."""


class Sobel(nn.Module):
    """Gray = the mean of the three normalized colors, then the 3x3 Sobel pair (arXiv 1807.05520 §4).

    (B, 3, H, W) -> (B, 2, H, W) with padding 1, or (B, 2, H + 2, W + 2) with padding 2.

    Both are linear, so that one convolution with the Sobel kernels divided by three is the same map. Its kernel is a
    buffer outside the state dict.
    """

    kernel: Tensor

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("kernel", (EDGES / 3).unsqueeze(1).repeat(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.kernel, padding=self.padding)

    def extra_repr(self) -> str:
        return f"padding={self.padding}"


def input_layer(sobel: str) -> tuple[nn.Module, int, int]:
    """The layer in front of a network, by name.

    - "none": the colors as they are.
    - "paper": Sobel with padding 1, as DeepCluster has it.
    - "deepercluster": zero padding of 2, then Sobel without padding; the network sees H + 2, as the code of
      DeeperCluster (arXiv 1905.01278) has it.

    Returns:
        The layer, the channels it gives, and by how many pixels its maps are larger than the image.

    Raises:
        DeepClusterError: there is no such layer.
    """
    layers: dict[str, tuple[nn.Module, int, int]] = {
        "none": (nn.Identity(), 3, 0),
        "paper": (Sobel(padding=1), 2, 0),
        "deepercluster": (Sobel(padding=2), 2, 2),
    }
    if sobel in layers:
        return layers[sobel]
    raise DeepClusterError(f"sobel={sobel!r} is not an input layer; choose one of {', '.join(SOBELS)}.")

"""AlexNet and VGG-16 with batch-norm, as in DeepCluster."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Parts
from deepcluster.models.weight_init import initialize_

Conv = tuple[int, int, int, int, bool]
"""Width, kernel, stride, padding, and whether a max-pool of stride 2 follows."""
CONVS: tuple[Conv, ...] = (
    (96, 11, 4, 2, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
"""AlexNet: the widths of 2012, no groups, no response normalization."""
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""VGG-16: widths of the 3x3 convolutions of each stage, which ends with a max-pool."""
DIM = 4096


class ConvThenLinear(nn.Module):
    """`features`, flattened, then `classifier`: (B, C, H, W) -> (B, 4096).

    The linear layers are made for one size of map. Maps of images of another size are averaged to it.
    """

    def __init__(self, features: nn.Sequential, side: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        if maps.shape[2:] != (self.side, self.side):
            maps = F.adaptive_avg_pool2d(maps, self.side)
        out: Tensor = self.classifier(maps.flatten(1))
        return out


def build_alexnet(channels: int, size: int, *, dropout: float = 0.5) -> Parts:
    """AlexNet-BN for (channels, size, size) input; its output is fc7 before the ReLU (arXiv 1807.05520 §4).

    Taps conv1..conv5 are after the ReLU and before the pooling, fc6 is after its ReLU.

    Raises:
        DeepClusterError: the input is so small that no map is left.
    """
    _require("AlexNet", size, 63)
    return _build(channels, size, CONVS, 3, [nn.Dropout(dropout)], dropout)


def build_vgg16(channels: int, size: int, *, dropout: float = 0.5) -> Parts:
    """VGG16-BN, with taps conv1..conv13; all else as of `build_alexnet`."""
    _require("VGG16", size, 32)
    convs = [(width, 3, 1, 1, k == len(widths)) for widths in STAGES for k, width in enumerate(widths, start=1)]
    like_torchvision = channels == 3 and size // 32 == 7  # the size of map that its classifier is made for
    return _build(channels, size, convs, 2, [], dropout, "vgg16_bn" if like_torchvision else None)


def _require(name: str, size: int, smallest: int) -> None:
    if size < smallest:
        raise DeepClusterError(
            f"{name} needs images of {smallest} px or more and got {size}; "
            "raise the image size or take the backbone convnet or resnet18."
        )


def _build(
    channels: int,
    size: int,
    convs: Sequence[Conv],
    pool: int,
    before_fc6: list[nn.Module],
    dropout: float,
    torchvision: str | None = None,
) -> Parts:
    layers: list[nn.Module] = []
    taps: dict[str, str] = {}
    inputs, side = channels, size
    for number, (width, kernel, stride, padding, pooled) in enumerate(convs, start=1):
        layers += [nn.Conv2d(inputs, width, kernel, stride, padding), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        taps[f"conv{number}"] = f"features.{len(layers) - 1}"
        side = (side + 2 * padding - kernel) // stride + 1
        if pooled:
            layers.append(nn.MaxPool2d(pool, 2))
            side = (side - pool) // 2 + 1
        inputs = width
    fc6 = [nn.Linear(inputs * side * side, DIM), nn.ReLU(inplace=True)]
    classifier = nn.Sequential(*before_fc6, *fc6, nn.Dropout(dropout), nn.Linear(DIM, DIM))
    trunk = ConvThenLinear(nn.Sequential(*layers), side, classifier)
    initialize_(trunk)
    taps |= {"fc6": f"classifier.{len(before_fc6) + 1}", "fc7": ""}
    return Parts(trunk, DIM, taps, head_relu=True, torchvision=torchvision)

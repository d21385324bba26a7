"""AlexNet with batch-norm as in DeepCluster: the widths of 2012, no groups, no response normalization."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Parts
from deepcluster.models.weight_init import initialize_

# width, kernel, stride, padding, followed by a 3x3 max-pool of stride 2
CONVS = (
    (96, 11, 4, 2, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
SMALLEST = 63
DIM = 4096


class ConvThenLinear(nn.Module):
    """`features`, flattened, then `classifier`: (B, C, H, W) -> (B, 4096). AlexNet and VGG have this shape.

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
    if size < SMALLEST:
        raise DeepClusterError(
            f"AlexNet needs images of {SMALLEST} px or more and got {size}; "
            "raise the image size or take the backbone convnet or resnet18."
        )
    layers: list[nn.Module] = []
    taps: dict[str, str] = {}
    inputs, side = channels, size
    for number, (width, kernel, stride, padding, pool) in enumerate(CONVS, start=1):
        layers += [
            nn.Conv2d(inputs, width, kernel, stride, padding),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        taps[f"conv{number}"] = f"features.{len(layers) - 1}"
        side = (side + 2 * padding - kernel) // stride + 1
        if pool:
            layers.append(nn.MaxPool2d(3, 2))
            side = (side - 3) // 2 + 1
        inputs = width
    classifier = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(inputs * side * side, DIM),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(DIM, DIM),
    )
    trunk = ConvThenLinear(nn.Sequential(*layers), side, classifier)
    initialize_(trunk)
    return Parts(trunk, DIM, taps | {"fc6": "classifier.2", "fc7": ""}, head_relu=True)

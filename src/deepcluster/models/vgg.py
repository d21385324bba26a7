"""VGG16 with batch-norm as in DeepCluster and DeeperCluster."""

from __future__ import annotations

from torch import nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.alexnet import DIM, ConvThenLinear
from deepcluster.models.backbone import Parts
from deepcluster.models.weight_init import initialize_

# widths of the 3x3 convolutions; each stage ends with a 2x2 max-pool
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 32


def build_vgg16(channels: int, size: int, *, dropout: float = 0.5) -> Parts:
    """VGG16-BN for (channels, size, size) input; its output is fc7 before the ReLU (arXiv 1807.05520 §4).

    Taps conv1..conv13 are after the ReLU and before the pooling, fc6 is after its ReLU.

    Raises:
        DeepClusterError: the input is so small that no map is left.
    """
    if size < SMALLEST:
        raise DeepClusterError(
            f"VGG16 needs images of {SMALLEST} px or more and got {size}; "
            "raise the image size or take the backbone convnet."
        )
    layers: list[nn.Module] = []
    taps: dict[str, str] = {}
    inputs, side = channels, size
    for widths in STAGES:
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            taps[f"conv{len(taps) + 1}"] = f"features.{len(layers) - 1}"
            inputs = width
        layers.append(nn.MaxPool2d(2))
        side //= 2
    classifier = nn.Sequential(
        nn.Linear(inputs * side * side, DIM),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(DIM, DIM),
    )
    trunk = ConvThenLinear(nn.Sequential(*layers), side, classifier)
    initialize_(trunk)
    same = channels == 3 and side == 7  # the size of map that torchvision's classifier is made for
    return Parts(
        trunk,
        DIM,
        taps | {"fc6": "classifier.1", "fc7": ""},
        head_relu=True,
        torchvision="vgg16_bn" if same else None,
    )

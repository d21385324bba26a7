"""ResNets of torchvision, with a stem for small images, and any other classifier of torchvision."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Parts

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
STAGES = ("layer1", "layer2", "layer3", "layer4")
SMALL = 64


def build_resnet(
    name: str, channels: int, size: int, *, stem: str = "auto", pretrained: bool = False, **options: Any
) -> Parts:
    """A ResNet of torchvision without its classifier; its output is the mean over the last map.

    Args:
        stem: "imagenet" is torchvision's own (7x7 of stride 2, max-pool); "small" is one 3x3 convolution of
            stride 1; "auto" takes "small" for images up to 64 px, unless weights are `pretrained`.
        pretrained: torchvision's default ImageNet weights.
        options: passed to torchvision, such as `zero_init_residual`.

    Taps: stem (after its ReLU), layer1..layer4, pool.

    Raises:
        DeepClusterError: an unknown stem or option, or weights that cannot be had.
    """
    if stem not in ("auto", "imagenet", "small"):
        raise DeepClusterError(f"stem={stem!r} is not a stem; choose one of auto, imagenet, small.")
    small = stem == "small" or (stem == "auto" and size <= SMALL and not pretrained)
    trunk = _torchvision_model(name, pretrained, options)
    if pretrained and (small or channels != 3):
        raise DeepClusterError(
            f"Pretrained weights of {name} need colors and the imagenet stem; "
            "leave out pretrained, or take sobel=none and stem=imagenet."
        )
    if small or channels != 3:
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        trunk.conv1 = nn.Conv2d(channels, trunk.conv1.out_channels, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        trunk.maxpool = nn.Identity()
    dim = trunk.fc.in_features
    trunk.fc = nn.Identity()
    taps = {"stem": "relu"} | {layer: layer for layer in STAGES} | {"pool": ""}
    return Parts(trunk, dim, taps, torchvision=None if small or channels != 3 else name)


def build_torchvision(name: str, channels: int, size: int, *, pretrained: bool = False, **options: Any) -> Parts:
    """Any classifier of torchvision whose last layer is linear, without that layer.

    Taps: the children of its `features` or, without such, of the model; then pool, the output.

    Raises:
        DeepClusterError: no such model, an unknown option, no linear layer to take away, or no colors.
    """
    if channels != 3:
        raise DeepClusterError(f"torchvision:{name} takes colors only; use sobel=none or another backbone.")
    trunk = _torchvision_model(name, pretrained, options)
    linear = [path for path, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise DeepClusterError(f"torchvision:{name} does not end in a linear layer; take another backbone.")
    dim = trunk.get_submodule(linear[-1]).in_features
    trunk.set_submodule(linear[-1], nn.Identity())
    inside = "features" if hasattr(trunk, "features") else ""
    children = [child for child, _ in trunk.get_submodule(inside).named_children()]
    paths = [f"{inside}.{child}".lstrip(".") for child in children]
    taps = {path: path for path in paths if not linear[-1].startswith(path)}
    return Parts(trunk, int(dim), taps | {"pool": ""}, torchvision=name)


def _torchvision_model(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    import torchvision

    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except OSError as error:  # also urllib's URLError
        raise DeepClusterError(
            f"The weights of {name} could not be fetched ({error}); connect to the network once, "
            "or leave out pretrained."
        ) from error
    except (TypeError, ValueError) as error:
        raise DeepClusterError(f"torchvision cannot build {name!r} with {options}: {error}") from error

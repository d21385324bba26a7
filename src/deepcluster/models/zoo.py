"""Backbones by name. This file knows which name is whose; the files beside it know how each is made."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from deepcluster.errors import DeepClusterError
from deepcluster.models.alexnet import build_alexnet, build_vgg16
from deepcluster.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Parts
from deepcluster.models.convnet import build_convnet
from deepcluster.models.patches import build_patches
from deepcluster.models.resnet import RESNETS, build_resnet, build_torchvision
from deepcluster.models.sobel import input_layer
from deepcluster.models.timm_backbone import build_timm

LARGEST = 1 << 13
"""Side of images in pixels, at most."""
OURS = ("alexnet", "vgg16", "convnet", "patches", *RESNETS)


def build_backbone(
    name: str,
    *,
    sobel: str = "none",
    image_size: int = 224,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Backbone:
    """Makes a backbone; weights are drawn from torch's global generator, unless they are `pretrained`.

    Args:
        name: "alexnet", "vgg16" (both with batch-norm), "convnet", "patches", a ResNet ("resnet18", ...), "timm:NAME",
            "torchvision:NAME", or a name that only timm knows.
        sobel: "none", "paper" or "deepercluster"; see `sobel.input_layer`.
        image_size: side of the square images it will see, in pixels.
        mean, std: three numbers each that images are normalized with; by default those of the pretrained
            weights, else ImageNet's.
        options: of that network: `dropout` (alexnet, vgg16), `widths` and `pools` (convnet), `filters`, `patch`,
            `sides`, `cells` and `dim` (patches), `stem` and `pretrained` (ResNets), `pretrained` and whatever timm
            takes (timm).

    Raises:
        DeepClusterError: an unknown name (the nearest one is suggested) or option, or an image size that
            the network cannot take.
    """
    layer, channels, extra = input_layer(sobel)
    if not 1 <= image_size <= LARGEST:
        raise DeepClusterError(f"image_size={image_size} must be a number of pixels from 1 to {LARGEST:,}.")
    parts = _builder(name, options)(channels, image_size + extra, **options)
    config: dict[str, Any] = {"name": name, "sobel": sobel, "image_size": image_size}
    # Whoever rebuilds a backbone has its weights already.
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}  # as in JSON
    config |= {key: value for key, value in plain.items() if key != "pretrained"}
    if options.get("pretrained") and name in RESNETS and options.get("stem", "auto") == "auto":
        config["stem"] = "imagenet"
    backbone = Backbone(name, layer, parts, image_size, config)
    backbone.mean = _three("mean", mean, parts.mean)
    backbone.std = _three("std", std, parts.std)
    if (backbone.mean, backbone.std) != (IMAGENET_MEAN, IMAGENET_STD):
        config |= {"mean": list(backbone.mean), "std": list(backbone.std)}
    return backbone


def _builder(name: str, options: Iterable[str]) -> Callable[..., Parts]:
    """The function that makes the network of this name, after a look at its options."""
    own: dict[str, Callable[..., Parts]] = {
        "alexnet": build_alexnet,
        "vgg16": build_vgg16,
        "convnet": build_convnet,
        "patches": build_patches,
    }
    if name in own:
        parameters = inspect.signature(own[name]).parameters.values()
        takes = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        for option in options:
            if option not in takes:
                raise DeepClusterError(f"Backbone {name} has no option {option!r}; it has {', '.join(takes)}.")
        return own[name]
    if name in RESNETS:
        return partial(build_resnet, name)
    origin, _, rest = name.rpartition(":")
    if origin == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if rest not in known:
            raise _unknown(name, [f"torchvision:{model}" for model in known])
        return partial(build_resnet if rest in RESNETS else build_torchvision, rest)
    import timm

    if origin in ("", "timm") and timm.is_model(rest):
        return partial(build_timm, rest)
    if origin == "timm":
        raise _unknown(name, [f"timm:{model}" for model in timm.list_models()])
    raise _unknown(name, [*OURS, *timm.list_models()])


def _unknown(name: str, known: Sequence[str]) -> DeepClusterError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = [found if found in OURS or ":" in found else f"timm:{found}" for found in near]
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    return DeepClusterError(f"No backbone {name!r}: {hint} {', '.join(OURS)}, timm:NAME and torchvision:NAME.")


def _three(what: str, given: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    values = default if given is None else tuple(float(value) for value in given)
    if len(values) != 3 or (what == "std" and min(values) <= 0):
        raise DeepClusterError(f"{what}={list(values)} must be three numbers, one per color, std above 0.")
    return values

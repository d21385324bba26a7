"""Every preset by name: the third and last table of names, written by hand."""

from __future__ import annotations

import shlex
from pathlib import Path

from deepcluster.errors import DeepClusterError, did_you_mean
from deepcluster.presets import deepcluster, deepercluster, odc, swav, tiny
from deepcluster.presets.preset import Preset

PRESETS: dict[str, Preset] = {
    "deepcluster-alexnet": deepcluster.ALEXNET,
    "deepcluster-alexnet-rgb": deepcluster.ALEXNET_RGB,
    "deepcluster-alexnet-uncurated": deepcluster.ALEXNET_UNCURATED,
    "deepcluster-vgg16": deepcluster.VGG16,
    "deepcluster-vgg16-rgb": deepcluster.VGG16_RGB,
    "deepcluster-resnet18": deepcluster.RESNET18,
    "deepcluster-resnet18-sobel": deepcluster.RESNET18_SOBEL,
    "deepcluster-resnet50": deepcluster.RESNET50,
    "deepcluster-resnet50-rgb": deepcluster.RESNET50_RGB,
    "deepcluster-convnet": deepcluster.CONVNET,
    "deepcluster-pic-alexnet": deepcluster.PIC_ALEXNET,
    "deepcluster-pic-vgg16": deepcluster.PIC_VGG16,
    "deepercluster-vgg16": deepercluster.VGG16,
    "deepercluster-resnet18": deepercluster.RESNET18,
    "deepercluster-convnet": deepercluster.CONVNET,
    "rotnet-vgg16": deepercluster.ROTNET_VGG16,
    "rotnet-resnet18": deepercluster.ROTNET_RESNET18,
    "rotnet-convnet": deepercluster.ROTNET_CONVNET,
    "deepcluster-v2-resnet50": swav.DEEPCLUSTER_V2_RESNET50,
    "deepcluster-v2-resnet18": swav.DEEPCLUSTER_V2_RESNET18,
    "deepcluster-v2-convnet": swav.DEEPCLUSTER_V2_CONVNET,
    "swav-resnet50": swav.SWAV_RESNET50,
    "swav-resnet18": swav.SWAV_RESNET18,
    "swav-convnet": swav.SWAV_CONVNET,
    "odc-resnet50": odc.RESNET50,
    "odc-resnet18": odc.RESNET18,
    "odc-alexnet": odc.ALEXNET,
    "odc-convnet": odc.CONVNET,
    "tiny-deepcluster": tiny.DEEPCLUSTER,
    "tiny-deepcluster-pic": tiny.PIC,
    "tiny-odc": tiny.ODC,
    "tiny-deepcluster-v2": swav.TINY_DEEPCLUSTER_V2,
    "tiny-swav": swav.TINY_SWAV,
    "tiny-deepercluster": deepercluster.TINY,
    "tiny-rotnet": deepercluster.TINY_ROTNET,
}


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        DeepClusterError: there is none; the nearest name is suggested.
    """
    if name not in PRESETS:
        if Path(name).exists():
            raise DeepClusterError(f"{name} is no preset: if these are the images, write --data {shlex.quote(name)}.")
        longer = ", ".join(each for each in PRESETS if each.startswith(name))
        meant = f" These begin so: {longer}." if longer else did_you_mean(name, list(PRESETS))
        raise DeepClusterError(f"There is no preset {name!r}.{meant} `deepcluster presets` lists them all.")
    return PRESETS[name]

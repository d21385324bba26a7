"""Backbones as files: safetensors with all that rebuilds them, or what torchvision and timm read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepcluster.errors import DeepClusterError, first_line
from deepcluster.io import new_folder, write_safetensors, write_torch
from deepcluster.models import hugging_face
from deepcluster.models.backbone import Backbone
from deepcluster.models.resnet import RESNETS
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import parse_json, read_tensors

FORMATS = ("safetensors", "torchvision", "timm")


def export_backbone(
    backbone: Backbone, format: str, file: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes the weights of `backbone`, whole or not at all.

    Args:
        format: "safetensors" has the backbone's state dict, and in its metadata `config` (keyword arguments
            of `build_backbone`, JSON), `mean` and `std`; `load_backbone` reads it. "torchvision" is a .pth of
            plain tensors that torchvision's model of the same name loads with `strict=False`, all but its
            classifier. "timm" is a folder, see `hugging_face.write_folder`.
        file: where to; its folder is made.
        metadata: more entries for the safetensors metadata; values that are not text become JSON.

    Raises:
        DeepClusterError: no such format, no equivalent in torchvision, or a file that cannot be written.
    """
    file = Path(file)
    if format == "safetensors":
        notes = {
            "format": "pt",
            "config": json.dumps(backbone.config),
            "mean": json.dumps(list(backbone.mean)),
            "std": json.dumps(list(backbone.std)),
        } | {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
        return write_safetensors(file, backbone.state_dict(), notes)
    if format == "torchvision":
        if backbone.torchvision is None:
            raise _none_alike("torchvision", backbone)
        tensors = {key: value.detach().cpu().contiguous() for key, value in backbone.trunk.state_dict().items()}
        return write_torch(file, tensors)
    if format == "timm":
        if hugging_face.architecture(backbone) is None:
            raise _none_alike("timm", backbone)
        with new_folder(file) as folder:
            hugging_face.write_folder(backbone, folder)
        return file
    raise DeepClusterError(f"There is no export format {format!r} for backbones; choose one of {', '.join(FORMATS)}.")


def _none_alike(library: str, backbone: Backbone) -> DeepClusterError:
    what = ", ".join(f"{key}={value}" for key, value in backbone.config.items())
    if backbone.config["sobel"] != "none":
        unlike = "it sees Sobel filters in place of color"
    elif backbone.name in RESNETS and backbone.torchvision is None:
        unlike = f"its first layers are the small ones for images up to 64 px, {library}'s are 7x7 with a pool"
    else:
        unlike = "its layers are others"
    return DeepClusterError(
        f"{library} has no network like this backbone ({what}): {unlike}; export it as safetensors, which"
        " deepcluster.models.export.load_backbone reads."
    )


def load_backbone(file: str | Path) -> Backbone:
    """The backbone that `export_backbone(..., "safetensors", file)` wrote, in eval mode, on the CPU.

    Raises:
        DeepClusterError: the file is missing, is not such a file, or its weights do not fit its config.
    """
    notes, tensors = read_tensors(file)
    try:
        config = parse_json(notes["config"])
        # The random weights that are about to be replaced leave the caller's generator as it was.
        with torch.random.fork_rng(devices=[]):
            backbone = build_backbone(**config)
        backbone.load_state_dict(tensors)
    except Exception as error:  # a config can be wrong in as many ways as networks have arguments
        reason = "no config" if "config" not in notes else first_line(error)
        raise DeepClusterError(f"{file} does not hold a backbone of deepcluster ({reason}).") from error
    return backbone.eval()

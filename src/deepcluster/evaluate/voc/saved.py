"""A trained network in one safetensors file, with all that is needed to make it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from deepcluster.engine.checkpoint import undisturbed
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_atomic
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone


def save_network(network: nn.Module, file: Path, kind: str, about: dict[str, Any]) -> Path:
    """Writes the weights, and `about` as JSON under the name `kind`."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    metadata = {"format": "pt", kind: json.dumps(about)}
    return write_atomic(file, lambda beside: save_file(tensors, beside, metadata))


def read_network(
    file: Path | str, kind: str, build: Callable[[Backbone, dict[str, Any]], nn.Module], device: str
) -> nn.Module:
    """The inverse of `save_network`, in evaluation mode.

    Args:
        build: makes the network of the drawn backbone and what `save_network` was told about it.

    Raises:
        DeepClusterError: the file is missing, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        about = json.loads(metadata[kind])
    except KeyError as error:
        raise DeepClusterError(f"{file} holds no {kind}: give the file that an evaluation wrote.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DeepClusterError(f"{file} cannot be read as a {kind} ({error}): give a whole file.") from error
    with undisturbed():
        network = build(build_backbone(**about["backbone"]), about)
    network.load_state_dict(tensors)
    return network.to(device).eval()

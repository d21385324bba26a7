"""What an evaluation trained, in one safetensors file, with all that is needed to build it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.errors import DeepClusterError
from deepcluster.io import write_safetensors
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone

Network = TypeVar("Network", bound=nn.Module)


def save_tensors(file: Path, kind: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Writes tensors, and `about` as JSON under the name `kind`."""
    return write_safetensors(file, tensors, {kind: json.dumps(about, default=str)})


def read_tensors(file: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of `save_tensors`; lists of `about` become tuples.

    Raises:
        DeepClusterError: the file is missing, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            about = (handle.metadata() or {}).get(kind)
            if about is None:
                raise ValueError("it holds something else")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        return _tuples(json.loads(about)), tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise DeepClusterError(
            f"{file} cannot be read as a {kind} ({error}): give the .safetensors file that an evaluation wrote."
        ) from error


def load_network(
    file: Path | str, kind: str, build: Callable[[Backbone, dict[str, Any]], Network], device: str
) -> Network:
    """A network saved by `save_tensors`, in evaluation mode.

    Args:
        build: a backbone by the config that `about` holds as "backbone", and `about` -> the network.

    Raises:
        DeepClusterError: see `read_tensors`.
    """
    about, tensors = read_tensors(file, kind)
    with preserve_random_state():
        network = build(build_backbone(**about["backbone"]), about)
    network.load_state_dict(tensors)
    return network.to(device).eval()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

"""A trained network in one safetensors file, with all that is needed to build it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.io import write_atomic


def save_tensors(file: Path, kind: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Writes tensors, and `about` as JSON under the name `kind`."""
    from safetensors.torch import save_file

    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"format": "pt", kind: json.dumps(about)}
    return write_atomic(file, lambda temporary: save_file(own, temporary, metadata))


def read_tensors(file: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of `save_tensors`; lists of `about` become tuples.

    Raises:
        DeepClusterError: the file is missing, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        return _tuples(json.loads(metadata[kind])), tensors
    except KeyError as error:
        raise DeepClusterError(f"{file} holds no {kind}: give the file that an evaluation wrote.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DeepClusterError(f"{file} cannot be read as a {kind} ({error}): give a complete file.") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

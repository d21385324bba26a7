"""What an evaluation trained, in one safetensors file, with all that is needed to build it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from deepcluster import io, reading
from deepcluster.digest import digest
from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, first_line
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone
from deepcluster.resume import ResumeFile

Network = TypeVar("Network", bound=nn.Module)


def trained_file(
    subject: Subject, protocol: str, depends_on: Any, screen: Screen, save_seconds: float = 300.0
) -> tuple[Path, ResumeFile]:
    """The file of what an evaluation trains, and that of its unfinished work; those of other settings, weights or
    images, or whatever else it `depends_on`, have other names, so that no evaluation overwrites what another one left.
    DeepClusterError where the folder cannot be written, which is told before the work and not after it."""
    folder = Path(subject.results)
    key = digest(depends_on, subject.backbone.config, subject.backbone)
    file = folder / f"{protocol}-{key[:8]}.safetensors"
    io.require_writable(file)
    return file, ResumeFile(file.with_suffix(".state"), key, save_seconds=save_seconds, say=screen.print)


def save_tensors(file: Path, kind: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Writes tensors, and `about` as JSON under the name `kind`."""
    return io.write_safetensors(file, tensors, {kind: json.dumps(about, default=str)})


def read_tensors(file: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of `save_tensors`; lists of `about` become tuples. DeepClusterError for a file that is missing,
    damaged, or holds something else."""
    metadata, tensors = reading.read_tensors(file, advice=f"give what an evaluation wrote as a {kind}.")
    try:
        return _tuples(reading.parse_json(metadata[kind])), tensors
    except (KeyError, ValueError) as error:
        why = "it holds something else" if isinstance(error, KeyError) else error
        raise DeepClusterError(
            f"{file} cannot be read as a {kind} ({why}): give the .safetensors file that an evaluation wrote."
        ) from error


def load_network(
    file: Path | str, kind: str, build: Callable[[Backbone, dict[str, Any]], Network], device: str
) -> Network:
    """A network saved by `save_tensors`, in evaluation mode. `build` makes it of a backbone, by the config that `about`
    holds as "backbone", and of `about`. DeepClusterError as in `read_tensors`, and for tensors of another network."""
    about, tensors = read_tensors(file, kind)
    try:
        with preserve_random_state():
            network = build(build_backbone(**about["backbone"]), about)
        network.load_state_dict(tensors)
    except Exception as error:  # what it says can be wrong in as many ways as networks have arguments
        raise DeepClusterError(
            f"{file} does not hold a {kind} that can be built ({first_line(error)}): evaluate again."
        ) from error
    return network.to(device).eval()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

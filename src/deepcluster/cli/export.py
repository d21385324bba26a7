"""`deepcluster export RUN --format safetensors|torchvision|released --out FILE`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from deepcluster.cli.parse import parse
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from torch import Tensor

    from deepcluster.models.backbone import Backbone


@dataclass(frozen=True)
class Export:
    """The trained backbone in the ecosystem's own forms."""

    run: Positional[Path]
    """The run folder, or a checkpoint that DeepCluster's authors released."""
    out: Path
    """The file to write."""
    format: Literal["safetensors", "torchvision", "released"] = "safetensors"
    """safetensors (with the configuration), a .pth with torchvision's own names, or a checkpoint that the evaluation
    scripts of DeepCluster's authors read."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Exports."""
    chosen = parse(Export, arguments, prog="deepcluster export")
    if not chosen.run.exists():
        raise DeepClusterError(
            f"There is no {chosen.run}: give a run folder, or a checkpoint that DeepCluster's authors released."
        )
    from deepcluster.models.export import export_backbone
    from deepcluster.models.released import save_released

    backbone, head, k, about = _from_file(chosen.run) if chosen.run.is_file() else _from_run(chosen.run)
    if chosen.format == "released":
        file = save_released(backbone, chosen.out, head, about["epochs"], k)
    else:
        file = export_backbone(backbone, chosen.format, chosen.out, about)
    if chosen.json:
        print(json_module.dumps({"out": str(file), "format": chosen.format, "bytes": file.stat().st_size}))
        return
    print(f"{file}: {backbone.name}, {chosen.format}, {file.stat().st_size / 1e6:.1f} MB")


def _from_run(folder: Path) -> tuple[Backbone, tuple[Tensor, Tensor] | None, int, dict[str, Any]]:
    """Backbone, classifier over clusters if there is one, K, and what the file is to say of its origin."""
    from deepcluster.engine.run import load_run

    run = load_run(folder, "cpu")
    return run.backbone, run.head, len(run.centroids), {"preset": run.config["preset"], "epochs": len(run.metrics)}


def _from_file(file: Path) -> tuple[Backbone, tuple[Tensor, Tensor] | None, int, dict[str, Any]]:
    """The same of a released checkpoint."""
    from deepcluster.models.released import load_released

    found = load_released(file)
    head = None if found.head_weight is None or found.head_bias is None else (found.head_weight, found.head_bias)
    return found.backbone, head, found.k or 1000, {"arch": found.arch, "epochs": found.epoch}

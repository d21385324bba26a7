"""`deepcluster export RUN --format safetensors|torchvision|released --out FILE`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from torch import Tensor

    from deepcluster.models.backbone import Backbone


def export(
    run: Path,
    /,
    *,
    out: Path,
    format: Literal["safetensors", "torchvision", "released"] = "safetensors",
    json: bool = False,
) -> None:
    """Writes the trained backbone in a format that other libraries read.

    Args:
        run: the run folder, or a checkpoint released by the authors of DeepCluster.
        out: the file to write.
        format: safetensors = weights with their configuration; torchvision = a .pth with torchvision's names;
            released = a checkpoint for the evaluation scripts of the authors of DeepCluster.
    """
    if not run.exists():
        raise DeepClusterError(
            f"There is no {run}: give a run folder, or a checkpoint released by the authors of DeepCluster."
        )
    from deepcluster.models.export import export_backbone
    from deepcluster.models.released import save_released

    backbone, head, k, about = _from_file(run) if run.is_file() else _from_run(run)
    if format == "released":
        file = save_released(backbone, out, head, about["epochs"], k)
    else:
        file = export_backbone(backbone, format, out, about)
    size = file.stat().st_size
    if json:
        print(dumps({"out": str(file), "format": format, "bytes": size}))
    else:
        print(f"{file}: {backbone.name}, {format}, {size / 1e6:.1f} MB")


def _from_run(folder: Path) -> tuple[Backbone, tuple[Tensor, Tensor] | None, int, dict[str, Any]]:
    """Backbone, the classifier over clusters if there is one, K, and the metadata of the file."""
    from deepcluster.engine.run import load_run

    run = load_run(folder, "cpu")
    return run.backbone, run.head, len(run.centroids), {"preset": run.config["preset"], "epochs": len(run.metrics)}


def _from_file(file: Path) -> tuple[Backbone, tuple[Tensor, Tensor] | None, int, dict[str, Any]]:
    """The same from a released checkpoint."""
    from deepcluster.models.released import load_released

    found = load_released(file)
    head = None if found.head_weight is None or found.head_bias is None else (found.head_weight, found.head_bias)
    return found.backbone, head, found.k or 1000, {"arch": found.arch, "epochs": found.epoch}

"""`deepcluster export RUN --format safetensors|torchvision|released --out FILE`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any, Literal

from deepcluster.errors import DeepClusterError


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
    from deepcluster.engine.run import load_run
    from deepcluster.models.export import export_backbone
    from deepcluster.models.released import load_released, save_released

    about: dict[str, Any]
    if run.is_file():
        found = load_released(run)
        head = None if found.head_weight is None or found.head_bias is None else (found.head_weight, found.head_bias)
        backbone, k, about = found.backbone, found.k or 1000, {"arch": found.arch, "epochs": found.epoch}
    else:
        loaded = load_run(run, "cpu")
        backbone, head, k = loaded.backbone, loaded.head, len(loaded.centroids)
        about = {"preset": loaded.config["preset"], "epochs": len(loaded.metrics)}
    if format == "released":
        file = save_released(backbone, out, head, about["epochs"], k)
    else:
        file = export_backbone(backbone, format, out, about)
    size = file.stat().st_size
    if json:
        print(dumps({"out": str(file), "format": format, "bytes": size}))
    else:
        print(f"{file}: {backbone.name}, {format}, {size / 1e6:.1f} MB")

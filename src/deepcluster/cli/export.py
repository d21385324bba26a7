"""`deepcluster export RUN --format safetensors|torchvision|onnx|... --out FILE`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any, Literal

from deepcluster.errors import DeepClusterError, counted


def export(
    run: Path,
    /,
    *,
    out: Path,
    format: Literal[
        "safetensors", "torchvision", "timm", "huggingface", "onnx", "embedding-atlas", "released"
    ] = "safetensors",
    json: bool = False,
) -> None:
    """Writes the trained backbone, all of the model, or the clusters in a format that other programs read.

    Args:
        run: the run folder, or a checkpoint released by the authors of DeepCluster.
        out: the file to write, or the folder.
        format: safetensors = weights with their configuration; torchvision = a .pth with torchvision's names; timm =
            a folder that timm.create_model loads; huggingface = the same with the clusters and a model card; onnx = a
            graph for onnxruntime, from the pixels of an image to its features, cluster and distance; embedding-atlas =
            a .parquet of the clusters as edited in the explorer, with a map, neighbors and small pictures; released = a
            checkpoint for the evaluation scripts of the authors of DeepCluster.
    """
    if not run.exists():
        raise DeepClusterError(
            f"There is no {run}: give a run folder, or a checkpoint released by the authors of DeepCluster."
        )
    if format == "embedding-atlas":
        _export_atlas(run, out, json)
        return
    from deepcluster.engine.model import bare_model
    from deepcluster.engine.run import load_run
    from deepcluster.models.export import export_backbone
    from deepcluster.models.released import load_released, save_released

    about: dict[str, Any]
    if run.is_file():
        if format == "huggingface":
            raise DeepClusterError(
                f"{run} is no run, of which a card could be written: export it as safetensors or timm."
            )
        found = load_released(run)
        head = None if found.head_weight is None or found.head_bias is None else (found.head_weight, found.head_bias)
        model, k, about = bare_model(found.backbone), found.k or 1000, {"arch": found.arch, "epochs": found.epoch}
    else:
        loaded = load_run(run, "cpu")
        model, head, k = loaded.model, loaded.head, len(loaded.centroids)
        about = {"preset": loaded.config["preset"], "epochs": len(loaded.metrics)}
    if format == "released":
        file = save_released(model.backbone, out, head, about["epochs"], k)
    elif format == "onnx":
        from deepcluster.engine.onnx import export_onnx

        file = export_onnx(model, out, about)
    elif format == "huggingface":
        file = loaded.save_pretrained(out)
    else:
        file = export_backbone(model.backbone, format, out, about)
    size = sum(each.stat().st_size for each in (file.iterdir() if file.is_dir() else [file]))
    if json:
        print(dumps({"out": str(file), "format": format, "bytes": size}))
    else:
        print(f"{file}: {model.backbone.name}, {format}, {size / 1e6:.1f} MB")


def _export_atlas(run: Path, out: Path, json: bool) -> None:
    if out.suffix != ".parquet":
        raise DeepClusterError(f"Embedding Atlas reads .parquet, not {out.name!r}: change --out.")
    from deepcluster.cli.common import show
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run
    from deepcluster.explore.atlas import write_atlas
    from deepcluster.explore.explorer import open_explorer

    screen = Screen(stderr=json)
    explorer = open_explorer(load_run(run))
    try:
        images = write_atlas(out, explorer, screen)
    finally:
        explorer.close()
    values = {"out": str(out), "format": "embedding-atlas", "images": images, "bytes": out.stat().st_size}
    show(screen, json, values, f"{out}: {counted(images, 'image')} with their clusters, places and neighbors")

"""`deepcluster export RUN --format safetensors|torchvision --out FILE`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deepcluster.cli.parse import parse


@dataclass(frozen=True)
class Export:
    """The trained backbone in the ecosystem's own forms."""

    run: Positional[Path]
    """The run folder."""
    out: Path
    """The file to write."""
    format: Literal["safetensors", "torchvision"] = "safetensors"
    """safetensors (with the configuration), or a .pth with torchvision's own names."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Exports."""
    chosen = parse(Export, arguments, prog="deepcluster export")
    from deepcluster.engine.runs import load_run
    from deepcluster.models.export import export_backbone

    run = load_run(chosen.run, "cpu")
    about = {"preset": run.config["preset"], "epochs": len(run.metrics)}
    file = export_backbone(run.backbone, chosen.format, chosen.out, about)
    if chosen.json:
        print(json_module.dumps({"out": str(file), "format": chosen.format, "bytes": file.stat().st_size}))
        return
    print(f"{file}: {run.backbone.name}, {chosen.format}, {file.stat().st_size / 1e6:.1f} MB")

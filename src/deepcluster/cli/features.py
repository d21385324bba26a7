"""`deepcluster features RUN|BACKBONE --data S --out FILE.npy`."""

from __future__ import annotations

import json as json_module
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.data.sources import must_exist
from deepcluster.records import DeepClusterError

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = (".tar", ".pth", ".safetensors")
"""Endings of files, which no backbone's name has."""


@dataclass(frozen=True)
class Features:
    """Features of images as a memory-mapped table (N, D) float32, with a .json beside it."""

    model: Positional[str]
    """A run folder, a backbone (any timm model as timm:NAME, a torchvision one as torchvision:NAME), or a file that
    holds one: .safetensors, or a checkpoint that DeepCluster's authors released."""
    source: Annotated[str, arg(name="data")]
    """Images, as for train."""
    out: Path
    """The .npy file to write; rows of images that cannot be decoded are NaN."""
    tap: str | None = None
    """A layer to read in place of the output, averaged over space."""
    image_size: int = 224
    """For a backbone by name: side of the images it sees. Runs and files know their own."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Extracts."""
    chosen = parse(Features, arguments, prog="deepcluster features")
    if chosen.out.suffix != ".npy":
        raise DeepClusterError(f"Features are written as .npy, not as {chosen.out.name!r}: change --out.")
    must_exist(chosen.source)
    import numpy as np

    from deepcluster.data.cache import load_pixels
    from deepcluster.data.sources import open_images
    from deepcluster.engine.log import Screen
    from deepcluster.engine.model import file_model, named_model
    from deepcluster.engine.runs import load_run, pick_device, short_side
    from deepcluster.files import write_json

    screen, device = Screen(stderr=chosen.json), pick_device(chosen.device)
    if (Path(chosen.model) / "run.json").is_file():
        model = load_run(chosen.model).model
    elif Path(chosen.model).is_file() or Path(chosen.model).suffix in WEIGHTS:
        model = file_model(Path(chosen.model))
    elif Path(chosen.model).exists():
        raise DeepClusterError(
            f"{chosen.model} is no run folder (it has no run.json): give a run or a backbone's name."
        )
    else:
        try:
            model = named_model(chosen.model, chosen.image_size)
        except DeepClusterError as error:
            if ":" in chosen.model or not str(error).startswith("No backbone"):
                raise
            raise DeepClusterError(f"There is no run folder or file {chosen.model}, and n{str(error)[1:]}") from error
    pixels = load_pixels(open_images(chosen.source), short_side=short_side(model.backbone.image_size), cache_gb=20)
    part = chosen.out.with_name(f".{chosen.out.name}.part")
    try:
        with screen.bar("features", len(pixels.good)) as advance:
            index, features = model.features(pixels, tap=chosen.tap, device=device, file=part, check=advance)
        width = features.shape[1]
        if not part.exists() or len(index) < len(pixels):
            whole = chosen.out.with_name(f".{chosen.out.name}.whole.part")
            scatter(whole, len(pixels), index, features)
            del features
            os.replace(whole, part)
        os.replace(part, chosen.out)
    finally:
        part.unlink(missing_ok=True)
    bad = np.setdiff1d(np.arange(len(pixels)), index).tolist()
    about = {
        "model": chosen.model,
        "data": pixels.source.name,
        "source_fingerprint": pixels.source.fingerprint(),
        "tap": chosen.tap,
        "rows": len(pixels),
        "width": width,
        "bad": bad,
    }
    write_json(chosen.out.with_suffix(".json"), about)
    if chosen.json:
        print(json_module.dumps({"out": str(chosen.out), **about}))
        return
    screen.say(f"{chosen.out}: {len(pixels):,} x {width} features" + (f", {len(bad):,} rows NaN" if bad else ""))


def scatter(file: Path, rows: int, index: np.ndarray, features: np.ndarray) -> None:
    """Writes (M, D) features at their positions in an (N, D) table; the other rows are NaN."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    table = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, features.shape[1]))
    if len(index) < rows:
        table[np.setdiff1d(np.arange(rows), index)] = np.nan
    for start in range(0, len(index), 65536):
        table[index[start : start + 65536]] = features[start : start + 65536]
    table.flush()

"""`deepcluster features RUN|BACKBONE --data S --out FILE.npy`, or `--out FOLDER` for a table in parts."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.cli.processes import several_processes
from deepcluster.data.open import must_exist
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.engine.log import Bar
    from deepcluster.engine.model import Model
    from deepcluster.features.feature_file import Describe


@dataclass(frozen=True)
class Features:
    """Features of images as a memory-mapped table (N, D) float32, with a .json beside it."""

    model: Positional[str]
    """A run folder, a backbone (any timm model as timm:NAME, a torchvision one as torchvision:NAME), or a file that
    holds one: .safetensors, or a checkpoint that DeepCluster's authors released."""
    source: Annotated[str, arg(name="data")]
    """Images, as for train."""
    out: Path
    """The .npy file to write, or a folder for a table in several files, which goes on where a kill left it; rows of
    images that cannot be decoded are NaN."""
    parts: int | None = None
    """For a folder: about how many files; by default each has 262,144 rows."""
    overwrite: bool = False
    """For a folder: begin anew whatever table is in it."""
    tap: str | None = None
    """A layer to read in place of the output, averaged over space."""
    image_size: int | None = None
    """For a backbone by name: side of the images it sees; by default what its weights were made for. Runs and files
    know their own."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Extracts."""
    chosen = parse(Features, arguments, prog="deepcluster features")
    whole = chosen.out.suffix == ".npy" and not chosen.out.is_dir()
    _check(chosen, whole)
    must_exist(chosen.source)
    with several_processes() as group:
        if whole and not group.is_single:
            raise DeepClusterError(
                f"{group.size} processes write a table in parts, not one file: give --out a folder, without .npy."
            )
        _describe(chosen, whole, group)


def _describe(chosen: Features, whole: bool, group: ProcessGroup) -> None:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_subject
    from deepcluster.features.feature_file import weights_digest, write_parts, write_table
    from deepcluster.io import write_json

    screen = Screen(quiet=not group.is_first, stderr=chosen.json)
    subject = load_subject(chosen.model, device=chosen.device, image_size=chosen.image_size)
    model, device, pixels = subject.model, subject.device, subject.pixels(chosen.source)
    about: dict[str, Any] = {
        "model": chosen.model,
        "data": pixels.source.name,
        "source_fingerprint": pixels.source.fingerprint(),
        "tap": chosen.tap,
    }
    with screen.bar("features", len(pixels)) as advance:
        describe = feature_network(model, chosen.tap, device, advance)
        if whole:
            width, bad = write_table(describe, pixels, chosen.out)
        else:
            made = {"weights": weights_digest(model.backbone), "image_size": model.backbone.image_size}
            width, bad = write_parts(
                describe,
                pixels,
                chosen.out,
                {**about, **made},
                parts=chosen.parts,
                overwrite=chosen.overwrite,
                skipped=advance,
                group=group,
            )
    if not group.is_first:
        return
    about |= {"rows": len(pixels), "width": width, "bad": bad}
    if whole:
        write_json(chosen.out.with_suffix(".json"), about)
    if chosen.json:
        print(json_module.dumps({"out": str(chosen.out), **about}))
        return
    screen.say(f"{chosen.out}: {len(pixels):,} x {width} features" + (f", {len(bad):,} rows NaN" if bad else ""))


def feature_network(model: Model, tap: str | None, device: str, advance: Bar) -> Describe:
    """What describes all images of some pixels by `model`, and moves the bar on."""
    import numpy as np

    from deepcluster.data.arrays import open_array
    from deepcluster.data.cache import Pixels, load_pixels
    from deepcluster.features.extract import extract
    from deepcluster.features.feature_file import BATCH

    backbone = model.backbone.to(device)
    size = backbone.image_size

    def describe(pixels: Pixels, file: Path) -> tuple[np.ndarray, np.ndarray]:
        # Of all rows, bad ones too, so that where batches begin depends on nothing that is found out on the way.
        index, features = extract(
            backbone,
            pixels,
            size=size,
            mean=backbone.mean,
            std=backbone.std,
            batch_size=BATCH,
            device=device,
            tap=tap,
            only=np.arange(len(pixels)),
            file=file,
            check=advance,
        )
        if not len(index):  # nothing came out that would tell the width
            black = load_pixels(
                open_array(np.zeros((1, size, size, 3), np.uint8), "black"), short_side=None, cache_gb=0
            )
            width = describe(black, file)[1].shape[1]
            return index, np.zeros((0, width), np.float32)
        return index, features

    return describe


def _check(chosen: Features, whole: bool) -> None:
    """One sentence for an --out, or an option of tables in parts, that cannot be."""
    out = chosen.out
    if whole and chosen.parts is not None:
        raise DeepClusterError(f"--parts is for a table in a folder, and {out} is one file: leave out its ending.")
    if whole and chosen.overwrite:
        raise DeepClusterError(f"--overwrite is for a table in a folder; {out} is one file, which is replaced anyway.")
    if not whole and out.suffix and not out.is_dir():
        raise DeepClusterError(
            f"Features are written as .npy or in parts into a folder, not as {out.name!r}: change --out."
        )
    if chosen.parts is not None and chosen.parts < 1:
        raise DeepClusterError(f"--parts {chosen.parts} is no number of files: give 1 or more.")

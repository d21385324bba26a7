"""`deepcluster features RUN|BACKBONE --data S --out FILE.npy`, or `--out FOLDER` for a table in parts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from deepcluster.cli.common import several_processes, show, spread_over
from deepcluster.data.open import must_exist
from deepcluster.errors import DeepClusterError, counted


def features(
    model: str,
    /,
    *,
    data: str,
    out: Path,
    parts: int | None = None,
    overwrite: bool = False,
    tap: str | None = None,
    image_size: int | None = None,
    engine: Literal["ray"] | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Writes the features of images as a memory-mapped table (N, D) float32, with a .json file next to it.

    Args:
        model: a run folder, a backbone (any timm model as timm:NAME, a torchvision model as torchvision:NAME, a Hugging
            Face folder of timm or of a shared run, or hf:NAME on the hub), or a file of weights: .safetensors, or a
            checkpoint released by DeepCluster's authors.
        data: images, as for train.
        out: the .npy file to write, or a folder for a table in several files, which continues after an interruption;
            rows of images that cannot be decoded are NaN.
        parts: for a folder: approximate number of files; None = 262,144 rows in each.
        overwrite: for a folder: replace the table that is in it.
        tap: a layer to read instead of the output, averaged over space.
        image_size: for a backbone by name: side of its input images in pixels; None = the size its weights were
            trained at. Runs and files have their own.
        engine: for a folder: ray = parts are made by Ray (the extra [ray]), on all cores or GPUs here, or of the
            cluster at RAY_ADDRESS.
    """
    one_file = out.suffix == ".npy" and not out.is_dir()
    _check_out(out, one_file, parts, overwrite, engine)
    must_exist(data)
    with several_processes(engine) as group, spread_over(engine) as spread:
        if one_file and not group.is_single:
            raise DeepClusterError(
                f"{group.size} processes write a table in parts, not one file: give --out a folder, without .npy."
            )
        import numpy as np

        from deepcluster.digest import digest
        from deepcluster.engine.log import Screen
        from deepcluster.engine.run import load_subject
        from deepcluster.engine.run_folder import absolute
        from deepcluster.features.table import BATCH, write_parts, write_table
        from deepcluster.io import write_json

        screen = Screen(quiet=not group.is_first, stderr=json)
        subject = load_subject(model, device="cpu" if spread else device, image_size=image_size)
        if spread:
            subject.cache_gb = 0.0  # others decode
        backbone, pixels = subject.backbone, subject.pixels(data)
        about: dict[str, Any] = {
            "model": model,
            "data": pixels.source.name,
            "source_fingerprint": pixels.source.fingerprint(),
            "tap": tap,
        }
        with screen.bar("features", len(pixels)) as advance:
            # Batches are cut from all images, bad ones too: where they begin depends on nothing found out on the way.
            extract = partial(
                subject.model.features, pixels, tap=tap, device=subject.device, batch_size=BATCH, check=advance
            )
            if one_file:
                width, bad = write_table(extract, np.arange(len(pixels)), out)
            else:
                made = {**about, "weights": digest(backbone), "image_size": backbone.image_size}
                elsewhere = None
                if spread:
                    there = (absolute(model), absolute(data), tap, image_size)
                    elsewhere = spread.part_writers(there, device, made["weights"], len(pixels))
                width, bad = write_parts(
                    extract,
                    len(pixels),
                    out.absolute() if spread else out,
                    made,
                    parts=parts,
                    overwrite=overwrite,
                    skipped=advance,
                    elsewhere=elsewhere,
                    group=group,
                )
        if not group.is_first:
            return
    about |= {"rows": len(pixels), "width": width, "bad": bad}
    if one_file:
        write_json(out.with_suffix(".json"), about, sealed=True)
    undecodable = f", {counted(len(bad), 'row')} NaN" if bad else ""
    show(screen, json, {"out": str(out), **about}, f"{out}: {len(pixels):,} x {width} features{undecodable}")


def _check_out(out: Path, one_file: bool, parts: int | None, overwrite: bool, engine: str | None) -> None:
    if one_file and engine:
        raise DeepClusterError(f"--engine writes a table in parts, and {out} is one file: leave out its ending.")
    if one_file and parts is not None:
        raise DeepClusterError(f"--parts is for a table in a folder, and {out} is one file: leave out its ending.")
    if one_file and overwrite:
        raise DeepClusterError(f"--overwrite is for a table in a folder; {out} is one file, which is replaced anyway.")
    if not one_file and out.suffix and not out.is_dir():
        raise DeepClusterError(
            f"Features are written as .npy or in parts into a folder, not as {out.name!r}: change --out."
        )
    if one_file:
        from deepcluster.io import require_writable

        require_writable(out)
    if parts is not None and parts < 1:
        raise DeepClusterError(f"--parts is {parts}: give 1 or a larger number of files.")

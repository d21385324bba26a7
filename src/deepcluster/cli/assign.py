"""`deepcluster assign RUN --data S --out FILE`."""

from __future__ import annotations

from pathlib import Path

from deepcluster.cli.common import several_processes, show
from deepcluster.data.open import must_exist
from deepcluster.errors import counted


def assign(run: Path, /, *, data: str, out: Path, device: str = "auto", json: bool = False) -> None:
    """Writes the cluster of each image and its distance to the centroid, for any images, by the saved model alone.

    Args:
        run: the run folder, or what was shared of one: the folder of `export --format huggingface`, or hf:NAME.
        data: images, as for train.
        out: the table to write: .csv or .parquet with the columns index, path, cluster, distance.
    """
    from deepcluster.engine.assignment import check_table_name

    check_table_name(out)
    must_exist(data)
    with several_processes() as group:
        from deepcluster.engine.log import Screen
        from deepcluster.engine.model import CLUSTERS
        from deepcluster.engine.run import load_run, load_subject
        from deepcluster.models.hugging_face import HUB

        screen = Screen(quiet=not group.is_first, stderr=json)
        shared = str(run).startswith(HUB) or (run / CLUSTERS).is_file()
        loaded = load_subject(run, device=device) if shared else load_run(run, device)
        loaded.group = group
        pixels = loaded.pixels(data)
        with screen.bar("assigning", len(pixels)) as advance:
            assignment = loaded.assign(pixels, check=advance)
        if not group.is_first:
            return
        assignment.save(out)
    images, bad = len(assignment), int((assignment.cluster < 0).sum())
    used = len(set(assignment.cluster[assignment.cluster >= 0].tolist()))
    undecodable = f", {bad:,} that cannot be decoded (cluster -1)" if bad else ""
    values = {"out": str(out), "images": images, "bad": bad, "clusters": used}
    show(screen, json, values, f"{out}: {counted(images, 'image')} in {counted(used, 'cluster')}{undecodable}")

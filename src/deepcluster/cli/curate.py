"""`deepcluster curate FEATURES|SOURCE --size M --out FILE`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from deepcluster.cli.cluster import is_table, refuse_engine, refuse_options_of_images, source_of
from deepcluster.cli.common import show, spread_over
from deepcluster.data.open import must_exist


def curate(
    source: str,
    /,
    *,
    size: int,
    out: Path,
    backbone: str = "auto",
    image_size: int | None = None,
    clusters: tuple[int, ...] | None = None,
    duplicates: float = 0.98,
    resamplings: int = 10,
    seed: int = 0,
    overwrite: bool = False,
    engine: Literal["ray"] | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Takes a balanced sample of uncurated images, by clusters in levels and without near-duplicates, as a list or
    manifest for --data.

    As many images are taken from each of the highest clusters, or all of the smaller ones; likewise from the clusters
    within them; and at random within the lowest. OUT.report.json says how many were in clusters and how
    many were taken. Features of images are kept in the folder OUT-features, with which the same command goes on, or
    takes another sample.

    Args:
        source: images, as for train; or a feature table that `deepcluster features` or `cluster` wrote, of which NaN
            rows are left out.
        size: number of images to take.
        out: the file to write: a .txt with the paths of images that are files of their own, a .json manifest of images
            in shards, or a .csv with index, path, cluster and, if there is one, label, of any images.
        backbone: images: the network that describes them, as for cluster; patches = fitted to the images themselves.
        image_size: images: side at which the network sees them, in pixels, as for cluster.
        clusters: number of clusters of each level, from the lowest up. None = 28, at most the square root of the number
            of images; beyond 20,000 images one for 74, then a tenth of those below, while it is 10 at least, in up to
            four levels.
        duplicates: cosine similarity from which two images of a cluster are near-duplicates, of which the first is
            kept; above 1 = keep all.
        resamplings: how often k-means is repeated on each level with equally many points around each centroid.
        seed: of all random draws.
        overwrite: images: compute features again that are in OUT-features.
    """
    must_exist(source)
    from deepcluster.data.open import open_images
    from deepcluster.data.subset import check_subset_name, write_subset
    from deepcluster.engine.curate import curate_features, curate_images
    from deepcluster.engine.describe import FEATURES, FITTED
    from deepcluster.engine.log import Screen
    from deepcluster.errors import Interrupted, counted
    from deepcluster.features.table import ABOUT, open_table
    from deepcluster.io import scratch_folder, write_json

    screen = Screen(stderr=json)
    how: dict[str, Any] = {"clusters": clusters, "duplicates": duplicates, "resamplings": resamplings, "seed": seed}
    if is_table(Path(source)):
        refuse_options_of_images(source, backbone, image_size, overwrite)
        table, about = open_table(Path(source))
        images = source_of(about, len(table))
        check_subset_name(out, images)
        with spread_over(engine), scratch_folder(out.absolute() if engine else out) as scratch:
            found = curate_features(table, size, scratch=scratch, bad=about.get("bad"), **how)
    else:
        refuse_engine(source, engine)
        images, folder = open_images(source), out.with_name(f"{out.stem}-features")
        check_subset_name(out, images)
        if overwrite and ((folder / FEATURES / ABOUT).exists() or (folder / FITTED).exists()):
            shutil.rmtree(folder)
        how |= {"backbone": backbone, "image_size": image_size, "device": device, "screen": screen}
        try:
            found = curate_images(images, size, folder, **how)
        except Interrupted:
            screen.print("stopped; the same command goes on where it was")
            raise
    write_subset(images, found.index, out, found.cluster)
    report = {"out": str(out), "source": source, "seed": seed, **found.report()}
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    less = (
        f"left out before: {report['bad']:,} that cannot be decoded, {counted(report['duplicates'], 'near-duplicate')}"
    )
    lines = [f"{out}: {size:,} of {counted(report['images'], 'image')}; {less}"]
    for number, level in zip(range(len(found.levels), 0, -1), report["levels"], strict=True):
        before, after = ("{min:,}-{max:,} (median {median:,g})".format(**level[when]) for when in ("before", "after"))
        lines.append(
            f"level {number}: {counted(level['clusters'], 'cluster')} of {before} images, of which {after} were taken"
        )
    show(screen, json, report, "\n".join(lines))

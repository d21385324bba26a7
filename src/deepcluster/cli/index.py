"""`deepcluster index SHARDS... --out FILE.json`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepcluster.cli.parse import parse
from deepcluster.errors import DeepClusterError


@dataclass(frozen=True)
class Index:
    """A manifest of tar and zip shards, so that thousands of them open in seconds as --data FILE.json."""

    shards: Positional[tuple[str, ...]]
    """Shards in the order wanted: "a/*.tar", train-{000..999}.zip, s3://bucket/a-*.tar, or a .txt that lists some, one
    a line. What FILE has already is not read again; what is missing or broken is reported and left out."""
    out: Path
    """The .json file to write; its tables are put beside it."""
    no_labels: bool = False
    """Do not take class folders in the shards for labels."""
    workers: int = 0
    """Processes that read shards; 0 = as many as there are cores."""
    json: bool = False
    """Print one JSON object when done."""


def command(arguments: list[str]) -> None:
    """Indexes."""
    chosen = parse(Index, arguments, prog="deepcluster index")
    if not chosen.shards:
        raise DeepClusterError("No shard is given: name some, such as 'a/*.tar', before --out.")
    if chosen.workers < 0:
        raise DeepClusterError(f"--workers {chosen.workers} is no number of processes: give 0 or more.")
    from deepcluster.data.indexing import index_shards, named
    from deepcluster.data.shards import sentence_of
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=chosen.json)
    places = named(chosen.shards)
    with screen.bar("shards", len(places), unit="shards") as advance:
        manifest = index_shards(
            places, chosen.out, labels=not chosen.no_labels, workers=chosen.workers, progress=advance
        )
    shards, broken = manifest.shards, []
    for path, images, trouble in zip(shards.paths, shards.images.tolist(), manifest.troubles, strict=True):
        if trouble:
            broken.append({"shard": path, "trouble": trouble, "images": images})
            screen.warn(f"{sentence_of(path, trouble)}; {images:,} images were found in it")
    total = int(shards.images.sum())
    if chosen.json:
        about = {"out": str(chosen.out), "shards": len(shards.paths), "images": total, "classes": len(manifest.classes)}
        print(json_module.dumps({**about, "broken": broken}))
        return
    tail = f", {len(broken):,} of them missing or broken" if broken else ""
    classes = f", {len(manifest.classes):,} class folders" if manifest.classes else ""
    screen.say(f"{chosen.out}: {total:,} images in {len(shards.paths):,} shards{tail}{classes}")

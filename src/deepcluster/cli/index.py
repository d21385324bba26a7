"""`deepcluster index SHARDS... --out FILE.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepcluster.cli.common import show
from deepcluster.errors import DeepClusterError, counted


def index(
    shards: Sequence[str], /, *, out: Path, no_labels: bool = False, workers: int = 0, json: bool = False
) -> None:
    """Writes a manifest of tar and zip shards, so that thousands of them open in seconds as --data FILE.json.

    Args:
        shards: shards in the order of their images: "a/*.tar", train-{000..999}.zip, s3://bucket/a-*.tar, or a .txt
            with one of these a line. Shards that were read before and have not changed are not read again; missing or
            broken ones are reported and left out.
        out: the .json file to write; its tables are written next to it.
        no_labels: do not use class folders, or WebDataset's .cls, in the shards as labels.
        workers: processes that read shards; 0 = one per processor core.
    """
    if not shards:
        raise DeepClusterError("No shards are given: name some, such as 'a/*.tar', before --out.")
    if workers < 0:
        raise DeepClusterError(f"--workers is {workers}: give 0 or a larger number of processes.")
    from deepcluster.data.indexing import index_shards, named
    from deepcluster.data.shards import sentence_of
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=json)
    paths = named(shards)
    with screen.bar("shards", len(paths), unit="shards") as advance:
        manifest = index_shards(paths, out, labels=not no_labels, workers=workers, progress=advance)
    broken = []
    for shard in manifest.shards:
        if shard.trouble:
            broken.append({"shard": shard.path, "trouble": shard.trouble, "images": shard.images})
            screen.warn(
                f"{sentence_of(shard.path, shard.trouble)}; {counted(shard.images, 'image')}"
                f" {'was' if shard.images == 1 else 'were'} found in it"
            )
    classes = len(manifest.classes)
    total = sum(shard.images for shard in manifest.shards)
    values = {"out": str(out), "shards": len(manifest.shards), "images": total, "classes": classes, "broken": broken}
    sentence = f"{out}: {counted(total, 'image')} in {counted(len(manifest.shards), 'shard')}"
    sentence += f", {len(broken):,} of them missing or broken" if broken else ""
    show(screen, json, values, sentence + (f", {counted(classes, 'class folder')}" if classes else ""))

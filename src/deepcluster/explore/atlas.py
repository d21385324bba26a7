"""The clusters as a table for Embedding Atlas: place on the map, neighbors and a small picture of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deepcluster import io
from deepcluster.engine.log import Screen
from deepcluster.errors import BadImage
from deepcluster.explore.explorer import Explorer
from deepcluster.features.knn import nearest_rows
from deepcluster.visualize.clustered_images import class_name

NEIGHBORS = 15
SIDE = 96
"""Of the pictures, in pixels."""
UNIT = 1000
"""Steps of the map to a unit of the projection."""
ROWS = 1024
"""Images that are written at a time: their pictures are a few megabytes."""


def write_atlas(file: Path, explorer: Explorer, screen: Screen) -> int:
    """Writes index, path, cluster, name, distance, label (where there are any), projection_x, projection_y, neighbors
    (positions of other rows, with 1 - cosine) and image of every image that can be decoded and is in no hidden cluster.
    Returns how many.

    Raises:
        DeepClusterError: the images are not there, or not those of the run.
    """
    import pyarrow
    import pyarrow.parquet

    source, vectors = (_finished(explorer, name, screen) for name in ("images", "vectors"))
    place = _finished(explorer, "map neighborhoods", screen)
    groups, catalog = explorer.groups, explorer.catalog
    index = vectors.good
    index = index[~groups.is_hidden(groups.group[index])]
    count = min(NEIGHBORS, len(index) - 1)
    near, squared = np.zeros((len(index), 0), np.int64), np.zeros((len(index), 0), np.float32)
    if count > 0:
        near, squared = nearest_rows(vectors.rows[index], count, metric="cosine")

    kinds: dict[str, Any] = {"index": pyarrow.int64(), "path": pyarrow.string(), "cluster": pyarrow.int64()}
    kinds |= {"name": pyarrow.string(), "distance": pyarrow.float32()}
    kinds |= {} if catalog.labels is None else {"label": pyarrow.string()}
    kinds |= {"projection_x": pyarrow.float32(), "projection_y": pyarrow.float32()}
    ids, apart = pyarrow.list_(pyarrow.int64()), pyarrow.list_(pyarrow.float32())
    kinds |= {"neighbors": pyarrow.struct({"ids": ids, "distances": apart})}
    kinds |= {"image": pyarrow.struct({"bytes": pyarrow.binary()})}

    def row(position: int, image: int) -> dict[str, Any]:
        group = int(groups.group[image])
        label = -1 if catalog.labels is None else int(catalog.labels[image])
        return {
            "index": image,
            "path": source.path(image),
            "cluster": group,
            "name": groups.name(group) if group >= 0 else None,
            "distance": None if np.isnan(catalog.own[image]) else catalog.own[image],
            "label": class_name(catalog.classes, label) if label >= 0 else None,
            "projection_x": place[image, 0] / UNIT,
            "projection_y": place[image, 1] / UNIT,
            "neighbors": {"ids": near[position].tolist(), "distances": (squared[position] / 2).tolist()},
            "image": _picture(explorer, image),
        }

    def write(temporary: Path) -> None:
        with (
            pyarrow.parquet.ParquetWriter(temporary, pyarrow.schema(kinds)) as writer,
            screen.bar("writing images", len(index)) as advance,
        ):
            for start in range(0, len(index), ROWS):
                rows = [row(start + number, image) for number, image in enumerate(index[start : start + ROWS].tolist())]
                writer.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(kinds)))
                advance(len(rows))

    io.write_atomic(file, write)
    return len(index)


def _finished(explorer: Explorer, name: str, screen: Screen) -> Any:
    """The result of a job, with its progress on the screen meanwhile."""
    job = explorer.jobs[name].start()
    with screen.bar(job.title, len(explorer.groups)) as advance:
        done = 0
        while (found := job.wait(0.2)) is None:
            advance(max(0, job.count - done))
            done = job.count
    return found


def _picture(explorer: Explorer, image: int) -> dict[str, bytes] | None:
    try:
        return {"bytes": explorer.thumbs.get(image, SIDE)}
    except BadImage:
        return None

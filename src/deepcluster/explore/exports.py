"""Exports of clusters: a table, folders of links, or COCO annotations. Images are never touched.

Hidden clusters are left out of all three.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster import io
from deepcluster.data.decode import upright_size
from deepcluster.data.folder import Files
from deepcluster.data.naming import printable
from deepcluster.data.source import ImageSource
from deepcluster.errors import DeepClusterError
from deepcluster.explore.groups import Groups

Tell = Callable[[int, int], None]
SIGNS = re.compile(r"[^\w.+@ -]+")
"""What is no part of a file name of ours; letters of any script are."""


def write(
    out: Path,
    groups: Groups,
    source: ImageSource,
    only: np.ndarray | None = None,
    tell: Tell = lambda done, total: None,
) -> tuple[str, int]:
    """Writes what the ending of `out` says: .csv, .json, or a folder of links. Returns what it is, and how many
    images are in it.

    Args:
        only: (M,) images; None = all. Those of hidden clusters are left out.
        tell: called now and then with the images done and their number.

    Raises:
        DeepClusterError: another ending, or the images cannot be linked to.
    """
    index = np.arange(len(groups)) if only is None else only
    index = index[~groups.is_hidden(groups.group[index])]
    clustered = index[groups.group[index] >= 0]
    ending = out.suffix.lower()
    if ending == ".csv":
        write_csv(out, groups, source, _told(index, tell))
        return "table", len(index)
    if ending == ".json":
        return "COCO labels", write_coco(out, groups, source, _told(clustered, tell))
    if ending in (".parquet", ".txt", ".tsv", ".yaml", ".zip", ".tar"):
        raise DeepClusterError(f"Clusters are exported as .csv, .json or a folder, not as {out.name}: change --export.")
    write_links(out, groups, source, _told(clustered, tell))
    return "folder of links", len(clustered)


def _told(index: np.ndarray, tell: Tell) -> Iterator[int]:
    for done, image in enumerate(index.tolist()):
        if done % 64 == 0:
            tell(done, len(index))
        yield image


def write_csv(file: Path, groups: Groups, source: ImageSource, images: Iterator[int]) -> None:
    """index,path,cluster,name,selected of every image; -1 and no name where it is in no cluster."""

    def rows() -> Iterator[Sequence[Any]]:
        yield "index", "path", "cluster", "name", "selected"
        for image in images:
            group = int(groups.group[image])
            name = groups.name(group) if group >= 0 else ""
            yield image, source.path(image), group, name, int(groups.selected[image])

    io.write_csv(file, rows())


def write_links(folder: Path, groups: Groups, source: ImageSource, images: Iterator[int]) -> None:
    """A folder for each cluster, with a link to each of its images.

    Raises:
        DeepClusterError: the images are no files of their own, the folder lies among them, or it holds something.
    """
    if not isinstance(source, Files):
        raise DeepClusterError(
            f"The images of {source.name} are not files of their own, so none can be linked to: export a .csv or .json."
        )
    place, root = folder.expanduser().absolute(), Path(os.path.realpath(source.root))
    if root.is_dir() and Path(os.path.realpath(place)).is_relative_to(root):
        raise DeepClusterError(
            f"The folder {folder} lies among the images, where its links would count as images: choose one outside."
        )
    # links are relative to the folder's real path: behind a symbolic link, .. is not the folder one came from
    there = Path(os.path.realpath(place.parent)) / place.name
    with io.new_folder(place) as beside, io.explain_os_errors(folder):
        for image in images:
            group = int(groups.group[image])
            name = safe(groups.names.get(group, ""))
            made = beside / (f"{group:05d}-{name}" if name else f"{group:05d}")
            made.mkdir(exist_ok=True)
            path = source.paths[image]
            link = made / f"{image:08d}-{safe(path.rpartition('/')[2]) or 'image'}"  # the index makes names differ
            os.symlink(os.path.relpath(os.path.join(root, path), there / made.name), link)


def write_coco(file: Path, groups: Groups, source: ImageSource, images: Iterator[int]) -> int:
    """COCO's `images`, `categories` and `annotations`, one annotation of the whole of each image. Returns how many.

    Images that cannot be read are left out, since their size is not known.
    """
    shown: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: set[int] = set()
    for image in images:
        group = int(groups.group[image])
        used.add(group)
        if (size := size_of(source, image)) is not None:
            height, width = size
            shown.append({"id": image, "file_name": source.path(image), "width": width, "height": height})
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": group + 1,
                    "bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0,
                }
            )  # fmt: skip
    categories = [
        {"id": group + 1, "name": groups.name(group), "supercategory": "cluster", "cluster": group}
        for group in sorted(used)
    ]
    about = {"description": f"clusters of {source.name} by deepcluster", "contributor": "", "version": "1.0"}
    io.write_json(file, {"info": about, "images": shown, "annotations": annotations, "categories": categories})
    return len(shown)


def size_of(source: ImageSource, index: int) -> tuple[int, int] | None:
    """Height and width of an image as a person sees it; None where it cannot be read."""
    try:
        if isinstance(source, Files):
            return upright_size(os.path.join(source.root, source.paths[index]))
        height, width = source.read(index).shape[:2]
        return height, width
    except Exception:  # as many ways to be damaged as there are formats
        return None


def safe(text: str) -> str:
    """`text` as part of a file name on any system, 80 characters at most, with its ending."""
    plain = SIGNS.sub("_", printable(text)).strip(" .")
    if len(plain.encode()) <= 80:
        return plain
    stem, dot, ending = plain.rpartition(".")
    ending = dot + ending if dot and len(ending) <= 5 else ""
    stem = (stem if ending else plain).encode()[: 80 - len(ending)].decode(errors="ignore")
    return stem.strip(" .") + ending

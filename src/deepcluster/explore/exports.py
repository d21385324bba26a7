"""Exports of clusters: a table, folders of links, or COCO annotations. Images are never touched.

Hidden clusters are left out of all three.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
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
from deepcluster.io import write_json

Tell = Callable[[int, int], None]
SILENT: Tell = lambda done, total: None  # noqa: E731
SIGNS = re.compile(r"[^\w.+@ -]+")
"""What is no part of a file name of ours; letters of any script are."""


def shown(groups: Groups, only: np.ndarray | None = None) -> np.ndarray:
    """(M,) int64, the images that are exported: `only`, or all; none of a hidden cluster."""
    index = np.arange(len(groups)) if only is None else np.asarray(only, np.int64)
    found: np.ndarray = index[~groups.is_hidden(groups.group[index])]
    return found


def write_csv(
    file: Path, groups: Groups, source: ImageSource, only: np.ndarray | None = None, tell: Tell = SILENT
) -> int:
    """index,path,cluster,name,selected of every image; -1 and no name where it is in no cluster. Returns the rows."""
    index = shown(groups, only)

    def rows() -> Iterator[Sequence[Any]]:
        yield "index", "path", "cluster", "name", "selected"
        for done, image in enumerate(index.tolist()):
            group = int(groups.group[image])
            name = groups.name(group) if group >= 0 else ""
            yield image, source.path(image), group, name, int(groups.selected[image])
            if done % 4096 == 0:
                tell(done, len(index))

    io.write_csv(file, rows())
    return len(index)


def write_links(
    folder: Path, groups: Groups, source: ImageSource, only: np.ndarray | None = None, tell: Tell = SILENT
) -> int:
    """A folder for each cluster, with a link to each of its images. Returns the links.

    Raises:
        DeepClusterError: the images are no files of their own, the folder lies among them, or it holds something.
    """
    if not isinstance(source, Files):
        raise DeepClusterError(
            f"The images of {source.name} are not files of their own, so none can be linked to: export a .csv or .json."
        )
    place, images = folder.expanduser().absolute(), source.root.absolute()
    if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(images)) and images.is_dir():
        raise DeepClusterError(
            f"The folder {folder} lies among the images, where its links would count as images: choose one outside."
        )
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DeepClusterError(f"{folder} exists and is not empty: choose a new folder.")
    index = shown(groups, only)
    index = index[groups.group[index] >= 0]
    there, root = Path(os.path.realpath(place.parent)) / place.name, os.path.realpath(images)
    beside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        made: dict[int, Path] = {}
        beside.mkdir(parents=True)
        for done, image in enumerate(index.tolist()):
            group = int(groups.group[image])
            if group not in made:
                name = safe(groups.names.get(group, ""))
                made[group] = beside / (f"{group:05d}-{name}" if name else f"{group:05d}")
                made[group].mkdir()
            path = source.paths[image]
            # the index makes names differ
            link = made[group] / f"{image:08d}-{safe(path.rpartition('/')[2]) or 'image'}"
            # relative to the folder's real path: behind a symbolic link, .. is not the folder one came from
            os.symlink(os.path.relpath(os.path.join(root, path), there / made[group].name), link)
            if done % 1024 == 0:
                tell(done, len(index))
        if place.exists():
            place.rmdir()
        os.replace(beside, place)
    except OSError as error:
        raise DeepClusterError(f"The folder {folder} cannot be made ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return len(index)


def write_coco(
    file: Path, groups: Groups, source: ImageSource, only: np.ndarray | None = None, tell: Tell = SILENT
) -> int:
    """COCO's `images`, `categories` and `annotations`, one annotation of the whole of each image. Returns how many.

    Images that cannot be read are left out, since their size is not known.
    """
    index = shown(groups, only)
    index = index[groups.group[index] >= 0]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for done, image in enumerate(index.tolist()):
        if (size := size_of(source, image)) is not None:
            height, width = size
            images.append({"id": image, "file_name": source.path(image), "width": width, "height": height})
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": int(groups.group[image]) + 1,
                    "bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0,
                }
            )  # fmt: skip
        if done % 64 == 0:
            tell(done, len(index))
    used = np.unique(groups.group[index]).tolist()
    categories = [
        {"id": group + 1, "name": groups.name(group), "supercategory": "cluster", "cluster": group} for group in used
    ]
    about = {"description": f"clusters of {source.name} by deepcluster", "contributor": "", "version": "1.0"}
    write_json(file, {"info": about, "images": images, "annotations": annotations, "categories": categories})
    return len(images)


def size_of(source: ImageSource, index: int) -> tuple[int, int] | None:
    """Height and width of an image as a person sees it; None where it cannot be read."""
    try:
        if not isinstance(source, Files):
            height, width = source.read(index).shape[:2]
            return height, width
        return upright_size(os.path.join(source.root, source.paths[index]))
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


def write(
    out: Path, groups: Groups, source: ImageSource, only: np.ndarray | None = None, tell: Tell = SILENT
) -> tuple[str, int]:
    """Writes what the ending of `out` says: .csv, .json, or a folder of links. Returns what it is, and how many
    images are in it.

    Raises:
        DeepClusterError: another ending.
    """
    ending = out.suffix.lower()
    if ending == ".csv":
        return "table", write_csv(out, groups, source, only, tell)
    if ending == ".json":
        return "COCO labels", write_coco(out, groups, source, only, tell)
    if ending in (".parquet", ".txt", ".tsv", ".yaml", ".zip", ".tar"):
        raise DeepClusterError(f"Clusters are exported as .csv, .json or a folder, not as {out.name}: change --export.")
    return "folder of links", write_links(out, groups, source, only, tell)

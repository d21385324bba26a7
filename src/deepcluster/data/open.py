"""`open_images`: opens any image source, by its name or from what Python holds."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.data import storage
from deepcluster.data.arrays import open_array, open_digits, open_list, open_npy
from deepcluster.data.folder import open_file, open_folder, open_list_file, open_paths
from deepcluster.data.manifest import open_manifest
from deepcluster.data.parquet import HUB, open_hub, open_parquet
from deepcluster.data.shards import open_shards
from deepcluster.data.source import ImageSource
from deepcluster.data.torchvision import open_torchvision
from deepcluster.errors import DeepClusterError

#: Names that begin like this are no paths.
TORCHVISION = "torchvision:"
#: What a file is, by its ending; a file with any other ending is taken for one image.
BY_ENDING: dict[str, Callable[[str], ImageSource]] = {
    ".tar": open_shards,
    ".zip": open_shards,
    ".json": open_manifest,
    ".txt": open_list_file,
    ".csv": open_list_file,
    ".npy": open_npy,
    ".parquet": open_parquet,
}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_images(source: Any) -> ImageSource:
    """Open any image source: docs/images.md lists them with examples.

    Args:
        source: `digits` · a folder of any nesting · a glob or brace pattern of tar or zip shards, also behind a URL ·
            parquet files of images · `hf:NAME?split=train` of the Hugging Face hub · a .json manifest of shards · a
            .txt or .csv list · a .npy file of uint8 (N, H, W[, C]) · one image file ·
            `torchvision:CIFAR10?root=...&train=false` · a list of paths or of arrays · a data frame's column of paths ·
            an array (N, H, W[, C]) · an ImageSource, which is returned as it is.

    Raises:
        DeepClusterError: there is nothing to open, in one sentence that says what to do.
    """
    if isinstance(source, (str, Path)):
        if not str(source).strip():  # which a path would take for the working folder
            raise DeepClusterError("the name of the images is empty: name a folder, a file or another source")
        return _open_named(str(source))
    if isinstance(source, ImageSource):
        return source
    source = _list_of_names(source)
    if hasattr(source, "__array__") and not isinstance(source, (list, tuple)):
        return open_array(source)
    if isinstance(source, Sequence):
        if not source:
            raise DeepClusterError("the list of images is empty: give at least one path or array")
        if all(isinstance(item, (str, os.PathLike)) for item in source):
            return open_paths([os.fspath(item) for item in source])
        return open_list(source)
    raise DeepClusterError(
        f"cannot read images from a {type(source).__name__}: "
        "give a path, a list of paths or arrays, or an array (N, H, W, C)"
    )


def _list_of_names(source: Any) -> Any:
    """The list of strings that an array, or a column of a data frame, holds; anything else as it is."""
    if isinstance(source, np.ndarray) or (hasattr(source, "to_numpy") and hasattr(source, "shape")):
        found = np.asarray(source.to_numpy() if hasattr(source, "to_numpy") else source)
        found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
        if found.ndim == 1 and all(isinstance(each, (str, os.PathLike)) for each in found):
            return found.tolist()
    return source


def must_exist(name: str | None) -> None:
    """Checks, before large libraries are loaded, that a named source is there at all.

    Raises:
        DeepClusterError: there is no such file or folder.
    """
    if name is None or name == "digits" or name.startswith((TORCHVISION, HUB)) or storage.is_url(name):
        return
    path = Path(name).expanduser()
    if path.exists() or any(mark in name for mark in "*?[{"):
        return
    near = difflib.get_close_matches(name, ["digits"], cutoff=0.7)
    if not near and path.parent.is_dir():
        found = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1, 0.7)
        near = [str(path.parent / entry) for entry in found]
    advice = f"did you mean {near[0]}?" if near else "check the path, or see `deepcluster --help` for what holds images"
    raise DeepClusterError(f"there is no file or folder {name}: {advice}")


def _open_named(name: str) -> ImageSource:
    if name.startswith(TORCHVISION):
        return open_torchvision(name)
    if name.startswith(HUB):
        return open_hub(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return open_folder(name)
    if not path.exists():
        if name == "digits":
            return open_digits()
        must_exist(name)
        return (open_parquet if name.lower().endswith(".parquet") else open_shards)(name)
    if name.lower().endswith(COMPRESSED):
        raise DeepClusterError(
            f"{name} is compressed and cannot be read in place: unpack it to a folder, or repack it as a plain .tar"
        )
    return BY_ENDING.get(path.suffix.lower(), open_file)(name)

"""`open_images`: opens any image source by its name or from arrays."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.data.source import ImageSource
from deepcluster.errors import DeepClusterError


def open_images(source: Any) -> ImageSource:
    """Open any image source: see the README's list.

    Args:
        source: `digits` · a folder of any nesting · a glob or brace pattern of tar or zip shards, also behind a URL ·
            a .json manifest of shards · a .txt or .csv list · a .npy file of uint8 (N, H, W[, C]) · one image file ·
            `torchvision:CIFAR10?root=...&train=false` · a list of paths or of arrays · an array (N, H, W[, C]) ·
            an ImageSource, which is returned as it is.

    Raises:
        DeepClusterError: there is nothing to open, in one sentence that says what to do.
    """
    from deepcluster.data import arrays, folder

    if isinstance(source, (str, Path)):
        return _open_named(str(source))
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, np.ndarray) and source.dtype.kind in "US":
        source = source.tolist()
    if hasattr(source, "__array__") and not isinstance(source, (list, tuple)):
        return arrays.open_array(source, name="array")
    if isinstance(source, Sequence):
        if not source:
            raise DeepClusterError("the list of images is empty: give at least one path or array")
        if all(isinstance(item, (str, os.PathLike)) for item in source):
            return folder.open_paths([os.fspath(item) for item in source])
        return arrays.open_list(source)
    raise DeepClusterError(
        f"cannot read images from a {type(source).__name__}: "
        "give a path, a list of paths or arrays, or an array (N, H, W, C)"
    )


def must_exist(name: str | None) -> None:
    """A quick look, before hundreds of megabytes of libraries are loaded, whether a named source is there at all.

    Raises:
        DeepClusterError: there is no such file or folder.
    """
    from deepcluster.data import storage

    if name is None or name == "digits" or name.startswith("torchvision:") or storage.is_url(name):
        return
    path = Path(name).expanduser()
    if not path.exists() and not any(mark in name for mark in "*?[{"):
        raise DeepClusterError(_missing(name, path))


def _open_named(name: str) -> ImageSource:
    from deepcluster.data import arrays, folder, manifest, shards, storage, torchvision

    path = Path(name).expanduser()
    if name == "digits" and not path.exists():
        return arrays.open_digits()
    if name.startswith("torchvision:"):
        return torchvision.open_torchvision(name)
    if storage.is_url(name):
        return shards.open_shards(name)
    if path.is_dir():
        return folder.open_folder(name)
    if not path.exists() and any(mark in name for mark in "*?[{"):
        return shards.open_shards(name)
    if not path.exists():
        raise DeepClusterError(_missing(name, path))
    kind = path.suffix.lower()
    if kind in (".tar", ".zip"):
        return shards.open_shards(name)
    if name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DeepClusterError(
            f"{name} is compressed and cannot be read in place: unpack it to a folder, or repack it as a plain .tar"
        )
    if kind == ".json":
        return manifest.open_manifest(name)
    if kind in (".txt", ".csv"):
        return folder.open_list_file(name)
    if kind == ".npy":
        return arrays.open_npy(name)
    return folder.open_paths([name], name=name)


def _missing(name: str, path: Path) -> str:
    near = difflib.get_close_matches(name, ["digits"], cutoff=0.7)
    if not near and path.parent.is_dir():
        found = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1, 0.7)
        near = [str(path.parent / entry) for entry in found]
    advice = f"did you mean {near[0]}?" if near else "check the path, or see `deepcluster train --help` for sources"
    return f"there is no file or folder {name}: {advice}"

"""Any torchvision data set as an image source: `torchvision:CIFAR10?root=data&train=false&download=true`."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from deepcluster.data import storage
from deepcluster.data.decode import shrink, to_rgb
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest, short_digest
from deepcluster.errors import BadImage, DeepClusterError, first_line


@dataclass(eq=False, repr=False)
class TorchvisionSet:
    """An `ImageSource` over a map-style torchvision data set whose items are (image, target, …)."""

    name: str
    dataset: Any  # without transforms
    labels: np.ndarray | None
    classes: tuple[str, ...]
    stamp: str  # settings that the fingerprint depends on

    def __len__(self) -> int:
        return len(self.dataset)

    def path(self, index: int) -> str:
        return f"{type(self.dataset).__name__}/{index:05d}"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        try:
            item = self.dataset[index]
            picture = item[0] if isinstance(item, (tuple, list)) else item
            if not isinstance(picture, Image.Image):
                picture = Image.fromarray(np.asarray(picture))
            return np.asarray(shrink(to_rgb(picture), short_side))
        except Exception as error:  # data sets decode with Pillow, which raises nearly anything on damaged files
            raise BadImage(first_line(error)) from None

    def marks(self) -> np.ndarray:
        """(N,) uint64, see `storage.mark`: of all files under the root, or 1 where the fingerprint is of all bytes."""
        root = getattr(self.dataset, "root", None)
        if root is None or hasattr(getattr(self.dataset, "data", None), "__array__"):
            return np.ones(len(self), np.uint64)
        walked = [(at, inner, files) for at, inner, files in os.walk(root)]
        found = [storage.mark(os.path.join(at, file)) for at, _, files in walked for file in sorted(files)]
        certain = all(found) and not any(
            os.path.islink(os.path.join(at, one)) for at, inner, _ in walked for one in inner
        )
        return np.full(len(self), short_digest(repr(sorted(found)).encode()) if certain else 0, np.uint64)

    def fingerprint(self) -> str:
        content = getattr(self.dataset, "data", None)
        if hasattr(content, "__array__"):
            return digest(self.stamp, len(self), np.asarray(content))
        if files := self._files():
            return digest(self.stamp, len(self), storage.content(files))
        sample = np.unique(np.linspace(0, len(self) - 1, 32).astype(int))
        return digest(self.stamp, len(self), *(self._sample(int(index)) for index in sample))

    def _files(self) -> list[str]:
        """The file of each image, for sets of files; none for others."""
        for name in ("samples", "_samples", "images", "_images", "_image_files"):
            entries = getattr(self.dataset, name, None)
            if isinstance(entries, list) and len(entries) == len(self):
                files = [one[0] if isinstance(one, tuple) else one for one in entries]
                if all(isinstance(file, (str, Path)) and os.path.isfile(file) for file in files):
                    return [str(file) for file in files]
        return []

    def _sample(self, index: int) -> np.ndarray | str:
        try:
            return self.read(index)
        except BadImage as error:
            return str(error)


def open_torchvision(name: str) -> ImageSource:
    """Open `torchvision:NAME?key=value&…`; `root` is `data` unless given, nothing is downloaded unless asked."""
    from torchvision import datasets

    kind, _, query = name.removeprefix("torchvision:").partition("?")
    known = [word for word in datasets.__all__ if inspect.isclass(getattr(datasets, word)) and word != "VisionDataset"]
    if kind not in known:
        folded = {word.casefold(): word for word in known}
        near = difflib.get_close_matches(kind.casefold(), folded, 1, 0.5)
        advice = f"did you mean torchvision:{folded[near[0]]}?" if near else "see torchvision.datasets for the names"
        raise DeepClusterError(f"torchvision has no data set named {kind!r}: {advice}")
    factory = getattr(datasets, kind)
    options = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}
    accepted = inspect.signature(factory).parameters
    unknown = [key for key in options if key not in accepted]
    if unknown:
        usable = [key for key in accepted if "transform" not in key and key != "loader"]
        raise DeepClusterError(f"torchvision:{kind} has no option {unknown[0]!r}: it takes {', '.join(usable)}")
    if "root" in accepted:
        options.setdefault("root", "data")
    try:
        dataset = factory(**options)
        length = len(dataset)
    except Exception as error:  # each data set fails in its own words
        more = "" if options.get("download") or "download" not in accepted else "; add &download=true to fetch it"
        raise DeepClusterError(
            f"torchvision:{kind} could not be opened under root={options.get('root')}: {first_line(error)}{more}"
        ) from None
    if length == 0:
        raise DeepClusterError(f"{name} holds no image")
    labels = _targets(dataset)
    classes = tuple(map(str, getattr(dataset, "classes", ()) or ())) if labels is not None else ()
    if labels is not None and not classes:
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    stamp = repr((kind, sorted((key, value) for key, value in options.items() if key not in ("root", "download"))))
    return TorchvisionSet(name, dataset, labels, classes, stamp)


def _targets(dataset: Any) -> np.ndarray | None:
    """(N,) int64 class of each image where the data set keeps one; -1 where it keeps a negative number."""
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, attribute, None)
        if values is None or callable(values):
            continue
        try:
            labels = np.asarray(values)
        except ValueError:  # ragged: boxes, captions
            continue
        if labels.shape == (len(dataset),) and labels.dtype.kind in "iu":
            return np.maximum(labels.astype(np.int64), -1)
    return None


def _value(text: str) -> Any:
    """A query value: a bool, a number, a tuple as in `3,8,9`, or the text itself."""
    if text.lower() in ("true", "false", "yes", "no"):
        return text.lower() in ("true", "yes")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

"""Images that are arrays already: a .npy file, a NumPy array or tensor, a list of arrays, the bundled digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.data import storage
from deepcluster.data.decode import shrink, to_rgb
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.reading import judged, read_npy


@dataclass(eq=False, repr=False)
class Arrays:
    """An `ImageSource` over uint8 images in memory or in a memory-mapped file."""

    name: str
    images: np.ndarray | Sequence[np.ndarray]  # (N, H, W), (N, H, W, C) or a list of (H, W[, C]), C in {1, 3, 4}
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    prefix: str | None = None  # what `path` puts before the four-digit index; None = the name
    file: str = ""  # where they are memory-mapped from

    @property
    def block(self) -> np.ndarray | None:
        """(N, H, W, 3) uint8 when the images lie ready like that, so that no copy need be made; else None."""
        images = self.images
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[3] != 3:
            return None
        return images if images.flags.c_contiguous else None

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return f"{self.name if self.prefix is None else self.prefix}/{index:04d}"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        image = np.asarray(self.images[index])
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[..., 0]
        large = short_side is not None and min(image.shape[:2]) > short_side
        if image.ndim == 3 and image.shape[2] == 3 and not large:
            return image
        if image.ndim == 2 and not large:
            return np.repeat(image[..., None], 3, 2)
        return np.asarray(shrink(to_rgb(Image.fromarray(np.ascontiguousarray(image))), short_side))

    def marks(self) -> np.ndarray:
        """(N,) uint64, see `storage.mark`: of the file; else 1 where the fingerprint is of all bytes."""
        whole = not isinstance(self.images, np.ndarray) or self.images.nbytes <= storage.HASHED
        return np.full(len(self), storage.mark(self.file) if self.file else int(whole), np.uint64)

    def fingerprint(self) -> str:
        if self.file:
            return digest(len(self), storage.content([self.file]))
        step = max(1, -(-self.images.nbytes // storage.HASHED)) if isinstance(self.images, np.ndarray) else 1
        return digest(len(self), *(self.images[k] for k in range(0, len(self), step)))


def open_digits() -> ImageSource:
    """The 1,797 handwritten digits, 8x8, that come with scikit-learn; labels 0 … 9."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 … 16
    rgb = np.repeat(grey[..., None], 3, 3)
    return Arrays("digits", rgb, digits.target.astype(np.int64), tuple(map(str, digits.target_names)))


def open_npy(name: str) -> ImageSource:
    """A .npy file of uint8 (N, H, W[, C]), memory-mapped."""
    file = Path(name).expanduser()
    # Copy-on-write rather than read-only: torch warns at every read-only array it is shown.
    images = read_npy(file, advice="save uint8 images (N, H, W[, C]) with numpy.save", mapped="c")
    _check(images, name)
    return Arrays(name, images, prefix=file.stem, file=str(file.absolute()))


def open_array(array: Any) -> ImageSource:
    """An array or tensor (N, H, W[, C]): uint8, bool, or float in [0, 1]."""
    images = _as_uint8(_array(array, "array"), "array")
    _check(images, "array")
    return Arrays("array", images)


def open_list(items: Sequence[Any]) -> ImageSource:
    """A list of arrays or Pillow images, each of its own size (H, W[, C])."""
    images = []
    for k, item in enumerate(items):
        name = f"item {k} of the list of images"
        array = _array(item, name)
        if array.dtype.kind in "OUS":
            raise DeepClusterError(f"{name} is a {type(item).__name__}: give either paths only, or arrays only")
        array = _as_uint8(array, name)
        _check(array[None], name, one=True)
        images.append(array)
    return Arrays("list", images)


def _array(item: Any, name: str) -> np.ndarray:
    """The values of an array, a nested list, a Pillow image, or a tensor of any type, device and history."""
    with judged(name, "give arrays (H, W[, C]) of uint8, or Pillow images that are whole"):
        if isinstance(item, Image.Image):
            item.load()
            return np.asarray(to_rgb(item))
        if hasattr(item, "detach"):
            item = item.detach().cpu()
            item = item.float() if item.is_floating_point() else item
        return np.asarray(item)


def _as_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f" and array.size:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise DeepClusterError(
                f"{name} holds floats from {low:g} to {high:g}: scale images to [0, 1], or give uint8 in 0 … 255"
            )
        return np.asarray(np.rint(array * 255).astype(np.uint8))
    return array


def _check(images: np.ndarray, name: str, one: bool = False) -> None:
    """One sentence when (N, H, W[, C]) uint8 is not what there is."""
    wanted = "(H, W) or (H, W, C)" if one else "(N, H, W) or (N, H, W, C)"
    shape = tuple(images.shape[1:] if one else images.shape)
    if images.dtype != np.uint8:
        raise DeepClusterError(f"{name} holds {images.dtype} values: images must be uint8, 0 … 255")
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3):
        raise DeepClusterError(f"{name} has shape {shape}, channels first: move them last, {wanted}")
    if not one and images.ndim == 3 and images.shape[2] in (1, 3, 4):
        raise DeepClusterError(f"{name} has shape {shape}, which looks like a single image: give {wanted}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise DeepClusterError(f"{name} has shape {shape}: images must be {wanted} with C = 1, 3 or 4")
    if 0 in images.shape:
        raise DeepClusterError(f"{name} has shape {shape}: there is no image in it")

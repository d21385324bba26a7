"""Images that are arrays already: a .npy file, a NumPy array or tensor, a list of arrays, the bundled digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.data.decode import shrink, to_rgb
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError

#: Bytes up to which an array's fingerprint reads all of it; beyond, evenly spaced images.
HASHED = 1 << 30


class Arrays:
    """An `ImageSource` over uint8 pictures in memory or in a memory-mapped file.

    Args:
        name: as the user wrote the source.
        pictures: (N, H, W), (N, H, W, C) or a list of (H, W[, C]), uint8, C in {1, 3, 4}.
        labels: (N,) int64 or None.
        classes: class names.
        prefix: what `path` puts before the four-digit index.
        stamp: added to the fingerprint, such as a file's time.
    """

    def __init__(
        self,
        name: str,
        pictures: np.ndarray | Sequence[np.ndarray],
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        *,
        prefix: str | None = None,
        stamp: str = "",
    ) -> None:
        self.name = name
        self.pictures = pictures
        self.labels = labels
        self.classes = classes
        self._prefix = name if prefix is None else prefix
        self._stamp = stamp

    @property
    def block(self) -> np.ndarray | None:
        """(N, H, W, 3) uint8 when the pictures lie ready like that, so that no copy need be made; else None."""
        pictures = self.pictures
        if not isinstance(pictures, np.ndarray) or pictures.ndim != 4 or pictures.shape[3] != 3:
            return None
        return pictures if pictures.flags.c_contiguous else None

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, index: int) -> str:
        return f"{self._prefix}/{index:04d}"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        picture = np.asarray(self.pictures[index])
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[..., 0]
        large = short_side is not None and min(picture.shape[:2]) > short_side
        if picture.ndim == 3 and picture.shape[2] == 3 and not large:
            return picture
        if picture.ndim == 2 and not large:
            return np.repeat(picture[..., None], 3, 2)
        return np.asarray(shrink(to_rgb(Image.fromarray(np.ascontiguousarray(picture))), short_side))

    def fingerprint(self) -> str:
        arrays = [self.pictures] if isinstance(self.pictures, np.ndarray) else self.pictures
        total = sum(array.nbytes for array in arrays)
        step = max(1, -(-total // HASHED))
        return digest(len(self), self._stamp, *(self.pictures[k] for k in range(0, len(self), step)))


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
    try:
        # Copy-on-write rather than read-only: torch warns at every read-only array it is shown.
        pictures = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DeepClusterError(
            f"{name} cannot be read as a NumPy array ({error}): save uint8 images (N, H, W[, C]) with numpy.save"
        ) from None
    state = file.stat()
    _check(pictures, name)
    return Arrays(name, pictures, prefix=file.stem, stamp=f"{state.st_size} {state.st_mtime_ns}")


def open_array(array: Any, name: str) -> ImageSource:
    """An array or tensor (N, H, W[, C]): uint8, bool, or float in [0, 1]."""
    pictures = _as_uint8(np.asarray(array), name)
    _check(pictures, name)
    return Arrays(name, pictures)


def open_list(items: Sequence[Any]) -> ImageSource:
    """A list of arrays or Pillow images, each of its own size (H, W[, C])."""
    pictures = []
    for k, item in enumerate(items):
        array = np.asarray(to_rgb(item)) if isinstance(item, Image.Image) else np.asarray(item)
        if array.dtype.kind in "OUS":
            raise DeepClusterError(
                f"item {k} of the list of images is a {type(item).__name__}: give either paths only, or arrays only"
            )
        array = _as_uint8(array, f"item {k} of the list of images")
        _check(array[None], f"item {k} of the list of images", one=True)
        pictures.append(array)
    return Arrays("list", pictures)


def _as_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f" and array.size:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise DeepClusterError(
                f"{name} holds floats from {low:g} to {high:g}: scale images to [0, 1], or give uint8 in 0 … 255"
            )
        levels: np.ndarray = np.rint(array * 255).astype(np.uint8)
        return levels
    return array


def _check(pictures: np.ndarray, name: str, one: bool = False) -> None:
    """One sentence when (N, H, W[, C]) uint8 is not what there is."""
    wanted = "(H, W) or (H, W, C)" if one else "(N, H, W) or (N, H, W, C)"
    shape = tuple(pictures.shape[1:] if one else pictures.shape)
    if pictures.dtype != np.uint8:
        raise DeepClusterError(f"{name} holds {pictures.dtype} values: images must be uint8, 0 … 255")
    if pictures.ndim == 4 and pictures.shape[3] not in (1, 3, 4) and pictures.shape[1] in (1, 3):
        raise DeepClusterError(f"{name} has shape {shape}, channels first: move them last, {wanted}")
    if not one and pictures.ndim == 3 and pictures.shape[2] in (1, 3, 4):
        raise DeepClusterError(f"{name} has shape {shape}, which looks like a single image: give {wanted}")
    if pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] not in (1, 3, 4)):
        raise DeepClusterError(f"{name} has shape {shape}: images must be {wanted} with C = 1, 3 or 4")
    if 0 in pictures.shape:
        raise DeepClusterError(f"{name} has shape {shape}: there is no image in it")

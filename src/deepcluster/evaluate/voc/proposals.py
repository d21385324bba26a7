"""Regions that another program proposed, such as Selective Search, from a file.

This file knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepcluster.errors import DeepClusterError


def read_proposals(files: Sequence[Path | str], ids: Sequence[str]) -> list[np.ndarray]:
    """(P, 4) float32 boxes for each of the images named `ids`: x0, y0, x1, y1 in pixels from 0, x1 and y1 exclusive.

    Args:
        files: .npz with one (P, 4) array of such boxes under each image's name; or .mat (up to version 7) with
            `images`, a cell of names, and `boxes`, a cell of (P, 4) rows y0, x0, y1, x1 from 1, the last inclusive,
            which is how the regions of Selective Search went around.

    Raises:
        DeepClusterError: a file is missing, damaged or of another form, or an image has no proposals.
    """
    found: dict[str, np.ndarray] = {}
    for file in files:
        path = Path(file)
        try:
            found |= _mat(path) if path.suffix.lower() == ".mat" else _npz(path)
        except DeepClusterError:
            raise
        except Exception as error:  # readers raise nearly anything on damaged files
            raise DeepClusterError(
                f"{path} cannot be read as proposals ({error}): give a .npz with one (P, 4) array for each image, or a"
                " .mat with `images` and `boxes`."
            ) from error
    missing = [name for name in ids if name not in found or not len(found[name])]
    if missing:
        raise DeepClusterError(
            f"There are no proposals for {len(missing)} of {len(ids)} images, such as {missing[0]}: give --proposals"
            " files that hold those of the training and the test images."
        )
    return [found[name] for name in ids]


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: _boxes(archive[name], path, name) for name in archive.files}


def _mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    held = loadmat(path, variable_names=("images", "boxes"))
    names = [str(np.ravel(cell)[0]) for cell in held["images"].ravel()]
    found = {}
    for name, rows in zip(names, held["boxes"].ravel(), strict=True):
        y0, x0, y1, x1 = np.asarray(rows, np.float64).reshape(-1, 4).T
        found[name] = _boxes(np.stack([x0 - 1, y0 - 1, x1, y1], 1), path, name)
    return found


def _boxes(rows: np.ndarray, path: Path, name: str) -> np.ndarray:
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf" or not np.isfinite(rows).all():
        raise DeepClusterError(f"The proposals of {name} in {path} are no (P, 4) numbers: write x0, y0, x1, y1.")
    return np.ascontiguousarray(rows, np.float32)

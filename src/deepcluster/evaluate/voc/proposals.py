"""Regions that another program proposed, such as Selective Search, from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.reading import judged, read_npz


def read_proposals(files: Sequence[Path | str], ids: Sequence[str]) -> list[np.ndarray]:
    """(P, 4) float32 boxes for each of the images named `ids`: x0, y0, x1, y1 in pixels from 0, x1 and y1 exclusive.

    Args:
        files: .npz with one (P, 4) array of such boxes under each image's name; or .mat (up to version 7) with
            `images`, a cell of names, and `boxes`, a cell of (P, 4) rows y0, x0, y1, x1 from 1, the last inclusive,
            the form in which the regions of Selective Search were published.

    Raises:
        DeepClusterError: a file is missing, damaged or of another form, or an image has no proposals.
    """
    found: dict[str, np.ndarray] = {}
    advice = "give a .npz with one (P, 4) array for each image, or a .mat with `images` and `boxes`."
    for path in map(Path, files):
        with judged(path, advice):
            boxes = _read_mat(path) if path.suffix.lower() == ".mat" else read_npz(path, advice=advice)
        for name, rows in boxes.items():
            if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf" or not np.isfinite(rows).all():
                raise DeepClusterError(
                    f"The proposals of {name} in {path} are not (P, 4) numbers: write x0, y0, x1, y1."
                )
            found[name] = np.ascontiguousarray(rows, np.float32)
    missing = [name for name in ids if name not in found or not len(found[name])]
    if missing:
        raise DeepClusterError(
            f"There are no proposals for {len(missing)} of {len(ids)} images, such as {missing[0]}: give --proposals"
            " files that hold those of the training and the test images."
        )
    return [found[name] for name in ids]


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    content = loadmat(path, variable_names=("images", "boxes"))
    names = [str(np.ravel(cell)[0]) for cell in content["images"].ravel()]
    rows = [np.asarray(cell, np.float64).reshape(-1, 4) for cell in content["boxes"].ravel()]
    # y0, x0, y1, x1 from 1, the last inclusive
    return {name: cell[:, [1, 0, 3, 2]] - (1, 1, 0, 0) for name, cell in zip(names, rows, strict=True)}

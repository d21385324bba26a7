"""Which cluster each image is in, as a table that can be saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.data.naming import printable
from deepcluster.errors import DeepClusterError
from deepcluster.io import require_writable, write_atomic, write_csv
from deepcluster.reading import judged, read_npy


@dataclass(frozen=True)
class Assignment:
    """The cluster of each of N images."""

    path: list[str]  # printable
    cluster: np.ndarray  # (N,) int64, -1 = cannot be decoded
    distance: np.ndarray  # (N,) float32 to the cluster's center, in whitened features; NaN where there is none

    def __len__(self) -> int:
        return len(self.cluster)

    def save(self, file: Path | str) -> Path:
        """Writes index,path,cluster,distance as .csv or .parquet, whole or not at all; DeepClusterError for another
        ending."""
        file = check_table_name(Path(file))
        return write_csv(file, self._rows()) if file.suffix == ".csv" else write_atomic(file, self._parquet)

    def _rows(self) -> Iterator[Sequence[Any]]:
        yield "index", "path", "cluster", "distance"
        for index, path in enumerate(self.path):
            distance = "" if np.isnan(self.distance[index]) else f"{self.distance[index]:.6g}"
            yield index, printable(path), int(self.cluster[index]), distance

    def _parquet(self, file: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = {
            "index": np.arange(len(self), dtype=np.int64),
            "path": [printable(path) for path in self.path],
            "cluster": self.cluster,
            "distance": pyarrow.array(self.distance, from_pandas=True),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def check_table_name(file: Path) -> Path:
    """The file; DeepClusterError if its name is none that an assignment can be saved under, or it cannot be written."""
    if file.suffix not in (".csv", ".parquet"):
        raise DeepClusterError(f"Assignments are written as .csv or .parquet, not as {file.name!r}: change --out.")
    require_writable(file)
    return file


def column(file: Path, kinds: str, images: int, owner: str, advice: str) -> np.ndarray:
    """(N,) numbers of an .npy file, one for each of the images, of one of NumPy's `kinds`; DeepClusterError for a file
    that is cut short, is something else, or belongs to another run than `owner`."""
    found = read_npy(file, advice=advice, ndim=1, kinds=kinds, owner=owner)
    with judged(file, advice):
        if len(found) != images:
            raise ValueError(f"it is of {len(found):,} images, and the run has {images:,}")
    return found

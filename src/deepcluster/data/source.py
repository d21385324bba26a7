"""The protocol that every image source follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import numpy as np

from deepcluster.data.decode import decode


@runtime_checkable
class ImageSource(Protocol):
    """N images, each with a stable index 0 … N-1; one that cannot be decoded keeps its index."""

    name: str
    """As the user wrote it."""
    labels: np.ndarray | None
    """(N,) integers, -1 = none; None when the source has no classes. For scoring only, never for training."""
    classes: tuple[str, ...]
    """Class names; `classes[label]`."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """Where image `index` comes from: stable, printable (`data.naming.printable`), relative to the source."""
        ...

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB as a person sees it, shrunk to `short_side` pixels where it is larger.

        Raises:
            BadImage: the image cannot be decoded; the message is the reason.
        """
        ...

    def fingerprint(self) -> str:
        """Hex digest: equal for the same images in the same order, another when the list or the bytes change.

        A source that does not read all bytes for it has a method `marks` as well, see `Encoded`.
        """
        ...


def known_labels(source: ImageSource) -> np.ndarray | None:
    """(N,) int64 classes of a source, -1 = none; None where there are not two, since one alone tells nothing apart."""
    labels = np.asarray(() if source.labels is None else source.labels, np.int64)
    return labels if len(np.unique(labels[labels >= 0])) > 1 else None


class Encoded(ABC):
    """A source whose images are decoded from bytes in files."""

    @abstractmethod
    def raw(self, index: int) -> bytes:
        """The encoded bytes of image `index`.

        Raises:
            BadImage: they cannot be read.
        """

    @abstractmethod
    def marks(self) -> np.ndarray:
        """(N,) uint64, the `storage.mark` of the file of each image."""

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        """See `ImageSource.read`."""
        return decode(self.raw(index), short_side)

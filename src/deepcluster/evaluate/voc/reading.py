"""Images of a split, decoded once as far as there is room to keep them.

This file knows nothing of boxes and masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.data.source import ImageSource
from deepcluster.engine.log import Screen
from deepcluster.errors import BadImage
from deepcluster.evaluate.voc.maps import CALIBRATION, measure_norms, own_copy
from deepcluster.random import seeded

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject
    from deepcluster.models.backbone import Backbone

KEPT_BYTES = 2 << 30


class Reader:
    """Reads images by index.

    Args:
        images: the source.
        device: where tensors go.
        room: bytes of decoded images that are kept for the next time.
    """

    def __init__(self, images: ImageSource, device: str, room: int = KEPT_BYTES) -> None:
        self.images, self.device, self.room = images, device, room
        self.bad: dict[int, str] = {}
        self._kept: dict[int, np.ndarray] = {}

    def read(self, index: int) -> Tensor | None:
        """(3, H, W) uint8; None and a note in `bad` where the image is missing or broken."""
        picture = self._kept.get(index)
        if picture is None:
            try:
                picture = np.array(self.images.read(index))
            except BadImage as error:
                self.bad[index] = str(error)
                return None
            if picture.nbytes <= self.room:
                self._kept[index] = picture
                self.room -= picture.nbytes
        return torch.from_numpy(picture).to(self.device).permute(2, 0, 1)

    def readable(self, indices: Iterable[int], screen: Screen) -> list[int]:
        """Those of the indices whose image can be decoded."""
        found = []
        asked = list(indices)
        with screen.bar("images", len(asked)) as bar:
            for index in asked:
                if self.read(index) is not None:
                    found.append(index)
                bar()
        return found


def measured(subject: Subject, reader: Reader, images: Sequence[int], seed: int) -> Backbone:
    """A copy of the subject's backbone on its device, whose batch-norm, where it was never trained, has the statistics
    of `CALIBRATION` of the images; see `measure_norms`."""
    begun = own_copy(subject.backbone).to(subject.device)
    order = torch.randperm(len(images), generator=seeded(seed, CALIBRATION)).tolist()
    found = []
    for position in order[:CALIBRATION]:
        image = reader.read(images[position])
        if image is not None:
            mean, std = (torch.tensor(value, device=image.device)[:, None, None] for value in (begun.mean, begun.std))
            values = (image.float() / 255 - mean) / std
            size = (begun.image_size, begun.image_size)
            found.append(F.interpolate(values[None], size, mode="bilinear", antialias=True))
    if found:
        measure_norms(begun, [torch.cat(found)])
    return begun


def numbered(name: str, draw: int) -> str:
    """The file that the network of a draw is kept in."""
    return f"{name}.safetensors" if not draw else f"{name}-{draw}.safetensors"

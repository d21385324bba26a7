"""Backbone + images -> features (M, D), each decodable image exactly once, by one process or several.

Nothing here knows about clustering or training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.data.cache import Pixels, agree_on_bad
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop, Transform
from deepcluster.distributed import ALIGN, SINGLE, ProcessGroup
from deepcluster.features.parallel import over_spans
from deepcluster.io import scratch_table
from deepcluster.models.backbone import Backbone
from deepcluster.models.folding import folded
from deepcluster.models.taps import read_taps

IN_MEMORY = 2 << 30
"""Bytes of features kept in memory; larger tables are memory-mapped."""
AT_ONCE = 1 << 19
"""Pixels that go through the network at once on a CPU: activations of more are asked of the system anew for each layer,
which took two thirds of the time of a MobileNet at 128 px."""


@torch.inference_mode()
def extract(
    backbone: Backbone,
    pixels: Pixels,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    tap: str | None = None,
    only: np.ndarray | None = None,
    views: Transform | None = None,
    size: int = 0,
    key: tuple[int, ...] = (0,),
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    file: Path | None = None,
    check: Callable[[int], None] = lambda images: None,
    group: ProcessGroup = SINGLE,
    multiple: int = ALIGN,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of one plain view of every image, or of this process's share of the images.

    Args:
        backbone: left as it was, training mode included.
        tap: a layer to read in place of the output; maps (B, C, H, W) are averaged over space to (B, C),
            sequences (B, T, C) over tokens.
        only: (M,) int64 ascending, the images to extract; None = all.
        views: one random view of each image, drawn from `key`, in place of the plain one.
        size: side of the plain view in pixels; 0 = the backbone's image size.
        file: where to memory-map a table larger than `IN_MEMORY`; without it everything stays in memory.
        check: called with the number of images after each batch; may raise to stop. With several processes, called
            equally often by each, so that it may ask the others.
        group: the processes that share the work; each gives the rows of its own share, which follow each other.
        multiple: of images, at which shares begin; itself a multiple of `batch_size`.

    Returns:
        index: (M,) int64, ascending, the images that could be decoded.
        features: (M, D) float32.
    """
    training = backbone.training
    inference: nn.Module = backbone.eval() if tap else folded(backbone).to(memory_format=torch.channels_last)
    agree_on_bad(pixels, group)
    images = pixels.good if only is None else only
    first, last = group.row_range(len(images), multiple)
    order = torch.from_numpy(np.asarray(images[first:last]))
    ranges = [ProcessGroup(rank, group.size).row_range(len(images), multiple) for rank in range(group.size)]
    most = max(-(-(stop - start) // batch_size) for start, stop in ranges)  # batches of one process
    loader = Loader(
        pixels,
        order,
        batch_size=batch_size,
        transform=views or CenterCrop(size or backbone.image_size, tuple(backbone.mean), tuple(backbone.std)),
        key=key,
        device=device,
        empty=True,
        offset=first // batch_size,
    )

    def forward(images: Tensor) -> Tensor:
        count = max(8, AT_ONCE // images[0, 0].numel()) if images.device.type == "cpu" else len(images)

        def outputs(start: int, end: int) -> Tensor:
            with torch.inference_mode(), autocast():
                part = images[start:end]
                found: Tensor = _tapped(backbone, part, tap) if tap else inference(part)
                return found

        spans = [(start, start + count) for start in range(0, len(images), count)]
        # What a tap reads is kept by the network, which several threads share.
        parts = [outputs(*span) for span in spans] if tap else over_spans(outputs, len(images), count)
        return torch.cat(parts).float().cpu()

    features: np.ndarray | None = None
    # written where it stays: small arrays among large temporaries would keep their memory from being used again
    index, filled = np.zeros(len(order), np.int64), 0
    try:
        for batch in loader:
            if len(batch.index):
                out = forward(batch.views[0])
                if features is None:
                    features = _table(len(order), out.shape[1], file)
                # Images found to be bad on the way are missing from the batch: rows close up, in order.
                features[filled : filled + len(out)] = out.numpy()
                index[filled : filled + len(out)] = batch.index.numpy()
                filled += len(out)
            check(len(batch.index))
        for _ in range(most - len(loader)):  # the others have batches still
            check(0)
    finally:
        backbone.train(training)
    index = index[:filled]
    if features is None:  # of a black image, for the width
        black = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=device)
        return index, forward(black)[:0].numpy()
    assert (np.diff(index) > 0).all(), "every image must be extracted exactly once"
    return index, features[:filled]


def _tapped(backbone: Backbone, images: Tensor, tap: str) -> Tensor:
    with read_taps(backbone, [tap]) as activations:
        backbone(images)
    out = activations[tap]
    return out.mean((2, 3)) if out.ndim == 4 else out.mean(1) if out.ndim == 3 else out


def _table(rows: int, width: int, file: Path | None) -> np.ndarray:
    large = rows * width * 4 > IN_MEMORY
    return scratch_table(file, rows, width) if file and large else np.empty((rows, width), np.float32)

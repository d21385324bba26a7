"""Which parts of an image a network is shown in the test: random ones, ten fixed ones, or the center."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.data.augment import Draw, augment
from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop, RandomViews
from deepcluster.data.views import BLOCK, ViewGroup
from deepcluster.errors import DeepClusterError

KINDS = ("random", "ten", "center")
CROPS = 10
TEST = 31
"""What the keys of random draws are for."""
BATCH = 64


@torch.inference_mode()
def summed_logits(
    network: nn.Module,
    pixels: Pixels,
    views: ViewGroup,
    classes: int,
    *,
    kind: str = "random",
    seed: int = 0,
    device: str = "cpu",
    check: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """(N, C) float64 logits, summed over the crops of each image; NaN for images that cannot be decoded.

    Args:
        network: (B, 3, S, S) -> (B, C), in evaluation mode.
        views: size, normalization, and the random crops.
        kind: "random" = `CROPS` draws of `views`, as in DeepCluster's published evaluation; "ten" = corners and
            center of 7/8 of the shorter side, which is 224 of 256, and their mirror images; "center" = the one plain
            view.
        seed: of the random crops.
        check: called with the images of each batch.

    Raises:
        DeepClusterError: an unknown kind.
    """
    if kind not in KINDS:
        raise DeepClusterError(f"There are no crops {kind!r}: use {', '.join(KINDS)}.")
    total = np.full((len(pixels), classes), np.nan)
    for index, images in _shown(pixels, views, kind, seed, device):
        logits = network(images).double().cpu().numpy()
        total[index] = np.where(np.isnan(total[index]), 0, total[index]) + logits
        check(len(index))
    return total


def passes(kind: str) -> int:
    """How often each image is shown."""
    return 1 if kind == "center" else CROPS


def _shown(pixels: Pixels, views: ViewGroup, kind: str, seed: int, device: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    if kind == "ten":
        yield from _ten(pixels, views, device)
        return
    for number in range(passes(kind)):
        loader = Loader(
            pixels,
            np.arange(len(pixels)),
            batch_size=BATCH,
            transform=RandomViews(views) if kind == "random" else CenterCrop(views.size, views.mean, views.std),
            key=(seed, TEST, number),
            device=device,
        )
        for batch in loader:
            yield batch.index.numpy(), batch.views[0]


def _ten(pixels: Pixels, views: ViewGroup, device: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    for first in range(0, len(pixels), BATCH):
        wanted = np.arange(first, min(first + BATCH, len(pixels)))
        images = pixels.gather(wanted)
        good = [row for row, image in enumerate(images) if image is not None]
        if not good:
            continue
        shown = [images[row] for row in good]
        sizes = np.array([image.shape[:2] for image in shown if image is not None])
        for number in range(CROPS):
            box, flip = ten_boxes(sizes, number)
            yield wanted[good], augment(shown, _still(box, flip), _plain(views), device)  # type: ignore[arg-type]


def ten_boxes(sizes: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Crop 0 … 9 of images of (B, 2) height and width: (B, 4) top, left, height, width, and (B,) mirrored."""
    side = np.maximum(1, np.rint(sizes.min(axis=1) * (224 / 256)).astype(np.int64))
    room = sizes - side[:, None]
    place = number % 5
    if place == 4:
        corner = room // 2
    else:
        corner = room * (place // 2, place % 2)
    return np.concatenate([corner, side[:, None], side[:, None]], axis=1), np.full(len(sizes), number >= 5)


def _still(box: np.ndarray, flip: np.ndarray) -> Draw:
    """Crops and flips, and nothing else."""
    count = len(box)
    return Draw(
        box=box,
        flip=flip,
        factors=np.tile(np.array([1, 1, 1, 0], np.float32), (count, 1)),
        orders=np.tile(np.arange(4), (-(-count // BLOCK), 1)),
        gray=np.zeros(count, bool),
        sigma=np.zeros(count, np.float32),
        affine=np.tile(np.array([0, 0, 0, 1, 0], np.float32), (count, 1)),
    )


def _plain(views: ViewGroup) -> ViewGroup:
    return ViewGroup(size=views.size, crop_scale=None, flip=0.0, mean=views.mean, std=views.std)

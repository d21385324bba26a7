"""Do views of an image stay in its cluster? What tells weak views from strong ones, and color from shape.

Measured with a trained model on a few hundred images; nothing here judges what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.augment import augment, center_crop
from deepcluster.data.color import LUMA
from deepcluster.data.views import ViewGroup, draw
from deepcluster.engine.model import Model
from deepcluster.models.backbone import Backbone
from deepcluster.random import seeded

BATCH = 64


@dataclass(frozen=True)
class Agreement:
    """What became of M images when they were seen in another way; all but `images` are shares of 1.

    Attributes:
        images: M.
        kept: random views that are in the cluster of their plain image.
        chance: what `kept` would be if the views were dealt out over these clusters at random.
        passed: centroids that are nearer to a view than its plain image's own, on average; a half is chance.
        gray_kept: plain images that stay in their cluster without color.
        recognized: views whose nearest plain image, to the network before training, is their own.
    """

    images: int
    kept: float
    chance: float
    passed: float
    gray_kept: float
    recognized: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.inference_mode()
def measure(
    model: Model,
    drawn: Backbone,
    pictures: Sequence[np.ndarray],
    views: ViewGroup,
    *,
    seed: int = 0,
    device: str = "cpu",
    check: Callable[[int], None] = lambda images: None,
) -> Agreement:
    """Sees each picture plain, as one random view, and without color.

    Args:
        model: backbone, whitening and (K, D) centroids of a run.
        drawn: the same backbone before its first step.
        pictures: M arrays (H, W, 3) uint8.
        views: what the run trained on.
        seed: of the views' draw.
        check: told of the number of pictures after each batch.
    """
    trained = [np.zeros((0, model.backbone.dim), np.float32)] * 3
    before = [np.zeros((0, drawn.dim), np.float32)] * 2
    for start in range(0, len(pictures), BATCH):
        some = pictures[start : start + BATCH]
        seen = _seen(some, views, model.backbone.image_size, seed, start, device)
        trained = _append(trained, [_features(model.backbone, batch, device) for batch in seen])
        before = _append(before, [_features(drawn, batch, device) for batch in seen[:2]])
        check(len(some))
    whole, view, gray = (_distances(model, table) for table in trained)
    own = whole.argmin(1)
    nearer = (view < view.gather(1, own[:, None])).float().sum(1) / max(1, view.shape[1] - 1)
    share, view_share = (torch.bincount(found, minlength=view.shape[1]) / len(own) for found in (own, view.argmin(1)))
    return Agreement(
        images=len(pictures),
        kept=(view.argmin(1) == own).float().mean().item(),
        chance=(share * view_share).sum().item(),
        passed=nearer.mean().item(),
        gray_kept=(gray.argmin(1) == own).float().mean().item(),
        recognized=recognized(before[0], before[1], model.centroids.shape[1]),
    )


def recognized(images: np.ndarray, views: np.ndarray, width: int) -> float:
    """Share of (M, D) view features whose nearest row of (M, D) image features is their own.

    Compared as the run compares features: whitened to `width` directions of the images, L2-normalized.
    """
    whitening = Whitening(width).fit(images)
    near, far = (torch.as_tensor(np.asarray(whitening.transform(table))) for table in (images, views))
    found = torch.cdist(far, near).argmin(1)
    return (found == torch.arange(len(found))).float().mean().item()


def without_color(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with its luma in all three channels."""
    luma = np.rint(picture @ np.array(LUMA)).clip(0, 255).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=2)


def _seen(
    pictures: Sequence[np.ndarray], views: ViewGroup, size: int, seed: int, start: int, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain, as a random view, and plain without color; (B, 3, S, S) each."""
    sizes = np.array([picture.shape[:2] for picture in pictures])
    mean, std = views.mean, views.std
    return (
        center_crop(pictures, size, device, mean, std),
        augment(pictures, draw(views, sizes, seeded(seed, start)), views, device),
        center_crop([without_color(picture) for picture in pictures], size, device, mean, std),
    )


def _features(backbone: Backbone, images: Tensor, device: str) -> np.ndarray:
    return backbone.to(device).eval()(images).float().cpu().numpy()


def _append(tables: list[np.ndarray], more: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate(pair) for pair in zip(tables, more, strict=True)]


def _distances(model: Model, features: np.ndarray) -> Tensor:
    """(M, K) from (M, D) features to the centroids."""
    return torch.cdist(torch.as_tensor(model.embed(features)), model.centroids.float())

"""Do augmented views of an image stay in its cluster? Separates weak views from strong ones, and color from shape.

Measured with a trained model on a few hundred images; nothing here judges the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.augment import augment, center_crop
from deepcluster.data.views import ViewGroup, draw
from deepcluster.engine.model import Model
from deepcluster.models.backbone import Backbone
from deepcluster.random import seeded

BATCH = 64


@dataclass(frozen=True)
class ViewAgreement:
    """Where the views of M images are; all but `images` are fractions of 1."""

    images: int  # M
    kept: float  # random views that are in the cluster of their plain image
    chance: float  # what `kept` would be with the views' clusters permuted at random
    passed: float  # centroids that are nearer to a view than its plain image's own, on average; .5 is chance
    gray_kept: float  # plain images that stay in their cluster without color
    recognized: float  # views whose nearest plain image, to the network before training, is their own


@torch.inference_mode()
def measure(
    model: Model,
    initial: Backbone,
    pictures: Sequence[np.ndarray],
    views: ViewGroup,
    *,
    device: str = "cpu",
    check: Callable[[int], None] = lambda images: None,
) -> ViewAgreement:
    """Compares each of M pictures (H, W, 3) uint8 as it is with one random view of it, by the augmentation that the run
    was trained with, and with itself without color. `initial` is the model's backbone before its first step; `check` is
    called with the number of pictures after each batch."""
    backbone, initial, size = model.backbone.to(device).eval(), initial.to(device).eval(), model.backbone.image_size
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        shapes = np.array([picture.shape[:2] for picture in batch])
        images = center_crop(batch, size, device, views.mean, views.std)
        augmented = augment(batch, draw(views, shapes, seeded(0, start)), views, device)
        colorless = [np.asarray(Image.fromarray(picture).convert("L").convert("RGB")) for picture in batch]
        gray = center_crop(colorless, size, device, views.mean, views.std)
        for name, network, x in (
            ("plain", backbone, images),
            ("view", backbone, augmented),
            ("gray", backbone, gray),
            ("plain before", initial, images),
            ("view before", initial, augmented),
        ):
            parts[name].append(network(x).float().cpu().numpy())
        check(len(batch))
    features = {name: np.concatenate(tables) for name, tables in parts.items()}
    own, view, gray_cluster = (_distances(model, features[name]).argmin(1) for name in ("plain", "view", "gray"))
    distance = _distances(model, features["view"])
    nearer = (distance < distance.gather(1, own[:, None])).float().sum(1) / max(1, distance.shape[1] - 1)
    share, view_share = (torch.bincount(found, minlength=distance.shape[1]) / len(own) for found in (own, view))
    return ViewAgreement(
        images=len(pictures),
        kept=(view == own).float().mean().item(),
        chance=(share * view_share).sum().item(),
        passed=nearer.mean().item(),
        gray_kept=(gray_cluster == own).float().mean().item(),
        recognized=recognized(features["plain before"], features["view before"], model.centroids.shape[1]),
    )


def recognized(images: np.ndarray, views: np.ndarray, width: int) -> float:
    """Share of (M, D) view features whose nearest row of (M, D) image features is their own.

    Compared as the run compares features: whitened to `width` directions of the images, L2-normalized.
    """
    whitening = Whitening(width).fit(images)
    near, far = (torch.as_tensor(np.asarray(whitening.transform(table))) for table in (images, views))
    found = torch.cdist(far, near).argmin(1)
    return (found == torch.arange(len(found))).float().mean().item()


def _distances(model: Model, features: np.ndarray) -> Tensor:
    """(M, K) Euclidean, from (M, D) features to the centroids."""
    return torch.cdist(torch.as_tensor(model.embed(features)), model.centroids.float())

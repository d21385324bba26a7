"""Fitting a `PatchNet` to images: k-means of their patches, then the whitening of what these filters respond."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.validation import DegenerateClusters
from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop
from deepcluster.features.extract import extract
from deepcluster.models.backbone import Backbone
from deepcluster.models.patches import CONTRAST, PatchNet
from deepcluster.random import seed_of, seeded

IMAGES = 10_000
"""Images that are looked at, at most."""
PATCHES = 100_000
"""Patches that are clustered, about."""
RIDGE = 0.1
"""Added to the variances along the directions of patches before these are whitened (Coates et al.: .1)."""
POWER = 0.375
"""Directions of the output are divided by their variance to this power: 1/2 would be whitening. A little less keeps the
main ones first, for whoever takes some of them only."""
FLOOR = 1e-5
"""Variance, as a share of the largest, below which a direction is noise and gives 0."""


@torch.no_grad()
def fit_patches(
    backbone: Backbone,
    pixels: Pixels,
    *,
    seed: int = 0,
    device: str = "cpu",
    check: Callable[[int], None] = lambda images: None,
) -> None:
    """Sets the weights of a `patches` backbone by up to `IMAGES` of the images, each looked at twice. `seed` is of the
    choice of images and patches, and of k-means; `check` is called with the number of images after each batch, and may
    raise to stop."""
    net = backbone.trunk
    assert isinstance(net, PatchNet) and net.filters.bias is not None
    good = pixels.good
    chosen = np.sort(good[torch.randperm(len(good), generator=seeded(seed, 0))[:IMAGES].numpy()])
    view = CenterCrop(backbone.image_size, tuple(backbone.mean), tuple(backbone.std))
    each = -(-PATCHES // max(1, len(chosen) * len(net.sides)))
    patches = []
    for batch in Loader(pixels, chosen, batch_size=256, transform=view):
        generator = seeded(seed, 1, batch.first)  # a bad image changes the draws of its own batch only
        for images in net.at_sides(backbone.sobel(batch.views[0])):
            patches.append(_draw(images, net.patch, each, generator))
        check(len(batch.index))
    weight, bias = _filters(torch.cat(patches), len(net.filters.weight), seed)
    net.filters.weight.copy_(weight.view_as(net.filters.weight))
    net.filters.bias.copy_(bias)
    backbone.to(device)
    features = extract(backbone, pixels, tap="pool", only=chosen, device=device, check=check)[1]
    weight, bias = _whitening(features, len(net.whitening.weight))
    net.whitening.weight.copy_(weight)
    net.whitening.bias.copy_(bias)


def _draw(images: Tensor, patch: int, each: int, generator: torch.Generator) -> Tensor:
    """(B * each, C * patch^2), patches of images (B, C, H, W) at random places."""
    count, _, height, width = images.shape
    row = torch.randint(0, height - patch + 1, (count, each, 1, 1), generator=generator)
    column = torch.randint(0, width - patch + 1, (count, each, 1, 1), generator=generator)
    reach = torch.arange(patch)
    drawn = images[torch.arange(count).view(-1, 1, 1, 1), :, row + reach.view(-1, 1), column + reach]
    return drawn.permute(0, 1, 4, 2, 3).reshape(count * each, -1)


def _filters(patches: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights (k, D) and biases (k,) whose response to a patch of mean 0 and deviation 1 is its likeness, after
    whitening, to the direction of each of k centroids."""
    patches = patches - patches.mean(1, keepdim=True)
    patches = patches / (patches.var(1, keepdim=True) + CONTRAST).sqrt()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    whiten = (vectors * (values.clamp_min(0) + RIDGE).rsqrt()) @ vectors.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateClusters)  # flat images have one patch
        found = KMeans(k, max_iter=10, random_state=seed_of(seed) % 2**31).fit((patches - mean) @ whiten)
    weight = F.normalize(torch.as_tensor(found.cluster_centers_), dim=1) @ whiten
    return weight, -weight @ mean


def _whitening(features: np.ndarray, dim: int) -> tuple[Tensor, Tensor]:
    """Weights (dim, D) and biases (dim,) that project features (M, D) on their main directions and scale these; zeros
    where there are fewer."""
    mean = features.mean(0)
    width = min(dim, *features.shape)
    _, singular, directions = randomized_svd(features - mean, width, n_iter=4, random_state=0)
    variances = singular.astype(np.float64) ** 2 / len(features)
    alive = variances > max(FLOOR * variances[0], np.finfo(np.float32).tiny)
    scales = np.where(alive, np.where(alive, variances, 1) ** -POWER, 0)
    weight = torch.zeros(dim, features.shape[1])
    weight[:width] = torch.from_numpy(directions * scales[:, None])
    return weight, -weight @ torch.from_numpy(mean)

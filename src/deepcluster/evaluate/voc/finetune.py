"""Fine-tuning for the classes of a VOC set, several of which an image may show: a backbone with new fully connected
layers, as in DeepCluster's and DeeperCluster's published evaluations of VOC 2007.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop, RandomViews, TenCrop, Transform
from deepcluster.data.views import ViewGroup
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.recipes import MLP, Recipe, override
from deepcluster.evaluate.trainer import train_on_views
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.random import seeded

HIDDEN = 4096  # fc6 and fc7 of AlexNet
RANDOM_CROPS = 10
TEST_BATCH = 16
"""Test images at a time, of up to ten crops each."""
ORDER, BUILD, TEST = 21, 24, 31
"""Purposes of the keys of random draws."""

FineTuneMode = Literal["fc6-8", "all"]
RecipeName = Literal["deepcluster", "deepercluster"]
Crops = Literal["random", "ten", "center"]


class TransferNetwork(nn.Module):
    """(B, 3, S, S) -> (B, C) logits: the layers kept of a backbone, then layers that are initialized at random.

    Of AlexNet and VGG the convolutions are kept, and fc6 and fc7 are initialized again with their shapes. Any other
    network is kept entirely: with mode "fc6-8" fc6 and fc7 of `hidden` units follow its output, with mode "all" the
    linear layer over classes does.

    Batch-norm of the kept layers always uses the statistics it came with. In mode "fc6-8" nothing of them is trained
    but, with `train_batchnorm`, batch-norm scales and shifts.

    Args:
        backbone: changed and kept.
        hidden: width of fc6 and fc7 where the backbone has none.
        draw_top: the layer over classes is drawn N(0, .01), too (DeeperCluster); else as torch draws it.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        mode: FineTuneMode,
        *,
        train_batchnorm: bool = False,
        hidden: int = HIDDEN,
        draw_top: bool = False,
    ) -> None:
        super().__init__()
        trunk = backbone.trunk
        self.sobel = backbone.sobel
        self.pool: nn.Module = nn.Identity()
        if isinstance(trunk, ConvThenLinear):
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(trunk.side), nn.Flatten())
            self.kept: nn.Module = trunk.features
            self.layers: nn.Module = trunk.classifier
            dim, relu = backbone.dim, True
        elif mode == "fc6-8":
            self.kept = trunk
            fc6, fc7 = nn.Linear(backbone.dim, hidden), nn.Linear(hidden, hidden)
            self.layers = nn.Sequential(nn.Dropout(0.5), fc6, nn.ReLU(inplace=True), nn.Dropout(0.5), fc7)
            dim, relu = hidden, True
        else:
            self.kept, self.layers = trunk, nn.Identity()
            dim, relu = backbone.dim, backbone.head_relu
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.top = nn.Linear(dim, classes)
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.01)
                nn.init.constant_(layer.bias, 0.1)
        if draw_top:
            nn.init.normal_(self.top.weight, 0.0, 0.01)
        nn.init.constant_(self.top.bias, 0.1)
        for layer in self.kept.modules():
            trained = mode == "all" or (train_batchnorm and isinstance(layer, _BatchNorm))
            for weight in layer.parameters(recurse=False):
                weight.requires_grad_(trained)

    def train(self, mode: bool = True) -> TransferNetwork:
        """The new layers, with their dropout, train; the kept ones stay in evaluation mode."""
        super().train(mode)
        self.kept.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(self.kept(self.sobel(images)))
        logits: Tensor = self.top(self.relu(self.layers(maps)))
        return logits


def recipe_of(recipe_name: RecipeName, mode: FineTuneMode, **changes: Any) -> Recipe:
    """The recipe of a paper's code, with changes; see `override`."""
    recipe = MLP["deepcluster"]
    if recipe_name == "deepercluster":
        recipe = replace(
            recipe,
            about="DeeperCluster's fine-tuning on VOC (arXiv 1905.01278 §4)",
            iterations=150_000,
            step=20_000 if mode == "fc6-8" else 10_000,
            weight_decay=(1e-5,) if mode == "fc6-8" else (1e-4,),
            views="resized",
        )
    return override(recipe, **changes)


def multilabel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over classes of binary cross-entropy of (B, C) logits, over the (B, C) labels that are known (1 or 0, and not
    -1), divided by the batch's images."""
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), reduction="none")
    return (losses * (labels >= 0)).sum() / len(logits)


def finetune(
    network: nn.Module,
    pixels: Pixels,
    labels: np.ndarray,
    recipe: Recipe,
    views: ViewGroup,
    *,
    seed: int,
    device: str,
    **more: Any,
) -> float:
    """Trains `network` in place and gives the mean loss of the last tenth of the iterations. Of the N images, those
    without any known label of (N, C), 1, 0 or -1, are not shown; `seed` is of order, views and dropout. For the rest,
    and for what is raised, see `trainer.train`."""
    shown = np.intersect1d(pixels.good, np.flatnonzero((labels >= 0).any(axis=1)))
    if not len(shown):
        raise DeepClusterError(f"No image of {pixels.source.name} can be decoded and has a label.")
    truth = torch.from_numpy(labels.astype(np.int64)).to(device)
    network.to(device)
    # One order for all epochs, as in the published code.
    order = shown[torch.randperm(len(shown), generator=seeded(seed, ORDER)).numpy()]
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    group = {"params": trained, "base_lr": recipe.lr[0], "weight_decay": recipe.weight_decay[0], "multiplier": 1.0}
    losses = train_on_views(
        [network],
        [group],
        pixels,
        lambda epoch: order,
        recipe,
        RandomViews(views),
        lambda batch: multilabel_loss(network(batch.views[0]), truth[batch.index.to(device)]),
        seed=seed,
        device=device,
        by_epochs=False,
        name="fine-tuning",
        **more,
    )
    return float(losses[9 * recipe.iterations // 10 :].nanmean())


@torch.inference_mode()
def summed_logits(
    network: nn.Module,
    pixels: Pixels,
    views: ViewGroup,
    classes: int,
    *,
    crops: Crops = "random",
    seed: int = 0,
    device: str = "cpu",
    after_batch: Callable[[int], object] = lambda images: None,
) -> np.ndarray:
    """(N, C) float64 logits, summed over the crops of each image; NaN for images that cannot be decoded.

    Args:
        network: (B, 3, S, S) -> (B, C), in evaluation mode.
        crops: "random" = `RANDOM_CROPS` draws of `views` by `seed`, as in DeepCluster's published evaluation; "ten" =
            corners and center of the resized image and their mirror images; "center" = the central crop.
        after_batch: called with the number of images of each batch.
    """
    transforms: dict[Crops, Transform] = {
        "random": RandomViews(replace(views, count=RANDOM_CROPS)),
        "ten": TenCrop(views.size, views.mean, views.std),
        "center": CenterCrop(views.size, views.mean, views.std),
    }
    loader = Loader(
        pixels,
        np.arange(len(pixels)),
        batch_size=TEST_BATCH,
        transform=transforms[crops],
        key=(seed, TEST),
        device=device,
    )
    total = np.full((len(pixels), classes), np.nan)
    for batch in loader:
        logits = torch.stack([network(view).double() for view in batch.views]).sum(0)
        total[batch.index.numpy()] = logits.cpu().numpy()
        after_batch(len(batch.index))
    return total

"""Fully convolutional networks on a backbone: a class for every pixel of images of any size.

Networks alone: how they are trained and scored is in segmentation.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.maps import (
    Grid,
    Maps,
    convolutions,
    dilate,
    interpolation,
    norms,
    own_copy,
    residual,
    tapped,
)
from deepcluster.evaluate.voc.saved import read_network, save_network
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.weight_init import initialize_

COARSEST = 32
PIXELS = Grid(1, 0.0)


@dataclass(frozen=True)
class Plan:
    """What a segmenter is made of; plain values.

    Attributes:
        stride: pixels between two cells of the finest map that is scored; None = 32 for AlexNet and VGG-16, for
            others that of the map as it is. AlexNet and VGG-16 reach 16 and 8 by adding the scores of finer maps
            (FCN-16s, FCN-8s; arXiv 1411.4038 §4.2), ResNets by taking strides out and spreading the convolutions.
        redraw: draw fc6 and fc7 anew instead of taking the backbone's.
    """

    stride: int | None = None
    redraw: bool = False


class Segmenter(nn.Module):
    """(B, 3, H, W) normalized images -> (B, C + 1, H, W) scores; channel 0 is the background.

    Args:
        config: of the backbone, as `build_backbone` takes it.
        classes: C names; class c is pixel value c + 1.
        plan: what it is made of.
        maps: from fine to coarse.
        head: from the coarsest map to scores.
        grid: where the cells of those scores lie.
        skips: from each of the finer maps to scores, in the order of `maps`.
        mean, std: what images are normalized with.
    """

    def __init__(
        self,
        config: dict[str, Any],
        classes: Sequence[str],
        plan: Plan,
        *,
        maps: Maps,
        head: nn.Module,
        grid: Grid,
        skips: Sequence[nn.Module],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.config, self.classes, self.plan = config, tuple(classes), plan
        self.maps, self.head, self.grid, self.skips = maps, head, grid, nn.ModuleList(skips)
        self.mean, self.std = mean, std

    def train(self, mode: bool = True) -> Segmenter:
        """The backbone's batch-norm keeps its statistics, also in training."""
        super().train(mode)
        for part in norms(self.maps):
            part.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every pixel: those of the coarsest map, read between its cells, plus those of finer ones.

        Raises:
            DeepClusterError: the images are so small that no cell is left.
        """
        try:
            found = self.maps(images)
        except RuntimeError as error:
            if "too small" not in str(error) and "greater than actual input size" not in str(error).lower():
                raise
            side = min(images.shape[2:])
            raise DeepClusterError(f"Images of {side} px are too small for this network: take larger ones.") from error
        scores, grid = self.head(found[-1]), self.grid
        finer = list(zip(self.skips, self.maps.maps[:-1], found[:-1], strict=True))
        for skip, about, cells in reversed(finer):
            scores = resampled(scores, grid, cells.shape[2:], about.grid) + skip(cells)
            grid = about.grid
        return resampled(scores, grid, images.shape[2:], PIXELS)

    @torch.no_grad()
    def segment(self, image: Any) -> np.ndarray:
        """(H, W) uint8 classes of a (H, W, 3) uint8 image: 0 background, c + 1 = `classes[c]`."""
        self.eval()
        device = next(self.parameters()).device
        pixels = normalized(torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None], self.mean, self.std)
        return self(pixels)[0].argmax(0).to(torch.uint8).cpu().numpy()


def resampled(scores: Tensor, grid: Grid, size: Sequence[int], to: Grid) -> Tensor:
    """(B, C, h, w) scores with cells on `grid`, read between them at the `size` cells of `to`: (B, C, *size).

    Two products with interpolation weights: exact places for any grid, and the same gradient every time.
    """
    rows = interpolation(size[0], to, scores.shape[2], grid, scores.device)
    columns = interpolation(size[1], to, scores.shape[3], grid, scores.device)
    return rows @ (scores @ columns.T)


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 as the network takes them."""
    values = images.float() / 255
    return (values - values.new_tensor(mean)[:, None, None]) / values.new_tensor(std)[:, None, None]


class FullyConvolutional(nn.Module):
    """fc6, fc7 and the scores as convolutions over a map (arXiv 1411.4038 §4.1): (B, C, h, w) -> (B, classes, h, w).

    Each is moved over the map as it stands, padded with zeros so that as many cells come out.

    Args:
        trunk: whose linear layers are taken, or their widths and dropout alone.
        channels: of the map.
        classes: with the background.
        redraw: take the widths alone.
    """

    def __init__(self, trunk: ConvThenLinear, channels: int, classes: int, redraw: bool) -> None:
        super().__init__()
        linear6, linear7 = (layer for layer in trunk.classifier if isinstance(layer, nn.Linear))
        rate = next((layer.p for layer in trunk.classifier if isinstance(layer, nn.Dropout)), 0.0)
        self.side = trunk.side
        before = (self.side - 1) // 2
        self.padding = nn.ZeroPad2d((before, self.side - 1 - before) * 2)
        self.fc6 = nn.Conv2d(channels, linear6.out_features, self.side)
        self.fc7 = nn.Conv2d(linear6.out_features, linear7.out_features, 1)
        self.score = nn.Conv2d(linear7.out_features, classes, 1)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout2d(rate)
        initialize_(self)
        if not redraw:
            with torch.no_grad():
                for ours, theirs in ((self.fc6, linear6), (self.fc7, linear7)):
                    ours.weight.copy_(theirs.weight.view_as(ours.weight))
                    assert ours.bias is not None
                    ours.bias.copy_(theirs.bias)
        # arXiv 1411.4038 §4.3: drawing it was neither better nor faster than zeros
        nn.init.zeros_(self.score.weight)

    def grid(self, of: Grid) -> Grid:
        """Where the scores of a map with grid `of` lie: those of an even side are between its cells."""
        before = (self.side - 1) // 2
        return Grid(of.stride, of.first + ((self.side - 1) / 2 - before) * of.stride)

    def forward(self, cells: Tensor) -> Tensor:
        hidden = self.dropout(self.relu(self.fc6(self.padding(cells))))
        return self.score(self.dropout(self.relu(self.fc7(hidden))))


def build_segmenter(backbone: Backbone, classes: Sequence[str], plan: Plan) -> Segmenter:
    """A segmenter that begins with the weights of `backbone`, which stays as it is; the rest is drawn from torch's
    global generator.

    AlexNet and VGG-16 become FCN-32s, -16s or -8s. All others carry torchvision's FCN head on their last map.

    Raises:
        DeepClusterError: the backbone has no map, or cannot have this stride.
    """
    own, outputs = own_copy(backbone), len(classes) + 1
    if isinstance(own.trunk, ConvThenLinear):
        maps, head, skips = _fully_convolutional(own, own.trunk, outputs, plan)
        grid = head.grid(maps.maps[-1].grid)
    else:
        maps, skips = _strided(own, plan.stride), []
        head, grid = FCNHead(maps.maps[-1].channels, outputs), maps.maps[-1].grid
    return Segmenter(
        own.config, classes, plan, maps=maps, head=head, grid=grid, skips=skips, mean=own.mean, std=own.std
    )


def _fully_convolutional(
    backbone: Backbone, trunk: ConvThenLinear, outputs: int, plan: Plan
) -> tuple[Maps, FullyConvolutional, list[nn.Module]]:
    stride = plan.stride or COARSEST
    if stride not in (8, 16, COARSEST):
        raise DeepClusterError(f"{backbone.name} gives scores of stride 32, 16 or 8, not {stride}.")
    strides = [finer for finer in (16, 8) if finer >= stride]
    maps = convolutions(backbone, drop_last_pool=False, strides=strides)
    assert maps is not None
    skips: list[nn.Module] = []
    for finer in maps.maps[:-1]:
        skip = nn.Conv2d(finer.channels, outputs, 1)
        nn.init.zeros_(skip.weight)  # arXiv 1411.4038 §4.2: the net then begins as the coarser one
        nn.init.zeros_(skip.bias)  # type: ignore[arg-type]
        skips.append(skip)
    return maps, FullyConvolutional(trunk, maps.maps[-1].channels, outputs, plan.redraw), skips


def _strided(backbone: Backbone, stride: int | None) -> Maps:
    """The last map, of the stride that is asked for."""
    trunk: Any = backbone.trunk
    maps = residual(backbone, ["layer4"])
    if maps is not None and stride is not None and stride < maps.maps[-1].grid.stride:
        halvings = round(np.log2(maps.maps[-1].grid.stride / stride))
        dilate([trunk.layer2, trunk.layer3, trunk.layer4], halvings)
        maps = residual(backbone, ["layer4"])
    maps = maps or convolutions(backbone, drop_last_pool=False) or tapped(backbone, coarsest=COARSEST)
    have = maps.maps[-1].grid.stride
    if stride not in (None, have):
        raise DeepClusterError(f"The map of {backbone.name} has stride {have}, not {stride}: leave out --stride.")
    return maps


def save_segmenter(segmenter: Segmenter, file: Path) -> Path:
    """Writes one safetensors file that `load_segmenter` reads."""
    about = {"backbone": segmenter.config, "classes": segmenter.classes, "plan": dataclasses.asdict(segmenter.plan)}
    return save_network(segmenter, file, "segmenter", about)


def load_segmenter(file: Path | str, device: str = "cpu") -> Segmenter:
    """A segmenter that `voc-segmentation` trained, in evaluation mode: `load_segmenter(file).segment(image)`.

    Raises:
        DeepClusterError: the file is missing, damaged, or no segmenter.
    """

    def build(backbone: Backbone, about: dict[str, Any]) -> nn.Module:
        return build_segmenter(backbone, about["classes"], Plan(**about["plan"]))

    segmenter = read_network(file, "segmenter", build, device)
    assert isinstance(segmenter, Segmenter)
    return segmenter

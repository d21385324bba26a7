"""Fully convolutional networks on a backbone: a class for every pixel of images of any size.

Networks alone: how they are trained and scored is in segmentation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.tensor_file import load_network
from deepcluster.evaluate.voc.maps import (
    FeatureMaps,
    Grid,
    MapNetwork,
    batch_norms,
    dilate,
    interpolation,
    linear_layers,
    resnet_maps,
    sequential_maps,
    tapped_map,
    trainable_copy,
)
from deepcluster.evaluate.voc.training import normalize
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.weight_init import initialize_

COARSEST = 32
PIXELS = Grid(1, 0.0)


class Segmenter(MapNetwork):
    """(B, 3, H, W) normalized images -> (B, C + 1, H, W) scores; channel 0 is the background.

    It starts from the weights of a backbone; the rest is drawn from torch's global generator.

    Args:
        backbone: copied, and left as it is.
        classes: C names, without the background; class c is pixel value c + 1.
        stride: pixels between two cells of the finest map that is scored; None = 32 for AlexNet and VGG-16, for
            others that of the map as it is. AlexNet and VGG-16 become FCN-32s and reach 16 and 8 by adding the scores
            of finer maps (FCN-16s, FCN-8s; arXiv 1411.4038 §4.2). All others carry torchvision's FCN head on their
            last map; ResNets reach finer strides by dilated convolutions.
        redraw: initialize fc6 and fc7 of AlexNet and VGG-16 at random.

    Attributes:
        head: from the coarsest map to scores, whose cells lie on `grid`.
        skips: from each of the finer maps to scores, in the order of `maps`.

    Raises:
        DeepClusterError: the backbone has no map, or cannot have this stride.
    """

    kind = "segmenter"

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], *, stride: int | None = None, redraw: bool = False
    ) -> None:
        super().__init__()
        own, outputs = trainable_copy(backbone), len(classes) + 1
        self.about = {"backbone": own.config, "classes": list(classes), "stride": stride, "redraw": redraw}
        self.classes, self.mean, self.std = tuple(classes), own.mean, own.std
        skips: list[nn.Module] = []
        if not isinstance(own.trunk, ConvThenLinear):
            self.maps = _last_map(own, stride)
            last = self.maps.maps[-1]
            self.head: nn.Module = FCNHead(last.channels, outputs)
            self.grid = last.grid
        else:
            stride = stride or COARSEST
            if stride not in (8, 16, COARSEST):
                raise DeepClusterError(f"{backbone.name} gives scores of stride 32, 16 or 8, not {stride}.")
            found = sequential_maps(own, drop_last_pool=False, strides=[step for step in (16, 8) if step >= stride])
            assert found is not None
            self.maps = found
            for feature_map in found.maps[:-1]:
                skip = nn.Conv2d(feature_map.channels, outputs, 1)
                for weight in skip.parameters():
                    nn.init.zeros_(weight)  # arXiv 1411.4038 §4.2: the network then starts as the coarser one
                skips.append(skip)
            last = found.maps[-1]
            head = FullyConvolutional(own.trunk, last.channels, outputs, redraw)
            self.head, self.grid = head, head.grid(last.grid)
        self.skips = nn.ModuleList(skips)

    def train(self, mode: bool = True) -> Segmenter:
        """The backbone's batch-norm keeps its statistics, also in training."""
        super().train(mode)
        for layer in batch_norms(self.maps):
            layer.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every pixel: those of the coarsest map, read between its cells, plus those of finer ones;
        DeepClusterError where images are so small that no cell is left."""
        try:
            outputs = self.maps(images)
        except RuntimeError as error:
            if "too small" not in str(error) and "greater than actual input size" not in str(error).lower():
                raise
            side = min(images.shape[2:])
            raise DeepClusterError(f"Images of {side} px are too small for this network: use larger ones.") from error
        scores, grid = self.head(outputs[-1]), self.grid
        finer = list(zip(self.skips, self.maps.maps[:-1], outputs[:-1], strict=True))
        for skip, feature_map, cells in reversed(finer):
            scores = resample(scores, grid, cells.shape[2:], feature_map.grid) + skip(cells)
            grid = feature_map.grid
        return resample(scores, grid, images.shape[2:], PIXELS)

    @torch.no_grad()
    def segment(self, image: Any) -> np.ndarray:
        """(H, W) uint8 classes of a (H, W, 3) uint8 image: 0 background, c + 1 = `classes[c]`."""
        self.eval()
        device = next(self.parameters()).device
        pixels = normalize(torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None], self.mean, self.std)
        mask: np.ndarray = self(pixels)[0].argmax(0).to(torch.uint8).cpu().numpy()
        return mask


def resample(scores: Tensor, grid: Grid, size: Sequence[int], to: Grid) -> Tensor:
    """(B, C, h, w) scores with cells on `grid`, read between them at the `size` cells of `to`: (B, C, *size).

    Two products with interpolation weights: exact places for any grid, and the same gradient every time.
    """
    rows = interpolation(size[0], to, scores.shape[2], grid, scores.device)
    columns = interpolation(size[1], to, scores.shape[3], grid, scores.device)
    return rows @ (scores @ columns.T)


class FullyConvolutional(nn.Module):
    """fc6, fc7 and the scores as convolutions over a map (arXiv 1411.4038 §4.1): (B, C, h, w) -> (B, classes, h, w).

    The map is padded with zeros so that as many cells come out. The trunk's linear layers are taken or, to `redraw`
    them, their widths and dropout alone; `classes` includes the background.
    """

    def __init__(self, trunk: ConvThenLinear, channels: int, classes: int, redraw: bool) -> None:
        super().__init__()
        linear6, linear7, rate = linear_layers(trunk)
        self.side = trunk.side
        before = (self.side - 1) // 2
        self.padding = nn.ZeroPad2d((before, self.side - 1 - before) * 2)
        self.fc6 = nn.Conv2d(channels, linear6.out_features, self.side)
        self.fc7 = nn.Conv2d(linear6.out_features, linear7.out_features, 1)
        self.score = nn.Conv2d(linear7.out_features, classes, 1)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout2d(rate)
        initialize_(self)
        if not redraw:
            for convolution, linear in ((self.fc6, linear6), (self.fc7, linear7)):
                state = {"weight": linear.weight.detach().view_as(convolution.weight), "bias": linear.bias.detach()}
                convolution.load_state_dict(state)
        # arXiv 1411.4038 §4.3: random initialization was neither better nor faster than zeros
        nn.init.zeros_(self.score.weight)

    def grid(self, of: Grid) -> Grid:
        """Where the scores of a map with grid `of` lie: those of an even side are between its cells."""
        return Grid(of.stride, of.first + (0 if self.side % 2 else of.stride / 2))

    def forward(self, cells: Tensor) -> Tensor:
        hidden = self.dropout(self.relu(self.fc6(self.padding(cells))))
        scores: Tensor = self.score(self.dropout(self.relu(self.fc7(hidden))))
        return scores


def _last_map(backbone: Backbone, stride: int | None) -> FeatureMaps:
    """The last map, with the stride that is asked for."""
    trunk: Any = backbone.trunk
    maps = resnet_maps(backbone, ["layer4"])
    if maps is not None and stride is not None and stride < maps.maps[-1].grid.stride:
        halvings = round(np.log2(maps.maps[-1].grid.stride / stride))
        dilate([trunk.layer2, trunk.layer3, trunk.layer4], halvings)
        maps = resnet_maps(backbone, ["layer4"])
    maps = maps or sequential_maps(backbone, drop_last_pool=False) or tapped_map(backbone, coarsest=COARSEST)
    given = maps.maps[-1].grid.stride
    if stride not in (None, given):
        raise DeepClusterError(f"The map of {backbone.name} has stride {given}, not {stride}: leave out --stride.")
    return maps


def load_segmenter(file: Path | str, device: str = "cpu") -> Segmenter:
    """A segmenter that `voc-segmentation` trained, in evaluation mode: `load_segmenter(file).segment(image)`.

    Raises:
        DeepClusterError: the file is missing, damaged, or not a segmenter.
    """
    return load_network(
        file,
        Segmenter.kind,
        lambda own, about: Segmenter(own, about["classes"], stride=about["stride"], redraw=about["redraw"]),
        device,
    )

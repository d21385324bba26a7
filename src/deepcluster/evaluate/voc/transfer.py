"""The network that is fine-tuned for the classes of a VOC set: a backbone with new fully connected layers.

As in DeepCluster's published evaluation of VOC 2007 and in DeeperCluster's; this file does not train it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.engine.checkpoint import undisturbed
from deepcluster.io import write_atomic
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone

KIND = "voc-classification"
HIDDEN = 4096  # fc6 and fc7 of AlexNet
MODES = ("fc6-8", "all")


class Transfer(nn.Module):
    """(B, 3, S, S) -> (B, C) logits: what is kept of a backbone, then layers that are drawn anew.

    For AlexNet and VGG the convolutions are kept, and fc6 and fc7 are drawn anew with their shapes. Of any other
    network all is kept: with mode "fc6-8" fc6 and fc7 of `hidden` units follow its output, with mode "all" the
    linear layer over classes does.

    Batch-norm of what is kept always uses the statistics it came with. In mode "fc6-8" nothing of it is trained but,
    with `train_batchnorm`, its batch-norm scales and shifts.

    Args:
        backbone: changed and kept.
        classes: C.
        mode: "fc6-8" or "all".
        train_batchnorm: see above.
        hidden: width of fc6 and fc7 where the backbone has none.
        draw_top: the layer over classes is drawn N(0, .01), too (DeeperCluster); else as torch draws it.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        mode: str,
        *,
        train_batchnorm: bool = False,
        hidden: int = HIDDEN,
        draw_top: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.train_batchnorm = mode, train_batchnorm
        trunk = backbone.trunk
        self.sobel = backbone.sobel
        self.side = 0
        if isinstance(trunk, ConvThenLinear):
            self.side = trunk.side
            self.kept: nn.Module = trunk.features
            self.layers: nn.Module = trunk.classifier
            dim, relu = backbone.dim, True
        else:
            self.kept = trunk
            self.layers = _layers(backbone.dim, hidden) if mode == "fc6-8" else nn.Identity()
            dim, relu = (hidden, True) if mode == "fc6-8" else (backbone.dim, backbone.head_relu)
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
            normalizes = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            for weight in layer.parameters(recurse=False):
                weight.requires_grad_(mode == "all" or (train_batchnorm and normalizes))

    @property
    def frozen(self) -> bool:
        """Whether nothing of what is kept is trained."""
        return not any(weight.requires_grad for weight in self.kept.parameters())

    def train(self, mode: bool = True) -> Transfer:
        """The new layers, with their dropout, train; what is kept stays in evaluation mode."""
        super().train(mode)
        self.kept.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.kept(self.sobel(images))
        if self.side:
            if maps.shape[2:] != (self.side, self.side):
                maps = F.adaptive_avg_pool2d(maps, self.side)
            maps = maps.flatten(1)
        return self.top(self.relu(self.layers(maps)))


def _layers(dim: int, hidden: int) -> nn.Sequential:
    """fc6 and fc7 as AlexNet has them."""
    return nn.Sequential(
        nn.Dropout(0.5), nn.Linear(dim, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(hidden, hidden)
    )


def save_transfer(network: Transfer, file: Path, about: dict[str, Any]) -> Path:
    """Writes the weights and `about`: the backbone's config, classes, and the arguments of `Transfer`."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    return write_atomic(file, lambda beside: save_file(tensors, beside, {"format": "pt", KIND: json.dumps(about)}))


def build_transfer(about: dict[str, Any]) -> Transfer:
    """The network that `about` describes, with drawn weights; leaves every global generator as it was."""
    with undisturbed():
        backbone = build_backbone(**about["backbone"])
        return Transfer(backbone, len(about["classes"]), about["mode"], **about["layers"])

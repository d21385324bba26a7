"""Fast and Faster R-CNN on a backbone's map, from the parts of torchvision.models.detection.

Networks alone: how they are trained and scored is in detection.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.maps import (
    LAYERS,
    Grid,
    Maps,
    convolutions,
    norms,
    own_copy,
    residual,
    tapped,
)
from deepcluster.evaluate.voc.regions import BACKGROUND, PYRAMID_WIDTH, Anchors, Pyramid, RegionPool, hard
from deepcluster.evaluate.voc.saved import read_network, save_network
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.convnet import Mean
from deepcluster.models.weight_init import initialize_

ANCHORS = (128, 256, 512)
"""Sides of anchors in an image whose shorter side has `PAPER_SIZE` pixels (arXiv 1506.01497 §3.3)."""
PAPER_SIZE = 600
PYRAMID_ANCHOR = 8
"""Side of an anchor over the stride of its level of a pyramid (arXiv 1612.03144 §4.1)."""


@dataclass(frozen=True)
class Plan:
    """What a detector is made of; plain values.

    Attributes:
        head: "faster" proposes regions itself (arXiv 1506.01497), "fast" is given them (arXiv 1504.08083).
        pyramid: stand on a feature pyramid of layer1..layer4 of a ResNet (arXiv 1612.03144).
        pool: regions are pooled by their maximum over rounded cells ("max", as in both papers) or at exact places
            ("align", arXiv 1703.06870 §3).
        min_size: the shorter side of an image is scaled to so many pixels, unless
        max_size: the longer would have more than so many.
        train_sizes: in training, the shorter side is one of these instead.
        anchors: sides of anchors in pixels of the scaled image; () = those of the papers, scaled with the image.
        redraw: draw fc6 and fc7 anew instead of taking the backbone's.
        regions: regions of each image that the head learns from.
    """

    head: Literal["faster", "fast"] = "faster"
    pyramid: bool = False
    pool: Literal["max", "align"] = "max"
    min_size: int = 600
    max_size: int = 1000
    train_sizes: tuple[int, ...] = ()
    anchors: tuple[int, ...] = ()
    redraw: bool = False
    regions: int = 128

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the anchors on a single map."""
        return self.anchors or tuple(max(1, round(side * self.min_size / PAPER_SIZE)) for side in ANCHORS)


class Detector(nn.Module):
    """Images -> boxes with class and score, or, while training, the losses.

    Args:
        config: of the backbone, as `build_backbone` takes it.
        classes: names; class c has the label c + 1, and 0 is background.
        plan: what it is made of.
        maps, pyramid, rpn, heads, transform: the parts; `build_detector` puts them together.
    """

    def __init__(
        self,
        config: dict[str, Any],
        classes: Sequence[str],
        plan: Plan,
        *,
        maps: Maps,
        pyramid: Pyramid | None,
        rpn: RegionProposalNetwork | None,
        heads: RoIHeads,
        transform: GeneralizedRCNNTransform,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.plan = config, tuple(classes), plan
        self.maps, self.pyramid, self.rpn, self.heads, self.transform = maps, pyramid, rpn, heads, transform

    def train(self, mode: bool = True) -> Detector:
        """Batch-norm keeps its statistics, also in training."""
        super().train(mode)
        for part in norms(self):
            part.eval()
        return self

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        proposals: Sequence[Tensor] | None = None,
    ) -> Any:
        """
        Args:
            images: (3, H, W) floats in [0, 1], each of its own size.
            targets: for training: `boxes` (G, 4) as x0, y0, x1, y1 and `labels` (G,) from 1, of each image.
            proposals: (P, 4) boxes of each image, for the head "fast".

        Returns:
            In training name -> loss; else for each image `boxes` (F, 4), `labels` (F,) and `scores` (F,).
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        given = None if targets is None else [dict(target) for target in targets]
        self.transform.min_size = (self.plan.train_sizes if self.training else ()) or (self.plan.min_size,)
        batch, given = self.transform(list(images), given)
        found = self.maps(batch.tensors)
        maps = {"0": found[-1]} if self.pyramid is None else self.pyramid(found)
        losses: dict[str, Tensor] = {}
        if self.rpn is not None:
            regions, losses = self.rpn(batch, maps, given)
        else:
            assert proposals is not None
            regions = [
                resize_boxes(boxes, before, after)
                for boxes, before, after in zip(proposals, sizes, batch.image_sizes, strict=True)
            ]
            if given is not None:
                regions = [hard(boxes, target["boxes"]) for boxes, target in zip(regions, given, strict=True)]
        detections, more = self.heads(maps, regions, batch.image_sizes, given)
        if self.training:
            return losses | more
        return self.transform.postprocess(detections, batch.image_sizes, sizes)

    @torch.no_grad()
    def find(self, image: Any, proposals: Any = None) -> dict[str, Any]:
        """The objects in one (H, W, 3) uint8 image: `boxes` (F, 4) as x0, y0, x1, y1 in pixels, `labels` (names) and
        `scores`, best first. The head "fast" needs (P, 4) `proposals`."""
        device = next(self.parameters()).device
        given = None if proposals is None else [torch.as_tensor(proposals, dtype=torch.float32, device=device)]
        self.eval()
        (found,) = self([as_tensor(image, device)], None, given)
        labels = [self.classes[label - 1] for label in found["labels"].tolist()]
        return {"boxes": found["boxes"].cpu().numpy(), "labels": labels, "scores": found["scores"].cpu().numpy()}


def as_tensor(image: Any, device: torch.device | str) -> Tensor:
    """(H, W, 3) uint8 as (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image.copy()).to(device).permute(2, 0, 1).float() / 255


def build_detector(backbone: Backbone, classes: Sequence[str], plan: Plan) -> Detector:
    """A detector that begins with the weights of `backbone`, which stays as it is; the rest is drawn from torch's
    global generator.

    AlexNet and VGG-16 give the map before their last pool, and regions of 6 x 6 or 7 x 7 cells go through their fc6 and
    fc7 (arXiv 1504.08083 §2.2; drawn anew where they were made for another size of map). ResNets give the map of
    layer3, and regions of 14 x 14 cells go through layer4 (arXiv 1506.01497 with arXiv 1512.03385 §A). Other networks
    give their deepest map of stride 16 or finer, and two new linear layers follow.

    Raises:
        DeepClusterError: the backbone has no such maps.
    """
    own = own_copy(backbone)
    maps, pyramid, head, width, pool = _pyramid(own) if plan.pyramid else _single(own, plan)
    predictor = FastRCNNPredictor(width, len(classes) + 1)
    nn.init.normal_(predictor.cls_score.weight, std=0.01)  # arXiv 1504.08083 §2.3
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    for part in (predictor.cls_score, predictor.bbox_pred):
        nn.init.zeros_(part.bias)
    heads = RoIHeads(
        pool,
        head,
        predictor,
        fg_iou_thresh=BACKGROUND[1],
        bg_iou_thresh=BACKGROUND[1],
        batch_size_per_image=plan.regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.3,
        detections_per_img=100,
    )
    transform = GeneralizedRCNNTransform(plan.min_size, plan.max_size, list(own.mean), list(own.std))
    return Detector(
        own.config,
        classes,
        plan,
        maps=maps,
        pyramid=pyramid,
        rpn=_proposing(maps, plan) if plan.head == "faster" else None,
        heads=heads,
        transform=transform,
    )


def _proposing(maps: Maps, plan: Plan) -> RegionProposalNetwork:
    """The region proposal network, with the numbers of arXiv 1506.01497 §3.3."""
    grids = [found.grid for found in maps.maps]
    if plan.pyramid:
        grids.append(Grid(grids[-1].stride * 2, grids[-1].first))
        sides: list[tuple[int, ...]] = [(PYRAMID_ANCHOR * grid.stride,) for grid in grids]
        if plan.anchors:
            if len(plan.anchors) != len(grids):
                raise DeepClusterError(f"A pyramid takes {len(grids)} anchors, one a level, not {len(plan.anchors)}.")
            sides = [(side,) for side in plan.anchors]
        channels = PYRAMID_WIDTH
    else:
        sides, channels = [plan.sides], maps.maps[-1].channels
    anchors = Anchors(grids, sides)
    (count,) = set(anchors.num_anchors_per_location())
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, count),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000} if plan.pyramid else {"training": 12000, "testing": 6000},
        post_nms_top_n={"training": 2000, "testing": 300},
        nms_thresh=0.7,
    )


Parts = tuple[Maps, Pyramid | None, nn.Module, int, nn.Module]
"""Maps, what stands on them, the head of regions and its width, the pooling of regions."""


def _single(backbone: Backbone, plan: Plan) -> Parts:
    trunk: Any = backbone.trunk
    maps = residual(backbone, ["layer3"])
    if maps is not None:
        found = maps.maps[-1]
        head: nn.Module = nn.Sequential(trunk.layer4, Mean())
        with torch.no_grad():
            width = head(torch.zeros(1, found.channels, 14, 14)).shape[1]
        return maps, None, head, width, RegionPool(found.grid, 14, plan.pool)
    maps = convolutions(backbone, drop_last_pool=isinstance(trunk, ConvThenLinear)) or tapped(backbone)
    found = maps.maps[-1]
    if isinstance(trunk, ConvThenLinear):
        side = 6 if backbone.name == "alexnet" else 7
        head, width = _fully_connected(trunk, found.channels * side**2, plan.redraw)
    else:
        side, width = 7, 1024
        head = TwoMLPHead(found.channels * side**2, width)
    return maps, None, head, width, RegionPool(found.grid, side, plan.pool)


def _pyramid(backbone: Backbone) -> Parts:
    maps = residual(backbone, LAYERS)
    if maps is None:
        raise DeepClusterError(f"{backbone.name} has no layer1 to layer4 for a pyramid to stand on: leave out --fpn.")
    pyramid = Pyramid([found.channels for found in maps.maps])
    pool = MultiScaleRoIAlign([str(level) for level in range(len(LAYERS))], 7, 2)
    return maps, pyramid, TwoMLPHead(PYRAMID_WIDTH * 7**2, 1024), 1024, pool


def _fully_connected(trunk: ConvThenLinear, inputs: int, redraw: bool) -> tuple[nn.Module, int]:
    """fc6 and fc7 with the ReLU and the dropout behind each."""
    fc6, fc7 = (layer for layer in trunk.classifier if isinstance(layer, nn.Linear))
    rate = next((layer.p for layer in trunk.classifier if isinstance(layer, nn.Dropout)), 0.0)
    if redraw or fc6.in_features != inputs:
        fc6, fc7 = nn.Linear(inputs, fc6.out_features), nn.Linear(fc7.in_features, fc7.out_features)
    head = nn.Sequential(
        nn.Flatten(), fc6, nn.ReLU(inplace=True), nn.Dropout(rate), fc7, nn.ReLU(inplace=True), nn.Dropout(rate)
    )
    if fc6 not in trunk.classifier:
        initialize_(head)
    return head, fc7.out_features


def pooling_of(backbone: Backbone, pyramid: bool) -> Literal["max", "align"]:
    """How the papers pool regions: by maxima for AlexNet and VGG-16, at exact places since ResNets and pyramids."""
    return "max" if isinstance(backbone.trunk, ConvThenLinear) and not pyramid else "align"


def fully_connected_taken(backbone: Backbone, plan: Plan) -> bool:
    """Whether the head's fc6 and fc7 begin as the backbone's."""
    trunk = backbone.trunk
    if not isinstance(trunk, ConvThenLinear) or plan.redraw:
        return False
    return trunk.side == (6 if backbone.name == "alexnet" else 7)


def save_detector(detector: Detector, file: Path) -> Path:
    """Writes one safetensors file that `load_detector` reads."""
    about = {"backbone": detector.config, "classes": detector.classes, "plan": dataclasses.asdict(detector.plan)}
    return save_network(detector, file, "detector", about)


def load_detector(file: Path | str, device: str = "cpu") -> Detector:
    """A detector that `voc-detection` trained, in evaluation mode: `load_detector(file).find(image)`.

    Raises:
        DeepClusterError: the file is missing, damaged, or no detector.
    """

    def build(backbone: Backbone, about: dict[str, Any]) -> nn.Module:
        plan: dict[str, Any] = about["plan"]
        plan = {name: tuple(value) if isinstance(value, list) else value for name, value in plan.items()}
        return build_detector(backbone, about["classes"], Plan(**plan))

    detector = read_network(file, "detector", build, device)
    assert isinstance(detector, Detector)
    return detector

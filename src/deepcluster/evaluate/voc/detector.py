"""Fast and Faster R-CNN on a backbone's feature maps, from the parts of torchvision.models.detection.

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
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou, roi_align, roi_pool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.tensor_file import load_network
from deepcluster.evaluate.voc.maps import (
    LAYERS,
    FeatureMaps,
    Grid,
    MapNetwork,
    batch_norms,
    linear_layers,
    resnet_maps,
    sequential_maps,
    tapped_map,
    trainable_copy,
)
from deepcluster.models.alexnet import ConvThenLinear
from deepcluster.models.backbone import Backbone
from deepcluster.models.convnet import Mean
from deepcluster.models.weight_init import initialize_

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors of each size (arXiv 1506.01497 §3.3)."""
NEAR = 0.1
"""Fast R-CNN learns background from proposals of at least this IoU with an object (arXiv 1504.08083 §2.3)."""


class Anchors(nn.Module):
    """Boxes of some sides and the shapes `RATIOS` around the center of each cell of some maps.

    torchvision's own take the first cell to lie at pixel 0, which padding moves. For each map there is the grid of its
    cells, and the sides: the square roots of the boxes' areas, in pixels.
    """

    def __init__(self, grids: Sequence[Grid], sides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.sides = tuple(tuple(level) for level in sides)

    def num_anchors_per_location(self) -> list[int]:
        """Boxes around each cell, for each map."""
        return [len(level) * len(RATIOS) for level in self.sides]

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """(A, 4) for each image: all boxes of all maps, row by row."""
        boxes = []
        for grid, sides, cells in zip(self.grids, self.sides, maps, strict=True):
            device = cells.device
            side = torch.tensor(sides, dtype=torch.float32, device=device).repeat(len(RATIOS))
            root = torch.tensor(RATIOS, device=device).sqrt().repeat_interleave(len(sides))
            half = torch.stack([-side / root, -side * root, side / root, side * root], 1) / 2
            rows, columns = (
                grid.first + 0.5 + grid.stride * torch.arange(length, device=device) for length in cells.shape[-2:]
            )
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centers = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            boxes.append((centers + half).reshape(-1, 4))
        return [torch.cat(boxes)] * len(images.image_sizes)


class RegionPool(nn.Module):
    """(R, C, side, side) from one map and R boxes, where the cells of that map, by its grid, really lie: "max" takes
    the cells nearest to a region's first and last pixel and the maxima between them, "align" reads between cells."""

    def __init__(self, grid: Grid, side: int, kind: Literal["max", "align"]) -> None:
        super().__init__()
        self.grid, self.side, self.kind = grid, side, kind

    def forward(self, maps: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        (cells,) = maps.values()
        stride, first = self.grid.stride, self.grid.first
        if self.kind == "max":
            shift = boxes[0].new_tensor([-first, -first, -first - 1, -first - 1])
            pooled: Tensor = roi_pool(cells, [box + shift for box in boxes], self.side, 1 / stride)
            return pooled
        moved = [box + (stride / 2 - 0.5 - first) for box in boxes]
        aligned: Tensor = roi_align(cells, moved, self.side, 1 / stride, sampling_ratio=2, aligned=True)
        return aligned


def near_objects(boxes: Tensor, truth: Tensor) -> Tensor:
    """Those of the boxes (P, 4) whose IoU with the truth (G, 4) is `NEAR` or more; all where none's is."""
    if not len(truth) or not len(boxes):
        return boxes
    near = box_iou(boxes, truth).amax(1) >= NEAR
    return boxes[near] if near.any() else boxes


ANCHORS = (128, 256, 512)
"""Sides of anchors in an image whose shorter side has `PAPER_SIZE` pixels (arXiv 1506.01497 §3.3)."""
PAPER_SIZE = 600
PYRAMID_ANCHOR = 8
"""Side of an anchor over the stride of its level of a pyramid (arXiv 1612.03144 §4.1)."""
PYRAMID_WIDTH = 256


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector is made of; see the options of `voc_detection` of the same names."""

    head: Literal["faster", "fast"] = "faster"
    fpn: bool = False
    pool: Literal["max", "align"] = "max"  # align: arXiv 1703.06870 §3
    min_size: int = 600
    max_size: int = 1000
    min_sizes: tuple[int, ...] = ()
    anchors: tuple[int, ...] = ()
    redraw: bool = False
    regions: int = 128

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the anchors on a single map."""
        return self.anchors or tuple(max(1, round(side * self.min_size / PAPER_SIZE)) for side in ANCHORS)


class Detector(MapNetwork):
    """Images -> boxes with class and score, or, while training, the losses.

    It starts from the weights of a backbone; the rest is drawn from torch's global generator.

    AlexNet and VGG-16 give the map before their last pool, and regions of 6 x 6 or 7 x 7 cells go through their fc6 and
    fc7 (arXiv 1504.08083 §2.2; drawn at random where they were made for another size of map). ResNets give the map of
    layer3, and regions of 14 x 14 cells go through layer4 (arXiv 1506.01497 with arXiv 1512.03385 §A). Other networks
    give their deepest map of stride 16 or finer, and two new linear layers follow.

    Args:
        backbone: copied, and left as it is.
        classes: names; class c has the label c + 1, and 0 is background.

    Raises:
        DeepClusterError: the backbone has no such maps.
    """

    kind = "detector"

    def __init__(self, backbone: Backbone, classes: Sequence[str], config: DetectorConfig) -> None:
        super().__init__()
        own = trainable_copy(backbone)
        self.about = {"backbone": own.config, "classes": tuple(classes), "config": dataclasses.asdict(config)}
        self.classes, self.config = tuple(classes), config
        self.maps, self.pyramid, head, width, pool = _pyramid(own) if config.fpn else _single_map(own, config)
        predictor = FastRCNNPredictor(width, len(classes) + 1)
        nn.init.normal_(predictor.cls_score.weight, std=0.01)  # arXiv 1504.08083 §2.3
        nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
        for layer in (predictor.cls_score, predictor.bbox_pred):
            nn.init.zeros_(layer.bias)
        self.rpn = _region_proposal_network(self.maps, config) if config.head == "faster" else None
        self.heads = RoIHeads(
            pool,
            head,
            predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.3,
            detections_per_img=100,
        )
        self.transform = GeneralizedRCNNTransform(config.min_size, config.max_size, list(own.mean), list(own.std))

    def train(self, mode: bool = True) -> Detector:
        """Batch-norm keeps its statistics, also in training."""
        super().train(mode)
        for layer in batch_norms(self):
            layer.eval()
        return self

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        proposals: Sequence[Tensor] = (),
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
        self.transform.min_size = (self.config.min_sizes if self.training else ()) or (self.config.min_size,)
        batch, given = self.transform(list(images), given)
        maps = {str(level): cells for level, cells in enumerate(self.maps(batch.tensors))}
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        losses: dict[str, Tensor] = {}
        if self.rpn is not None:
            regions, losses = self.rpn(batch, maps, given)
        else:
            regions = [
                resize_boxes(boxes, before, after)
                for boxes, before, after in zip(proposals, sizes, batch.image_sizes, strict=True)
            ]
            if given is not None:
                regions = [near_objects(boxes, target["boxes"]) for boxes, target in zip(regions, given, strict=True)]
        detections, head_losses = self.heads(maps, regions, batch.image_sizes, given)
        if self.training:
            return losses | head_losses
        return self.transform.postprocess(detections, batch.image_sizes, sizes)

    @torch.no_grad()
    def find(self, image: Any, proposals: Any = None) -> dict[str, Any]:
        """The objects in one (H, W, 3) uint8 image: `boxes` (F, 4) as x0, y0, x1, y1 in pixels, `labels` (names) and
        `scores`, best first. The head "fast" needs (P, 4) `proposals`."""
        device = next(self.parameters()).device
        given = [] if proposals is None else [torch.as_tensor(proposals, dtype=torch.float32, device=device)]
        self.eval()
        pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)
        (found,) = self([pixels.float() / 255], None, given)
        labels = [self.classes[label - 1] for label in found["labels"].tolist()]
        return {"boxes": found["boxes"].cpu().numpy(), "labels": labels, "scores": found["scores"].cpu().numpy()}


def _region_proposal_network(maps: FeatureMaps, config: DetectorConfig) -> RegionProposalNetwork:
    """With the numbers of arXiv 1506.01497 §3.3."""
    grids = [one.grid for one in maps.maps]
    sides: list[tuple[int, ...]] = [config.sides]
    channels = maps.maps[-1].channels
    if config.fpn:
        grids.append(Grid(grids[-1].stride * 2, grids[-1].first))
        if config.anchors and len(config.anchors) != len(grids):
            raise DeepClusterError(f"A pyramid takes {len(grids)} anchors, one a level, not {len(config.anchors)}.")
        sides = [(side,) for side in config.anchors or (PYRAMID_ANCHOR * grid.stride for grid in grids)]
        channels = PYRAMID_WIDTH
    anchors = Anchors(grids, sides)
    (count,) = set(anchors.num_anchors_per_location())
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, count),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000} if config.fpn else {"training": 12000, "testing": 6000},
        post_nms_top_n={"training": 2000, "testing": 300},
        nms_thresh=0.7,
    )


Parts = tuple[FeatureMaps, FeaturePyramidNetwork | None, nn.Module, int, nn.Module]
"""Maps, the pyramid on them, the head of regions and its width, the pooling of regions."""


def _single_map(backbone: Backbone, config: DetectorConfig) -> Parts:
    trunk: Any = backbone.trunk
    maps = resnet_maps(backbone, ["layer3"])
    if maps is not None:
        last = maps.maps[-1]
        head: nn.Module = nn.Sequential(trunk.layer4, Mean())
        with torch.no_grad():
            width = head(torch.zeros(1, last.channels, 14, 14)).shape[1]
        return maps, None, head, width, RegionPool(last.grid, 14, config.pool)
    maps = sequential_maps(backbone, drop_last_pool=isinstance(trunk, ConvThenLinear)) or tapped_map(backbone)
    last = maps.maps[-1]
    if isinstance(trunk, ConvThenLinear):
        side = _region_side(backbone)
        head, width = _fully_connected(trunk, last.channels * side**2, config.redraw)
    else:
        side, width = 7, 1024
        head = TwoMLPHead(last.channels * side**2, width)
    return maps, None, head, width, RegionPool(last.grid, side, config.pool)


def _pyramid(backbone: Backbone) -> Parts:
    maps = resnet_maps(backbone, LAYERS)
    if maps is None:
        raise DeepClusterError(f"{backbone.name} has no layer1 to layer4 to build a pyramid on: leave out --fpn.")
    pyramid = FeaturePyramidNetwork([one.channels for one in maps.maps], PYRAMID_WIDTH, LastLevelMaxPool())
    pool = MultiScaleRoIAlign([str(level) for level in range(len(LAYERS))], 7, 2)
    return maps, pyramid, TwoMLPHead(PYRAMID_WIDTH * 7**2, 1024), 1024, pool


def _fully_connected(trunk: ConvThenLinear, inputs: int, redraw: bool) -> tuple[nn.Module, int]:
    """fc6 and fc7, each followed by ReLU and dropout."""
    fc6, fc7, rate = linear_layers(trunk)
    redraw = redraw or fc6.in_features != inputs
    if redraw:
        fc6, fc7 = nn.Linear(inputs, fc6.out_features), nn.Linear(fc7.in_features, fc7.out_features)
    head = nn.Sequential(
        nn.Flatten(), fc6, nn.ReLU(inplace=True), nn.Dropout(rate), fc7, nn.ReLU(inplace=True), nn.Dropout(rate)
    )
    if redraw:
        initialize_(head)
    return head, fc7.out_features


def _region_side(backbone: Backbone) -> int:
    """Cells that AlexNet and VGG-16 pool a region to: the side of the map that their fc6 was made for at 224 px."""
    return 6 if backbone.name == "alexnet" else 7


def keeps_fully_connected(backbone: Backbone, config: DetectorConfig) -> bool:
    """Whether fc6 and fc7 of the head start from the backbone's weights."""
    trunk = backbone.trunk
    return isinstance(trunk, ConvThenLinear) and not config.redraw and trunk.side == _region_side(backbone)


def load_detector(file: Path | str, device: str = "cpu") -> Detector:
    """A detector that `voc-detection` trained, in evaluation mode: `load_detector(file).find(image)`.

    Raises:
        DeepClusterError: the file is missing, damaged, or not a detector.
    """
    return load_network(
        file,
        Detector.kind,
        lambda own, about: Detector(own, about["classes"], DetectorConfig(**about["config"])),
        device,
    )

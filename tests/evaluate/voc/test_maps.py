"""Where cells of maps lie, batch-norm that nobody trained, strides taken out: against what the network itself does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.voc.maps import (
    LAYERS,
    FeatureMaps,
    Grid,
    batch_norms,
    calibrate_batch_norms,
    dilate,
    freeze_batch_norms,
    interpolation,
    resnet_maps,
    sequential_maps,
    tapped_map,
    trainable_copy,
)
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone


def built(name: str, size: int = 64, **options: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(name, image_size=size, **options).eval()  # type: ignore[arg-type]


def fields(maps: FeatureMaps, level: int, height: int, width: int) -> tuple[list[float], list[int]]:
    """For some cells in the middle row the middle and the extent of the pixel columns they can see: those where a NaN
    reaches them. Nothing but the network is asked."""
    images = torch.zeros(width, 3, height, width)
    columns = torch.arange(width)
    images[columns, :, :, columns] = float("nan")
    with torch.no_grad():
        table = torch.cat([maps(part)[level].isnan().any(1).any(1) for part in torch.split(images, 16)]).numpy()
    whole = [
        cell for cell in range(table.shape[1]) if not table[0, cell] and not table[-1, cell] and table[:, cell].any()
    ]
    middles = [float(np.flatnonzero(table[:, cell]).mean()) for cell in whole]
    return middles, whole


@pytest.mark.parametrize(
    ("name", "options", "height", "width"),
    [
        ("convnet", {}, 8, 80),
        ("convnet", {"sobel": "paper"}, 8, 80),
        ("resnet18", {"stem": "small"}, 1, 56),
        ("alexnet", {"sobel": "deepercluster"}, 13, 120),
        ("alexnet", {}, 15, 120),
    ],
)
def test_grids_match_the_receptive_fields(name: str, options: dict[str, Any], height: int, width: int) -> None:
    backbone = built(name, 63 if name == "alexnet" else 32, **options)
    maps = sequential_maps(backbone, drop_last_pool=True) or resnet_maps(backbone, ["layer1", "layer2"])
    assert maps is not None
    if name == "alexnet":  # a field as high as 163 px; the first two stages show their grids in a smaller image
        maps = sequential_maps(backbone, drop_last_pool=True, strides=[8])
        assert maps is not None
        maps = FeatureMaps(maps.sobel, list(maps.parts[:1]), maps.maps[:1])
    for level, found in enumerate(maps.maps):
        middles, cells = fields(maps, level, height, width)
        assert len(cells) > 3
        expected = [found.grid.first + found.grid.stride * cell for cell in cells]
        np.testing.assert_allclose(middles, expected, atol=0.51)  # an even field has its middle between two pixels
        assert maps(torch.zeros(1, 3, height, width))[level].shape[1] == found.channels


@pytest.mark.slow
def test_grids_of_the_paper_networks() -> None:
    alexnet = sequential_maps(built("alexnet", 63), drop_last_pool=True)
    vgg = sequential_maps(built("vgg16", 32), drop_last_pool=True, strides=[8])
    assert alexnet and vgg
    # AlexNet by hand: conv1 (11 - 1) / 2 - 2 = 3, the pools add 1 * 4 and 1 * 8
    assert alexnet.maps[-1].grid == Grid(16, 15.0) and alexnet.maps[-1].channels == 256
    assert [found.grid for found in vgg.maps] == [Grid(8, 3.5), Grid(16, 7.5)]
    assert [found.channels for found in vgg.maps] == [256, 512]
    assert len(batch_norms(vgg)) == 13
    with pytest.raises(DeepClusterError, match=r"no pool of stride 64: it has 2, 4, 8, 16, 32"):
        sequential_maps(built("vgg16", 32), drop_last_pool=False, strides=[64])


def test_parts_compose_to_the_backbone() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    backbone = built("resnet18", 32, stem="small")
    maps = resnet_maps(backbone, LAYERS)
    assert maps
    with torch.no_grad():
        found = maps(images)
        torch.testing.assert_close(found[-1].mean((2, 3)), backbone(images))
    assert [cells.shape[1:] for cells in found] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert [about.grid for about in maps.maps] == [Grid(1, 0.0), Grid(2, 0.0), Grid(4, 0.0), Grid(8, 0.0)]
    convnet = built("convnet", 32, sobel="paper")
    assert resnet_maps(convnet, LAYERS) is None
    whole = sequential_maps(convnet, drop_last_pool=False)
    assert whole
    with torch.no_grad():
        torch.testing.assert_close(whole(images)[-1].mean((2, 3)), convnet(images))


def test_tapped_map_of_other_networks() -> None:
    network = built("timm:mobilenetv3_small_050", 64)
    maps = tapped_map(network)
    stride = maps.maps[0].grid.stride
    assert stride == 16 and maps(torch.zeros(1, 3, 96, 128))[0].shape == (1, maps.maps[0].channels, 6, 8)
    with pytest.raises(DeepClusterError, match="take a convolutional network"):
        tapped_map(built("timm:vit_tiny_patch16_224", 32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "halvings"),
    [
        ("resnet18", 2),
        pytest.param("resnet18", 1, marks=pytest.mark.slow),
        pytest.param("resnet50", 2, marks=pytest.mark.slow),
    ],
)
def test_dilation_keeps_the_cells_of_the_strided_map(name: str, halvings: int) -> None:
    backbone = built(name, stem="small")
    trunk: Any = backbone.trunk
    torch.manual_seed(0)
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        stem = trunk.relu(trunk.bn1(trunk.conv1(image)))
        before = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(stem))))
        dilate([trunk.layer2, trunk.layer3, trunk.layer4], halvings)
        maps = resnet_maps(backbone, ["layer4"])
        assert maps
        after = maps(image)[0]
    assert maps.maps[0].grid.stride == 8 // 2**halvings == 16 // after.shape[2]
    torch.testing.assert_close(
        after[..., :: 2**halvings, :: 2**halvings], before, rtol=1e-4, atol=1e-4 * float(before.max())
    )
    with pytest.raises(DeepClusterError, match="raise --stride"):
        dilate([trunk.layer4], 2)


def test_interpolation_matches_torch_where_cells_tile_the_image() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 1, 5, 7)
    theirs = F.interpolate(scores, (40, 56), mode="bilinear", align_corners=False)
    grid = Grid(8, 3.5)
    rows = interpolation(40, Grid(1, 0.0), 5, grid)
    columns = interpolation(56, Grid(1, 0.0), 7, grid)
    torch.testing.assert_close(rows @ scores[0, 0] @ columns.T, theirs[0, 0])


@pytest.mark.parametrize("cells", [1, 2, 9])
def test_interpolation_matches_numpy_for_any_grid(cells: int) -> None:
    values = np.random.default_rng(0).normal(size=cells)
    grid = Grid(16, 15.0)
    ours = interpolation(100, Grid(2, 0.5), cells, grid) @ torch.from_numpy(values).float()
    theirs = np.interp(0.5 + 2 * np.arange(100), 15.0 + 16 * np.arange(cells), values)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_only_untrained_batch_norms_are_calibrated() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)).eval()
    torch.manual_seed(0)
    images = torch.randn(8, 3, 10, 10) * 3 + 1
    calibrate_batch_norms(network, images)
    with torch.no_grad():
        first = network[0](images)
        out = network(images)
    assert isinstance(network[1], nn.BatchNorm2d) and network[1].running_mean is not None
    torch.testing.assert_close(network[1].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, first.var((0, 2, 3)))
    assert abs(float(out.mean())) < 1e-3 and abs(float(out.std()) - 1) < 1e-2  # what follows is normalized
    kept = network[1].running_mean.clone()
    calibrate_batch_norms(network, images + 5)
    assert torch.equal(network[1].running_mean, kept)
    assert not network[1].training and network[1].momentum == 0.1


def test_statistics_without_a_counter_are_kept() -> None:
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean = Tensor([1.0, 2.0])
    calibrate_batch_norms(norm, torch.randn(4, 2, 3, 3))
    assert norm.running_mean.tolist() == [1.0, 2.0]


def test_a_trainable_copy_leaves_the_original_unchanged() -> None:
    backbone = built("convnet")
    copied = trainable_copy(backbone)
    freeze_batch_norms(copied)
    next(copied.trunk.parameters()).data.zero_()
    assert next(backbone.trunk.parameters()).any()
    frozen = [name for name, weight in copied.named_parameters() if not weight.requires_grad]
    assert len(frozen) == 2 * len(batch_norms(copied)) and all(weight.requires_grad for weight in backbone.parameters())

"""A small network and a VOC set whose classes are colors, which some images show together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.models.zoo import build_backbone

from .make import Object, annotation, make_voc

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """24 images to train on and 12 to test, of three classes; every sixth has a difficult object of another."""
    random = np.random.default_rng(0)
    texts: dict[str, str] = {}
    painted: dict[str, tuple[int, int, int]] = {}
    splits: dict[str, list[str]] = {"trainval": [], "test": []}
    for number in range(36):
        name = f"{number:06d}"
        color = list(COLORS)[number % 3]
        objects: list[Object] = [(color, (2, 2, 20, 20), False)]
        if number % 6 == 5:
            objects.append((list(COLORS)[(number + 1) % 3], (5, 5, 9, 9), True))
        texts[name] = annotation(objects)
        red, green, blue = (np.array(COLORS[color]) + random.integers(-20, 20, 3)).tolist()
        painted[name] = (red, green, blue)
        splits["trainval" if number < 24 else "test"].append(name)
    return make_voc(tmp_path / "colors", splits, texts, colors=painted)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A drawn convnet for images of 16 px."""
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16, widths=(6, 12), pools=(1,)).eval()
    for layer in backbone.modules():  # else batch-norm would do nothing
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    return Subject("convnet, drawn", Model(backbone, torch.zeros(0, backbone.dim)), "cpu", tmp_path / "out")

"""Every method trains on views of several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepcluster as dc


@pytest.mark.parametrize(
    "preset", ["tiny-deepcluster", "tiny-deepercluster", "tiny-odc", "tiny-deepcluster-v2", "tiny-swav"]
)
def test_methods_train_on_small_views_too(preset: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 24, 24, 3), dtype=np.uint8)
    losses = []
    for count in (0, 3):
        values: dict[str, Any] = {
            "epochs": 1,
            "k": 8,
            "image_size": 24,
            "views": 2,
            "small_views": count,
            "small_view_size": 12,
        }
        run = dc.train(preset, images, tmp_path / str(count), quiet=True, **values)
        losses.append(run.metrics[0]["loss"])
    assert np.isfinite(losses).all() and losses[0] != losses[1]

"""Pictures of a run folder on its page: which, in what order, and how large."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from deepcluster.visualize.report import embedded_file, saved_pictures


def picture(path: Path, side: int = 40) -> Path:
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_known_pictures_in_order_and_nothing_else(tmp_path: Path) -> None:
    for name in ("purity", "map-tsne", "top-images-conv5", "filters", "top-images-conv1", "clusters", "mapping"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "confusion.png").write_bytes(b"torn")
    assert [each["title"] for each in saved_pictures(tmp_path)] == [
        "First-layer filters",
        "Images that excite filters of conv1 most",
        "Images that excite filters of conv5 most",
        "The features on a plane (tsne)",
        "Size and purity of clusters",
    ]
    assert saved_pictures(tmp_path / "nowhere") == []


def test_small_pictures_stay_as_they_are_and_large_ones_shrink(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 60)
    assert embedded_file(file, 10**6) == "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    small = embedded_file(picture(tmp_path / "b.png", 500), 60_000)
    assert small is not None and small.startswith("data:image/jpeg;base64,") and len(small) < 81_000
    image = Image.open(io.BytesIO(base64.b64decode(small.partition(",")[2])))
    assert 100 < image.width == image.height < 500

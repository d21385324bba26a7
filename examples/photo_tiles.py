"""A small folder of real images without a download: tiles of three photos that come with scikit-learn and matplotlib.

    python examples/photo_tiles.py runs/tiles
    deepcluster cluster runs/tiles --out runs/tile-groups

Each photo is a class folder, which `deepcluster evaluate runs/tile-groups clusters` compares the groups with.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE, STEP = 96, 48


def cut(folder: Path) -> int:
    """Writes the tiles; gives their number."""
    photos = {
        Path(name).stem: Image.fromarray(image)
        for name, image in zip(load_sample_images().filenames, load_sample_images().images, strict=True)
    }
    with get_sample_data("grace_hopper.jpg") as file:
        photos["portrait"] = Image.open(file).convert("RGB")
    written = 0
    for name, photo in photos.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for top in range(0, photo.height - SIDE + 1, STEP):
            for left in range(0, photo.width - SIDE + 1, STEP):
                photo.crop((left, top, left + SIDE, top + SIDE)).save(folder / name / f"{top:03d}-{left:03d}.png")
                written += 1
    return written


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {cut(Path(sys.argv[1]))} tiles of 3 photos")

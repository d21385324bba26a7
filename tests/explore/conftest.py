"""A real run on a folder whose file names are as bad as file names get, and an explorer of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run, load_run
from deepcluster.explore.explorer import Explorer
from restarts import settings

HOSTILE = (
    'a "quoted" & <b>bold<b>.png',
    "new\nline.png",
    "fox \N{FOX FACE} é.png",
    "<img src=x onerror=document.title='owned'>.png",
    "back\\slash 'single' %2e%2e .png",
)
SHADES = {"red": (200, 40, 30), "green": (30, 180, 50), "blue": (40, 60, 210), "<i>gray": (128, 128, 128)}


def write_images(folder: Path, each: int = 24) -> None:
    """Four classes of noisy squares in class folders; hostile names, a broken file, and two images that are equal."""
    draw = np.random.default_rng(0)
    for number, (name, shade) in enumerate(SHADES.items()):
        place = folder / name
        place.mkdir(parents=True)
        for k in range(each):
            picture = np.clip(np.asarray(shade) + draw.integers(-30, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            file = HOSTILE[k] if number == 0 and k < len(HOSTILE) else f"{k:03d}.png"
            Image.fromarray(picture).save(place / file)
    shutil.copy(folder / "green" / "001.png", folder / "green" / "twin of 001.png")
    (folder / "blue" / "broken.png").write_bytes(b"no image at all")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore") / "photos"
    write_images(folder)
    return folder


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explore") / "run"
    train.train(settings(epochs=3, k=6), str(photos), out, screen=Screen(quiet=True))
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of the run that a test may write to."""
    shutil.copytree(trained, tmp_path / "run")
    return load_run(tmp_path / "run", device="cpu")


@pytest.fixture
def explorer(run: Run) -> Iterator[Explorer]:
    opened = Explorer(run)
    opened.jobs["images"].wait(60)
    yield opened
    opened.close()


@pytest.fixture
def outlier(explorer: Explorer) -> int:
    """An image that is much farther from its center than the others of the largest cluster; whether training leaves
    one depends on the processor's rounding."""
    catalog = explorer.catalog
    members = np.flatnonzero(explorer.groups.group == np.bincount(explorer.groups.group.clip(min=0)).argmax())
    catalog.own[members[0]] = 9 * np.nanmax(catalog.own[members])
    catalog.version += 1
    return int(members[0])

"""Images that a GPU holds are the same as those in memory, in every way to make views of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deepcluster as dc
from deepcluster.data import resident
from deepcluster.data.cache import StoredPixels, load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.resident import ImagesOnDevice, held
from deepcluster.data.transforms import CenterCrop, RandomCrop, RandomViews, TenCrop, Transform
from deepcluster.data.views import ViewGroup
from interpreter import NEEDS_GPU

CPU = torch.device("cpu")
GROUP = ViewGroup(size=12, count=2, brightness=0.4, hue=0.1, gray=0.2)
TRANSFORMS: list[Transform] = [
    RandomViews(GROUP, ViewGroup(size=6, crop_scale=(0.05, 0.14), blur=0.5)),
    CenterCrop(12),
    CenterCrop(80),
    RandomCrop(12),
    RandomCrop(80),
    TenCrop(12),
]
SIZES = {"one": ((14, 13), (14, 13)), "tiny": ((12, 12), (40, 40)), "many": ((9, 20), (70, 60))}


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor were a GPU with a GB of its own."""
    monkeypatch.setattr(resident, "free_bytes", lambda device: 1 << 30)


@pytest.fixture(params=SIZES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """40 images of one size, of sizes that are resized by products, or of any; three are damaged, also the last."""
    rng = np.random.default_rng(0)
    for k in range(40):
        height, width = (rng.integers(low, high + 1) for low, high in zip(*SIZES[request.param], strict=True))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{k}.png")
    for k in (4, 20, 39):
        (tmp_path / f"{k}.png").write_bytes(b"damaged")
    return tmp_path


def stored(folder: Path, cache: Path | None = None) -> StoredPixels:
    small = 1 << 20 if cache is None else 0
    pixels = load_pixels(open_images(str(folder)), short_side=None, cache_gb=1, directory=cache, small=small)
    assert isinstance(pixels, StoredPixels)
    return pixels


@pytest.mark.parametrize("in_file", [False, True])
def test_every_image_is_there(
    folder: Path, in_file: bool, tmp_path_factory: pytest.TempPathFactory, room: None
) -> None:
    pixels = stored(folder, tmp_path_factory.mktemp("cache") if in_file else None)
    index = np.random.default_rng(1).permutation(40)
    expected = pixels.gather(index)
    pixels.hold(CPU)
    found = pixels.gather(index)
    assert isinstance(found, ImagesOnDevice) and len(found) == 40 and (pixels.entry is not None) == in_file
    for part, those in ((found, expected), (found[5:9], expected[5:9])):
        for one, other in zip(part, those, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                np.testing.assert_array_equal(one, other)


def test_crops_are_cut_also_at_the_end_of_the_table(room: None) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
    pixels = load_pixels(open_images(array), short_side=None, cache_gb=1)
    pixels.hold(CPU)
    images = pixels.gather(np.array([2, 0, 2]))
    assert isinstance(images, ImagesOnDevice)
    box = np.array([[8, 6, 1, 1], [2, 1, 5, 6], [0, 0, 9, 7]])
    block = images.cut(box).numpy()
    assert block.shape == (3, 9, 7, 3)
    for place, image, (top, left, height, width) in zip(block, array[[2, 0, 2]], box.tolist(), strict=True):
        np.testing.assert_array_equal(place[:height, :width], image[top : top + height, left : left + width])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda each: f"{type(each).__name__}{getattr(each, 'size', '')}")
def test_batches_are_the_same_bits(folder: Path, transform: Transform, room: None) -> None:
    """Batches of good images, with bad ones among them, and of bad ones alone."""
    pixels = stored(folder)
    order = [*np.random.default_rng(2).permutation(40), 4, 20, 39, 4, 20, 39, 4]

    def batches() -> list[object]:
        loader = Loader(pixels, order, batch_size=7, transform=transform, key=(3,), empty=True)
        return [(batch.index, batch.views, batch.position, batch.whole) for batch in loader]

    expected = batches()
    pixels.hold(CPU)
    torch.testing.assert_close(batches(), expected, rtol=0, atol=0)


def test_what_does_not_fit_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this processor, too, and then nothing is read before it is asked for."""
    array = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    for k, picture in enumerate(array):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    pixels = stored(tmp_path, tmp_path / "cache")
    assert pixels.entry is not None and pixels.pixels.nbytes == 20 * 192
    pixels.entry.unseen[:] = True
    for room, held_there in ((0, False), (4 * 20 * 192 - 1, False), (4 * 20 * 192, True)):
        if room:
            monkeypatch.setattr(resident, "free_bytes", lambda device, room=room: room)
        pixels.hold(CPU)
        assert (pixels.on_device is not None) == held_there and pixels.entry.unseen.all() != held_there


def test_a_copy_comes_in_pieces_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "CHUNK", 50)
    pixels = np.arange(120, dtype=np.uint8)
    copy = held(pixels, 4, CPU)
    assert copy is not None and copy.tolist() == [*range(120), *[0] * 12]

    def full(*shape: int, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "zeros", full)
    assert held(pixels, 4, CPU) is None


def test_a_run_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[bool] = []
    gather = StoredPixels.gather

    def watched(pixels: StoredPixels, index: np.ndarray) -> object:
        images = gather(pixels, index)
        gathered.append(isinstance(images, ImagesOnDevice))
        return images

    monkeypatch.setattr(StoredPixels, "gather", watched)
    runs = []
    for room in (0, 1 << 30):
        monkeypatch.setattr(resident, "free_bytes", lambda device, room=room: room)
        gathered.clear()
        array = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
        runs.append(dc.train("tiny-deepcluster", data=array, out=tmp_path / str(room), epochs=2, k=4))
        assert all(gathered) == any(gathered) == bool(room)
    one, other = (run.backbone.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(runs[0].assignment, runs[1].assignment)


@NEEDS_GPU
def test_on_a_gpu_images_are_uploaded_once(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    pixels = load_pixels(open_images(array), short_side=None, cache_gb=1)
    options: dict[str, Any] = {"batch_size": 16, "transform": TRANSFORMS[0], "device": "cuda", "prefetch": 0}
    expected = [batch.views for batch in Loader(pixels, np.arange(64), **options)]
    pixels.hold(torch.device("cuda"))
    found = [batch.views for batch in Loader(pixels, np.arange(64), **options)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in Loader(pixels, np.arange(64), **options):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")

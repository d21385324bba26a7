"""A loader gives the same batches whatever is made ahead, from wherever it starts, and ends when it is left."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.data.augment import center_crop
from deepcluster.data.cache import Pixels, StreamedPixels, load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.transforms import CenterCrop, RandomCrop, RandomViews, TenCrop, Transform
from deepcluster.data.views import ViewGroup
from deepcluster.distributed import ProcessGroup
from deepcluster.types import Batch

GROUP = ViewGroup(size=12, count=2, brightness=0.4, hue=0.1, gray=0.2)
VIEWS = RandomViews(GROUP, ViewGroup(size=6, crop_scale=(0.05, 0.14), blur=0.5))


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 14, 13, 3), dtype=np.uint8)


@pytest.fixture
def pixels(array: np.ndarray) -> Pixels:
    return load_pixels(open_images(array), short_side=None, cache_gb=1)


@pytest.fixture
def folder(tmp_path: Path, array: np.ndarray) -> Path:
    for k, picture in enumerate(array):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    for k in (4, 20, 21):
        (tmp_path / f"{k}.png").write_bytes(b"damaged")
    return tmp_path


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.index, b.index) and all(torch.equal(u, v) for u, v in zip(a.views, b.views, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_batches_cover_the_order(pixels: Pixels, array: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(50)
    batches = list(Loader(pixels, order, batch_size=8, transform=CenterCrop(12)))
    np.testing.assert_array_equal(torch.cat([batch.index for batch in batches]), order)
    expected = center_crop(list(array[order]), 12)
    assert torch.equal(torch.cat([batch.views[0] for batch in batches]), expected)
    assert len(batches) == 7 and len(batches[-1].index) == 2


SHARED: dict[str, Transform] = {
    "views": RandomViews(replace(GROUP, jitter=0.8, rotate=5), replace(GROUP, size=6, count=1), lighting=0.1),
    "random crop": RandomCrop(8),
    "center crop": CenterCrop(8),
    "ten crops": TenCrop(8),
}


@pytest.mark.parametrize("size", [2, 3, 60])
@pytest.mark.parametrize("name", SHARED)
def test_processes_share_a_batch_equal_to_one_process(folder: Path, size: int, name: str) -> None:
    """Blocks of color jitter, undecodable images and more processes than images included."""
    order, views = np.random.default_rng(3).permutation(50), SHARED[name]
    stored = load_pixels(open_images(str(folder)), short_side=None, cache_gb=1)
    alone = list(Loader(stored, order, batch_size=40, transform=views, key=(5, 1)))
    parts = [
        list(Loader(stored, order, batch_size=40, transform=views, key=(5, 1), empty=True, group=ProcessGroup(r, size)))
        for r in range(size)
    ]
    assert all(len(part) == len(alone) == 2 for part in parts)
    for number, one in enumerate(alone):
        shared = [part[number] for part in parts]
        assert one.whole == (40, 10)[number] and all(batch.whole == one.whole for batch in shared)
        assert torch.equal(torch.cat([batch.index for batch in shared]), one.index)
        assert torch.equal(torch.cat([batch.position for batch in shared]), one.position)
        for view in range(len(one.views)):
            # views are made some at a time, and where those begin moves the last digit
            torch.testing.assert_close(
                torch.cat([batch.views[view] for batch in shared]), one.views[view], rtol=0, atol=1e-5
            )
    streamed = StreamedPixels(open_images(str(folder)), None, workers=1)
    two = [
        list(Loader(each, order, batch_size=40, transform=views, key=(5, 1), empty=True, group=ProcessGroup(1, 2)))
        for each in (stored, streamed)
    ]
    assert same(*two)


def test_thread_ends_where_no_image_can_be_decoded(tmp_path: Path) -> None:
    """A long row of undecodable images gives no batch, yet the thread that looks for one must end."""
    for k in range(600):
        (tmp_path / f"{k:03d}.png").write_bytes(b"damaged")
    pixels = StreamedPixels(open_images(str(tmp_path)), None, workers=1)
    assert list(Loader(pixels, np.arange(600), batch_size=4, transform=CenterCrop(8))) == []
    empty = Loader(pixels, np.arange(600), batch_size=4, transform=CenterCrop(8), empty=True)
    arriving = iter(empty)
    assert len(next(arriving).index) == 0
    arriving.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deepcluster-loader")]


def test_same_batches_for_any_prefetch_and_again(pixels: Pixels) -> None:
    def loader(prefetch: int, key: tuple[int, ...] = (1, 2)) -> Loader:
        return Loader(pixels, np.arange(50), batch_size=8, transform=VIEWS, key=key, prefetch=prefetch)

    first = list(loader(0))
    assert [view.shape[2] for view in first[0].views] == [12, 12, 6]
    assert not torch.equal(*first[0].views[:2])
    two = loader(2)
    assert same(first, list(two)) and same(first, list(two)) and same(first, list(loader(7)))
    assert not same(first, list(loader(0, key=(1, 3))))


@pytest.mark.parametrize("start", [0, 3, 6, 7])
def test_start_resumes_at_a_batch(pixels: Pixels, start: int) -> None:
    load = partial(Loader, batch_size=8, transform=VIEWS, key=(5,))
    whole = list(load(pixels, np.arange(50)))
    rest = load(pixels, np.arange(50), start=start)
    assert len(rest) == 7 - start and same(whole[start:], list(rest))


@pytest.mark.parametrize("workers", [1, 2])
def test_streamed_equals_stored_and_drops_bad_images(folder: Path, workers: int) -> None:
    source = open_images(folder)
    stored = load_pixels(source, short_side=None, cache_gb=1)
    streamed = StreamedPixels(source, None, workers)
    load = partial(Loader, batch_size=7, transform=VIEWS, key=(5,))
    order = np.tile(np.random.default_rng(1).permutation(50), 6)  # enough to be worth decoding processes
    first, second = list(load(stored, order)), list(load(streamed, order))
    assert same(first, second) and same(second, list(load(streamed, order)))
    index = torch.cat([batch.index for batch in second])
    assert sorted(index.tolist()) == sorted([k for k in range(50) if k not in (4, 20, 21)] * 6)
    assert set(streamed.bad) == {4, 20, 21} and "not an image" in streamed.bad[4]
    assert all(len(batch.index) == len(batch.views[0]) for batch in second)


def test_bad_images_change_no_other_view(folder: Path) -> None:
    load = partial(Loader, batch_size=50, transform=VIEWS, key=(5,))
    broken = next(iter(load(load_pixels(open_images(folder), short_side=None, cache_gb=1), np.arange(50))))
    for k in (4, 20, 21):
        Image.new("RGB", (13, 14)).save(folder / f"{k}.png")
    repaired = next(iter(load(load_pixels(open_images(folder), short_side=None, cache_gb=1), np.arange(50))))
    for one, other in zip(broken.views, repaired.views, strict=True):
        torch.testing.assert_close(one, other[broken.index], atol=1e-4, rtol=0)


def test_positions_lead_back_to_the_order(folder: Path) -> None:
    """How a caller finds the label, or anything else, that goes with each image of its order."""
    pixels = load_pixels(open_images(folder), short_side=None, cache_gb=1)
    order = np.random.default_rng(2).integers(0, 50, 70)
    for start in (0, 3):
        batches = list(Loader(pixels, order, batch_size=8, transform=CenterCrop(12), start=start, empty=True))
        places = [batch.first + batch.position.numpy() for batch in batches]
        for batch, place in zip(batches, places, strict=True):
            np.testing.assert_array_equal(order[place], batch.index)
        bad = np.flatnonzero(np.isin(order, [4, 20, 21]))
        np.testing.assert_array_equal(np.concatenate(places), np.setdiff1d(np.arange(8 * start, 70), bad))


def test_batch_of_bad_images_is_left_out(folder: Path) -> None:
    pixels = load_pixels(open_images(folder), short_side=None, cache_gb=1)
    batches = list(Loader(pixels, [20, 21, 1, 2], batch_size=2, transform=CenterCrop(12)))
    assert [batch.index.tolist() for batch in batches] == [[1, 2]]


def loader_threads() -> int:
    return sum(thread.name.startswith("deepcluster-loader") for thread in threading.enumerate())


def test_leaving_early_ends_the_thread(pixels: Pixels) -> None:
    for _ in Loader(pixels, np.arange(50), batch_size=2, transform=VIEWS, prefetch=1):
        break
    batches = iter(Loader(pixels, np.arange(50), batch_size=2, transform=VIEWS))
    next(batches)
    del batches
    assert loader_threads() == 0


def test_errors_reach_the_caller(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: np.ndarray) -> list[np.ndarray]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(pixels, "gather", broken)
    for prefetch in (0, 2):
        with pytest.raises(OSError, match="the disk is gone"):
            list(Loader(pixels, np.arange(50), batch_size=8, transform=VIEWS, prefetch=prefetch))
    assert loader_threads() == 0


def test_global_generator_and_threads_are_unchanged(pixels: Pixels, folder: Path) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    list(Loader(pixels, np.arange(50), batch_size=8, transform=VIEWS))
    list(Loader(StreamedPixels(open_images(folder), None, 2), np.arange(300) % 50, batch_size=8, transform=VIEWS))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads

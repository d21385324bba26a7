"""A loader gives the same batches whatever is made ahead, from wherever it starts, and ends when it is left."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.data import decode_pool as streaming
from deepcluster.data.augment import plain
from deepcluster.data.cache import Pixels, StreamedPixels, load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.views import Views
from deepcluster.distributed import ProcessGroup
from deepcluster.types import Batch

VIEWS = Views(size=12, count=2, brightness=0.4, hue=0.1, gray=0.2)


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


def test_covers_the_order_with_plain_views(pixels: Pixels, array: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(50)
    batches = list(Loader(pixels, order, batch_size=8, size=12))
    np.testing.assert_array_equal(torch.cat([batch.index for batch in batches]), order)
    expected = plain(list(array[order]), 12)
    assert torch.equal(torch.cat([batch.views[0] for batch in batches]), expected)
    assert len(batches) == 7 and len(batches[-1].index) == 2
    assert len(list(Loader(pixels, order, batch_size=8, size=12, drop_last=True))) == 6


@pytest.mark.parametrize("size", [2, 3, 60])
def test_processes_share_a_batch_as_one_would_make_it(folder: Path, size: int) -> None:
    """Blocks of color jitter, undecodable images and more processes than images included."""
    order, views = np.random.default_rng(3).permutation(50), replace(VIEWS, jitter=0.8, rotate=5)
    stored = load_pixels(open_images(str(folder)), short_side=None, cache_gb=1)
    alone = list(Loader(stored, order, batch_size=40, views=views, key=(5, 1)))
    parts = [
        list(Loader(stored, order, batch_size=40, views=views, key=(5, 1), empty=True, group=ProcessGroup(r, size)))
        for r in range(size)
    ]
    assert all(len(part) == len(alone) == 2 for part in parts)
    for number, one in enumerate(alone):
        shared = [part[number] for part in parts]
        assert one.whole == (40, 10)[number] and all(batch.whole == one.whole for batch in shared)
        assert torch.equal(torch.cat([batch.index for batch in shared]), one.index)
        assert torch.equal(torch.cat([batch.position for batch in shared]), one.position)
        for view in range(2):
            # views are made some at a time, and where those begin moves the last digit
            torch.testing.assert_close(
                torch.cat([batch.views[view] for batch in shared]), one.views[view], rtol=0, atol=1e-5
            )
    streamed = StreamedPixels(open_images(str(folder)), None, workers=1)
    two = list(Loader(streamed, order, batch_size=40, views=views, key=(5, 1), empty=True, group=ProcessGroup(1, 2)))
    assert same(
        two, list(Loader(stored, order, batch_size=40, views=views, key=(5, 1), empty=True, group=ProcessGroup(1, 2)))
    )


def test_a_loader_that_finds_nothing_can_be_left(tmp_path: Path) -> None:
    """A long row of undecodable images gives no batch, yet the thread that looks for one must end."""
    for k in range(600):
        (tmp_path / f"{k:03d}.png").write_bytes(b"damaged")
    pixels = StreamedPixels(open_images(str(tmp_path)), None, workers=1)
    assert list(Loader(pixels, np.arange(600), batch_size=4, size=8)) == []
    empty = Loader(pixels, np.arange(600), batch_size=4, size=8, empty=True)
    arriving = iter(empty)
    assert len(next(arriving).index) == 0
    arriving.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "deepcluster-loader"]


def test_same_batches_for_any_prefetch_and_again(pixels: Pixels) -> None:
    def loader(prefetch: int, key: tuple[int, ...] = (1, 2)) -> Loader:
        return Loader(pixels, np.arange(50), batch_size=8, views=VIEWS, key=key, prefetch=prefetch)

    first = list(loader(0))
    assert len(first[0].views) == 2 and not torch.equal(*first[0].views)
    two = loader(2)
    assert same(first, list(two)) and same(first, list(two)) and same(first, list(loader(7)))
    assert not same(first, list(loader(0, key=(1, 3))))


@pytest.mark.parametrize("start", [0, 3, 6, 7])
def test_start_goes_on_where_it_stood(pixels: Pixels, start: int) -> None:
    options = {"batch_size": 8, "views": VIEWS, "key": (5,)}
    whole = list(Loader(pixels, np.arange(50), **options))
    rest = Loader(pixels, np.arange(50), start=start, **options)
    assert len(rest) == 7 - start and same(whole[start:], list(rest))


@pytest.mark.parametrize("workers", [1, 2])
def test_streamed_equals_stored_and_drops_bad_images(
    folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "FEW", 0)
    source = open_images(folder)
    stored = load_pixels(source, short_side=None, cache_gb=1)
    streamed = StreamedPixels(source, None, workers)
    options = {"batch_size": 7, "views": VIEWS, "key": (5,)}
    order = np.random.default_rng(1).permutation(50)
    first, second = list(Loader(stored, order, **options)), list(Loader(streamed, order, **options))
    assert same(first, second) and same(second, list(Loader(streamed, order, **options)))
    index = torch.cat([batch.index for batch in second])
    assert sorted(index.tolist()) == sorted(set(range(50)) - {4, 20, 21})
    assert set(streamed.bad) == {4, 20, 21} and "not an image" in streamed.bad[4]
    assert all(len(batch.index) == len(batch.views[0]) for batch in second)


def test_bad_images_change_no_other_view(folder: Path) -> None:
    options = {"batch_size": 50, "views": VIEWS, "key": (5,)}
    broken = next(iter(Loader(load_pixels(open_images(folder), short_side=None, cache_gb=1), np.arange(50), **options)))
    for k in (4, 20, 21):
        Image.new("RGB", (13, 14)).save(folder / f"{k}.png")
    mended = next(iter(Loader(load_pixels(open_images(folder), short_side=None, cache_gb=1), np.arange(50), **options)))
    torch.testing.assert_close(broken.views[1], mended.views[1][broken.index], atol=1e-4, rtol=0)


def test_a_batch_of_bad_images_is_left_out(folder: Path) -> None:
    pixels = load_pixels(open_images(folder), short_side=None, cache_gb=1)
    batches = list(Loader(pixels, [20, 21, 1, 2], batch_size=2, size=12))
    assert [batch.index.tolist() for batch in batches] == [[1, 2]]


def loader_threads() -> int:
    return sum(thread.name == "deepcluster-loader" for thread in threading.enumerate())


def test_leaving_early_ends_the_thread(pixels: Pixels) -> None:
    for _ in Loader(pixels, np.arange(50), batch_size=2, views=VIEWS, prefetch=1):
        break
    batches = iter(Loader(pixels, np.arange(50), batch_size=2, views=VIEWS))
    next(batches)
    del batches
    assert loader_threads() == 0


def test_errors_reach_the_caller(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: np.ndarray) -> list[np.ndarray]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(pixels, "gather", broken)
    for prefetch in (0, 2):
        with pytest.raises(OSError, match="the disk is gone"):
            list(Loader(pixels, np.arange(50), batch_size=8, prefetch=prefetch))
    assert loader_threads() == 0


def test_leaves_global_state_alone(pixels: Pixels, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "FEW", 0)
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    list(Loader(pixels, np.arange(50), batch_size=8, views=VIEWS))
    list(Loader(StreamedPixels(open_images(folder), None, 2), np.arange(50), batch_size=8, views=VIEWS))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads

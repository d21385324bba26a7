"""Pictures are decoded once, found again, whole or not at all, and never beyond the budget."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.data import cache, storage
from deepcluster.data.cache import StoredPixels, StreamedPixels, load_pixels
from deepcluster.data.cache_entry import evict
from deepcluster.data.open import open_images
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.retrieval.images import ImageSubset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for k in range(20):
        shape = (*rng.integers(8, 30, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{k}.png")
    (root / "7.png").write_bytes((root / "7.png").read_bytes()[:90])
    (root / "12.png").write_bytes(b"")
    return root


def check(pixels: cache.Pixels, folder: Path, short_side: int | None = None) -> None:
    source = open_images(folder)
    index = np.array([3, 7, 0, 19, 3, 12])
    got = pixels.gather(index)
    assert got[1] is None and got[5] is None
    for k in (0, 2, 3, 4):
        np.testing.assert_array_equal(got[k], source.read(int(index[k]), short_side))
    assert set(pixels.bad) == {7, 12} and pixels.bad[12] == "empty file"
    np.testing.assert_array_equal(pixels.good, np.setdiff1d(np.arange(20), [7, 12]))
    assert len(pixels) == 20


@pytest.mark.parametrize("short_side", [None, 10])
def test_in_memory(folder: Path, short_side: int | None, tmp_path: Path) -> None:
    pixels = load_pixels(open_images(folder), short_side=short_side, cache_gb=1, directory=tmp_path / "c")
    check(pixels, folder, short_side)
    assert isinstance(pixels, StoredPixels) and not (tmp_path / "c").exists()


def test_more_than_estimated_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 3)
    monkeypatch.setattr(cache, "_estimate", lambda *_: 100)
    check(load_pixels(open_images(folder), short_side=None, cache_gb=1), folder)


def test_images_are_never_in_memory_twice(tmp_path: Path) -> None:
    import tracemalloc

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    source = open_images([str(tmp_path / "0.png")] * 1500)
    load = partial(load_pixels, source, short_side=None, cache_gb=1, workers=1)
    load()  # what is imported on the way is not measured
    tracemalloc.start()
    pixels = load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(pixels, StoredPixels) and len(pixels.pixels) == 1500 * 64 * 64 * 3
    assert peak < 1.5 * len(pixels.pixels)


def test_on_disk_and_found_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 3)
    done: list[tuple[int, int]] = []
    load = partial(load_pixels, short_side=16, cache_gb=1, small=0, directory=tmp_path / "c")
    pixels = load(open_images(folder), progress=lambda *at: done.append(at))
    check(pixels, folder, 16)
    assert done[-1] == (20, 20) and done == sorted(done) and len(done) == 7
    (entry,) = (tmp_path / "c" / "pixels").iterdir()
    stamp = (entry / "pixels.bin").stat().st_mtime_ns
    check(load(open_images(folder), progress=lambda *_: pytest.fail("decoded again")), folder, 16)
    assert (entry / "pixels.bin").stat().st_mtime_ns == stamp


def test_several_processes_decode_as_one(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / f"{k % 20}.png") for k in range(300)]  # enough to be worth decoding processes
    one, two = (
        load_pixels(open_images(paths), short_side=None, cache_gb=1, small=0, directory=tmp_path / str(n), workers=n)
        for n in (1, 2)
    )
    assert isinstance(one, StoredPixels) and isinstance(two, StoredPixels) and one.bad == two.bad
    np.testing.assert_array_equal(one.pixels, two.pixels)
    np.testing.assert_array_equal(one.sizes, two.sizes)


def test_other_images_or_size_are_another_entry(folder: Path, tmp_path: Path) -> None:
    for short_side in (16, 12):
        load_pixels(open_images(folder), short_side=short_side, cache_gb=1, small=0, directory=tmp_path / "c")
    Image.new("RGB", (9, 9)).save(folder / "3.png")
    pixels = load_pixels(open_images(folder), short_side=16, cache_gb=1, small=0, directory=tmp_path / "c")
    (image,) = pixels.gather(np.array([3]))
    assert image is not None and image.max() == 0
    assert len(list((tmp_path / "c" / "pixels").iterdir())) == 3


def stored(folder: Path, tmp_path: Path, **more: Any) -> StoredPixels:
    source = open_images(folder)
    pixels = load_pixels(source, short_side=None, cache_gb=1, small=0, directory=tmp_path / "c", **more)
    assert isinstance(pixels, StoredPixels)
    return pixels


def bitmap(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([np.full((8, 50, 3), value), np.zeros((40, 50, 3))]).astype(np.uint8)).save(
        buffer,
        "bmp",  # from the lowest row on, so that the first bytes are alike
    )
    return buffer.getvalue()


def same_from_outside(place: Path, form: str, values: range) -> str:
    """Images whose names, sizes, dates and first bytes are those of all others."""
    place.mkdir(exist_ok=True)
    if form == "tar":
        with tarfile.open(place / "a.tar", "w") as archive:
            for k, value in enumerate(values):
                about = tarfile.TarInfo(f"{k}.bmp")
                about.size = len(bitmap(value))
                archive.addfile(about, io.BytesIO(bitmap(value)))
    elif form == "npy":
        np.save(place / "a.npy", np.stack([np.full((9, 9), value, np.uint8) for value in values]))
    else:
        for k, value in enumerate(values):
            (place / "new").write_bytes(bitmap(value))
            (place / "new").replace(place / f"{k}.bmp")
    for file in place.iterdir():
        os.utime(file, (1e9, 1e9))
    return str(place if form == "folder" else place / f"a.{form}")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("form", ["folder", "tar", "npy", "subset"])
def test_an_entry_is_believed_for_its_own_images_only(
    form: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FRESH", 0.0 if known else 1e6)  # whether marks can be told
    for name in ("HASHED", "SAMPLED", "PIECE"):  # fingerprints read next to nothing, as of a large source
        monkeypatch.setattr(storage, name, 1)

    def values(source: str, **more: Any) -> list[int]:
        images = ImageSubset(open_images(source), np.arange(4, -1, -1)) if form == "subset" else open_images(source)
        pixels = load_pixels(images, short_side=None, cache_gb=1, small=0, directory=tmp_path / "c", **more)
        return [int(image[0, 0, 0]) for image in pixels.gather(np.arange(len(pixels))) if image is not None]

    kind, step = ("folder", -1) if form == "subset" else (form, 1)
    one = same_from_outside(tmp_path / "one", kind, range(10, 16))
    other = same_from_outside(tmp_path / "other", kind, range(20, 26))
    first = values(one)
    if known or kind == form != "npy":  # nothing is decoded twice
        assert values(one, progress=lambda *_: pytest.fail("decoded again")) == first
    assert first == [*range(10, 16)][::step][-len(first) :]
    assert values(other) == [*range(20, 26)][::step][-len(first) :]
    if kind == form != "npy":  # in other places
        shutil.copytree(other if form == "folder" else tmp_path / "other", tmp_path / "copy")
        copy = str(tmp_path / "copy" / Path(other).name) if form == "tar" else str(tmp_path / "copy")
        assert values(copy, progress=lambda *_: pytest.fail("decoded again")) == [*range(20, 26)]
    same_from_outside(tmp_path / "other", kind, range(30, 36))
    assert values(other) == [*range(30, 36)][::step][-len(first) :]


def test_an_image_that_comes_back_is_no_bad_image_any_more(folder: Path, tmp_path: Path) -> None:
    whole, state = (folder / "3.png").read_bytes(), (folder / "3.png").stat()
    (folder / "3.png").write_bytes(bytes(len(whole)))
    os.utime(folder / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert set(stored(folder, tmp_path).bad) == {3, 7, 12}
    (folder / "3.png").write_bytes(whole)
    os.utime(folder / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    check(stored(folder, tmp_path), folder)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "garbage", "other array", "a folder"])
@pytest.mark.parametrize("name", ["pixels.bin", "images.npy", "meta.json"])
def test_damaged_entry_is_made_again(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    stored(folder, tmp_path)
    (entry,) = (tmp_path / "c" / "pixels").iterdir()
    file = entry / name
    if damage == "cut":
        os.truncate(file, 5)
    elif damage == "flipped":
        flip(file)
    elif damage == "garbage":
        file.write_bytes(np.random.default_rng(0).bytes(3000))
    elif damage == "other array":
        np.save(file.with_suffix(".npy"), np.full((20, 2), 10**9))
        file.with_suffix(".npy").rename(file)
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pixels = stored(folder, tmp_path)
        pixels.gather(np.arange(20))
        check(pixels, folder)
    silent = (name, damage) == ("meta.json", "missing")  # written last: such an entry was never finished
    assert [str(one.message).endswith("it is made again") for one in told] == [True] * (not silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(stored(folder, tmp_path), folder)
        check(stored(folder, tmp_path, progress=lambda *_: pytest.fail("decoded again")), folder)
    assert [path.name for path in (tmp_path / "c" / "pixels").iterdir()] == [entry.name]


def test_an_image_that_is_damaged_in_the_cache_and_has_changed_is_told(folder: Path, tmp_path: Path) -> None:
    pixels = stored(folder, tmp_path)
    assert pixels.entry is not None
    pixels.pixels[pixels.offsets[3]] ^= 1
    Image.new("RGB", (9, 9)).save(folder / "3.png")
    with pytest.warns(UserWarning), pytest.raises(DeepClusterError, match=r"is damaged, and 3\.png has changed: give"):
        pixels.gather(np.array([2, 3]))


@pytest.mark.parametrize("home", ["", "here", "/proc/none"])
def test_no_cache_where_there_is_no_home(
    home: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPCLUSTER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", home)
    same_from_outside(tmp_path / "shards", "tar", range(3))
    assert len(open_images("shards/a.tar")) == 3
    with pytest.warns(UserWarning, match="the image cache .*cannot be used .*: images are decoded again in each epoch"):
        check(load_pixels(open_images(folder), short_side=None, cache_gb=1, small=0), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "shards"]


def test_budget_decides_to_stream(folder: Path, tmp_path: Path) -> None:
    for budget in (0, 1e-6):
        pixels = load_pixels(open_images(folder), short_side=None, cache_gb=budget, directory=tmp_path / "c")
        assert isinstance(pixels, StreamedPixels) and not pixels.bad
        check_after = pixels.gather(np.arange(20))
        assert [k for k, image in enumerate(check_after) if image is None] == [7, 12]
        check(pixels, folder)


def test_array_is_not_copied(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
    pixels = load_pixels(open_images(array), short_side=64, cache_gb=0)
    assert np.shares_memory(pixels.gather(np.array([2]))[0], array)
    np.testing.assert_array_equal(pixels.gather(np.array([2]))[0], array[2])
    np.save(tmp_path / "a.npy", array)
    small = load_pixels(open_images(array), short_side=4, cache_gb=1)
    (image,) = small.gather(np.array([0]))
    assert image is not None and image.shape == (4, 4, 3)
    mapped = load_pixels(open_images(tmp_path / "a.npy"), short_side=None, cache_gb=0)
    np.testing.assert_array_equal(mapped.gather(np.array([5]))[0], array[5])


def test_nothing_decodable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("words")
    (tmp_path / "b.jpg").write_text("words")
    with pytest.raises(DeepClusterError, match=r"of 2 images .* none .* a\.jpg: not an image"):
        load_pixels(open_images(tmp_path), short_side=None, cache_gb=1)


def test_unusable_folder_streams_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="DEEPCLUSTER_CACHE"):
        pixels = load_pixels(open_images(folder), short_side=None, cache_gb=1, small=0, directory=tmp_path / "c")
    assert isinstance(pixels, StreamedPixels)


def test_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        pixels = load_pixels(open_images(folder), short_side=None, cache_gb=1, small=0, directory=tmp_path / "c")
    assert isinstance(pixels, StreamedPixels) and list((tmp_path / "c" / "pixels").iterdir()) == []


BUILD = """
import sys, time
from pathlib import Path
from deepcluster.data import cache
from deepcluster.data.open import open_images
slow, cache.CHUNK = float(sys.argv[3]), 2
pixels = cache.load_pixels(open_images(sys.argv[1]), short_side=None, cache_gb=1, small=0, directory=Path(sys.argv[2]),
                           progress=lambda *at: (print(*at, flush=True), time.sleep(slow)))
print("sum", int(pixels.pixels.astype("int64").sum()), flush=True)
"""


def build(folder: Path, target: Path, slow: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(folder), str(target), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_build_leaves_no_entry_and_two_can_build_at_once(folder: Path, tmp_path: Path) -> None:
    killed = build(folder, tmp_path / "c", 60)
    assert killed.stdout is not None and killed.stdout.readline().startswith("2 ")
    killed.kill()
    killed.wait()
    (left,) = (tmp_path / "c" / "pixels").iterdir()
    assert left.name.startswith(".")
    pair = [build(folder, tmp_path / "c", 0.05) for _ in range(2)]
    sums = [process.communicate()[0].splitlines()[-1] for process in pair]
    assert sums[0] == sums[1] and sums[0].startswith("sum")
    (entry,) = (tmp_path / "c" / "pixels").iterdir()
    assert not entry.name.startswith(".")
    check(load_pixels(open_images(folder), short_side=None, cache_gb=1, small=0, directory=tmp_path / "c"), folder)


def test_least_recently_used_entry_makes_room(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "c" / "pixels"
    made = []
    for short_side in (10, 12, 14):
        before = set(home.iterdir()) if home.exists() else set()
        load_pixels(open_images(folder), short_side=short_side, cache_gb=1, small=0, directory=tmp_path / "c")
        made += list(set(home.iterdir()) - before)
    for age, entry in zip((300, 900, 600), made, strict=True):
        os.utime(entry / "meta.json", (time.time() - age,) * 2)
    sizes = [(entry / "pixels.bin").stat().st_size for entry in made]
    evict(home, sizes[0] + sizes[2])
    assert set(home.iterdir()) == {made[0], made[2]}
    evict(home, 0)
    assert list(home.iterdir()) == []

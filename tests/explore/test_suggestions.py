"""What is suggested on clusters that were cut and joined on purpose, and where the vectors come from."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.engine.cluster import cluster_images
from deepcluster.engine.describe import FEATURES
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run, load_run
from deepcluster.explore import suggestions
from deepcluster.explore.catalog import Catalog
from deepcluster.explore.explorer import Explorer
from deepcluster.explore.groups import Groups
from deepcluster.explore.jobs import Job
from deepcluster.explore.vectors import Vectors, make, unit_rows

EACH = 40


def blobs(assignment: np.ndarray) -> tuple[Catalog, Vectors]:
    """Four tight heaps of 40 images in 8 dimensions, heap h along axis h, in the given clusters."""
    draw = np.random.default_rng(0)
    rows = unit_rows(np.repeat(np.eye(8)[:4], EACH, 0) + draw.normal(size=(4 * EACH, 8)) * 0.1)
    numbers = range(assignment.max() + 1)
    centers = np.stack([rows[assignment == one].mean(0) for one in numbers]).astype(np.float32)
    distance = np.linalg.norm(rows - centers[assignment], axis=1).astype(np.float32)
    return Catalog(Groups(assignment), distance, lambda: centers), Vectors(rows, np.zeros(0, np.int64))


def suggested(catalog: Catalog, vectors: Vectors) -> list[tuple[str, list[int], list[int]]]:
    found = suggestions.suggest(catalog, vectors, threading.RLock())
    return [
        (one["op"], [each["id"] for each in one["clusters"]], [part["size"] for part in one["parts"]]) for one in found
    ]


def test_heaps_that_are_clusters_are_left_alone() -> None:
    assert suggested(*blobs(np.repeat(np.arange(4), EACH))) == []


def test_a_heap_in_two_clusters_is_one_and_two_heaps_in_a_cluster_are_two() -> None:
    cut = np.repeat([0, 1, 2, 2], EACH)
    cut[:EACH:2] = 3  # every other image of the first heap
    catalog, vectors = blobs(cut)
    assert suggested(catalog, vectors) == [("merge", [0, 3], [20, 20]), ("split", [2], [EACH, EACH])]
    [merge, split] = suggestions.suggest(catalog, vectors, threading.RLock())
    assert [set(cut[part["images"]]) for part in merge["parts"]] == [{0}, {3}]
    heaps = [{image // EACH for image in part["images"]} for part in split["parts"]]
    assert sorted(heaps, key=min) == [{2}, {3}], "each half is shown by images of one heap"
    catalog.groups.apply(catalog.groups.plan({"op": "hide", "clusters": [2, 3], "hidden": True}))
    catalog.update(catalog.groups.touched)
    assert suggested(catalog, vectors) == []


def test_clusters_that_all_run_into_each_other_are_not_merged() -> None:
    draw = np.random.default_rng(0)
    rows = unit_rows(draw.normal(size=(4 * EACH, 8)).astype(np.float32))
    cut = np.arange(4 * EACH) % 4  # by chance: any two of them are one
    centers = np.stack([rows[cut == one].mean(0) for one in range(4)])
    distance = np.linalg.norm(rows - centers[cut], axis=1).astype(np.float32)
    catalog = Catalog(Groups(cut), distance, lambda: centers)
    assert suggested(catalog, Vectors(rows, np.zeros(0, np.int64))) == []


def test_nothing_is_suggested_of_images_that_are_all_alike() -> None:
    rows = np.zeros((12, 4), np.float32)
    rows[:, 0] = 1
    catalog = Catalog(Groups(np.arange(12) % 2), np.zeros(12, np.float32), lambda: rows[:2])
    assert suggested(catalog, Vectors(rows, np.zeros(0, np.int64))) == []


@pytest.fixture
def grouped(tmp_path: Path) -> Run:
    draw = np.random.default_rng(0)
    for number in range(30):
        shade = np.array([[200, 40, 30], [30, 180, 50], [40, 60, 210]])[number % 3]
        picture = np.clip(shade + draw.integers(-30, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image at all")
    quiet = Screen(quiet=True)
    return cluster_images(str(tmp_path / "photos"), tmp_path / "run", backbone="patches", k=3, screen=quiet)


def test_vectors_are_those_of_the_features_that_cluster_left(
    grouped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, source = load_run(grouped.folder, device="cpu"), grouped.source()

    def made(folder: str) -> Vectors:
        return make(run, source, tmp_path / folder, source.fingerprint(), Job("", lambda job: None))

    (grouped.folder / FEATURES).rename(tmp_path / "aside")
    slow = made("a")
    (tmp_path / "aside").rename(grouped.folder / FEATURES)
    monkeypatch.setattr(type(run), "pixels", lambda *_: pytest.fail("the images are decoded once more"))
    quick = made("b")
    assert quick.bad.tolist() == slow.bad.tolist() == [30]
    np.testing.assert_allclose(quick.rows, slow.rows, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(quick.rows, axis=1), np.arange(31) < 30, atol=1e-5)


def test_images_that_are_all_the_same_are_duplicates(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (9, 99, 199)).save(tmp_path / "photos" / f"{number}.png")
    quiet = Screen(quiet=True)
    cluster_images(str(tmp_path / "photos"), tmp_path / "run", backbone="patches", screen=quiet)
    explorer = Explorer(load_run(tmp_path / "run", device="cpu"))
    explorer.jobs["duplicates"].start().wait(60)
    [group] = explorer.need("duplicates").groups(0.98)
    assert group.tolist() == list(range(6))
    explorer.close()

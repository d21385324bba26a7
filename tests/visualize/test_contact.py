"""Which images stand on a contact sheet, in which order, and which are decoded for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import contact_sheets as module
from deepcluster.visualize.contact_sheets import Part, clusters_of, contact, describe, distances, largest, majority
from deepcluster.visualize.grid import grid, thumbnail

from .conftest import FakeRun


@given(st.lists(st.tuples(st.integers(-1, 3), st.floats(0, 9, width=32)), min_size=1, max_size=40), st.integers(0, 6))
def test_nearest_first_farthest_last_and_never_both(rows: list[tuple[int, float]], far: int) -> None:
    assignment = np.array([cluster for cluster, _ in rows])
    distance = np.array([value for _, value in rows], np.float32)
    found = contact(2, assignment, distance, images=5, farthest=far)
    expected = sorted((index for index, row in enumerate(rows) if row[0] == 2), key=lambda i: (distance[i], i))
    assert found.nearest.tolist() == expected[:5]
    assert found.farthest.tolist() == (expected[5:][-far:] if far else [])
    assert found.size == len(expected)
    if expected:
        assert found.distance == pytest.approx(float(np.mean(distance[expected])), rel=1e-5)
    else:
        assert found.distance is None


def test_unknown_distances_go_last_and_out_of_the_mean() -> None:
    found = contact(0, np.zeros(3, np.int64), np.array([np.nan, 3.0, 1.0]), images=3)
    assert found.nearest.tolist() == [2, 1, 0] and found.distance == 2.0
    without = contact(0, np.zeros(3, np.int64), None, images=2)
    assert without.nearest.tolist() == [0, 1] and without.distance is None


def test_majority_ignores_images_without_label() -> None:
    assert majority(np.array([1, 1, 0, -1, -1]), ("a", "b")) == ("b", pytest.approx(2 / 3))
    assert majority(np.array([-1]), ("a",)) == (None, None)
    assert majority(np.array([4]), ()) == ("class 4", 1.0)


def test_largest_clusters_first() -> None:
    assert largest(np.array([2, 2, 0, 1, 1, -1, -1, -1]), 4).tolist() == [1, 2, 0, 3]


def test_only_the_images_shown_are_decoded(run: FakeRun) -> None:
    [path] = clusters_of(run, clusters=2, images=3, farthest=1)  # type: ignore[arg-type]
    shown = [contact(int(c), run.assignment, run.distance, images=3, farthest=1) for c in (1, 2)]
    expected = [index for one in shown for index in [*one.nearest, *one.farthest]]
    assert sorted(run.source().reads) == sorted(expected)
    with Image.open(path) as page:
        assert page.width == 3 * 100 + 4
        shades = np.unique(np.asarray(page)[..., 0])
    assert set(expected) <= set(shades.tolist())


def test_one_page_for_each_cluster_asked_for(run: FakeRun) -> None:
    paths = clusters_of(run, only=[3, 0])  # type: ignore[arg-type]
    assert [path.name for path in paths] == ["cluster-0003.png", "cluster-0000.png"]
    for path in paths:
        with Image.open(path) as page:
            page.verify()
    with pytest.raises(DeepClusterError, match="0 to 4"):
        clusters_of(run, only=[5])  # type: ignore[arg-type]


def test_distances_of_the_clusters_shown_alone(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run.distance = None
    run.image_size = 20  # type: ignore[attr-defined]
    run.centroids = torch.arange(20.0).reshape(5, 4)
    seen: list[Part] = []

    def features(part: Part) -> np.ndarray:
        seen.append(part)
        table = np.stack([np.full(4, float(i)) for i in part.index]).astype(np.float32)
        table[0] = np.nan  # an image that turns out to be bad
        return table

    monkeypatch.setattr(module, "load_pixels", lambda part, **options: part)
    run.features, run.embed = features, lambda x: x / 2  # type: ignore[attr-defined]
    found = distances(run, run.source(), np.array([1, 3]))  # type: ignore[arg-type]
    assert found is not None
    members = np.flatnonzero(np.isin(run.assignment, [1, 3]))
    assert seen[0].index.tolist() == members.tolist()
    assert np.isnan(found[np.setdiff1d(np.arange(60), members)]).all() and np.isnan(found[members[0]])
    for index in members[1:]:
        center = run.centroids.numpy()[run.assignment[index]]
        assert found[index] == pytest.approx(np.linalg.norm(index / 2 - center))


def test_part_is_a_source(run: FakeRun) -> None:
    part = Part(run.source(), np.array([5, 2]))  # type: ignore[arg-type]
    assert len(part) == 2 and part.path(1) == run.source().path(2)
    assert (part.read(0) == 5).all() and part.labels.tolist() == [0, 0]  # type: ignore[union-attr]
    assert part.fingerprint() != Part(run.source(), np.array([2, 5])).fingerprint()  # type: ignore[arg-type]


def test_describe_leaves_out_what_is_not_known() -> None:
    assert describe(contact(4, np.array([4]))) == "cluster 4  ·  1 image"


def test_grid_puts_every_image_in_its_place() -> None:
    images = [np.full((3, 2, 3), shade, np.uint8) for shade in range(1, 6)]
    page = grid(images, columns=2, gap=1)
    assert page.shape == (3 * 4 + 1, 2 * 3 + 1, 3)
    for number in range(5):
        row, column = divmod(number, 2)
        assert (page[1 + 4 * row : 4 + 4 * row, 1 + 3 * column : 3 + 3 * column] == number + 1).all()
    assert (page[9:12, 4:6] == 255).all()
    assert grid([], 3).dtype == np.uint8


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 32), (40, 90, 32), (90, 40, 32), (1, 7, 4), (32, 32, 32)])
def test_thumbnail_is_the_middle_square(height: int, width: int, side: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    image[top : top + short, left : left + short] = 200
    thumb = thumbnail(image, side)
    assert thumb.shape == (side, side, 3) and (thumb == 200).all()


def test_tiny_images_keep_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    assert np.array_equal(thumbnail(image, 32), image.repeat(4, 0).repeat(4, 1))


def test_sheet_without_its_images_is_still_a_sheet(run: FakeRun, tmp_path: Path) -> None:
    run.source().gone = set(range(60))
    [path] = clusters_of(run, clusters=3)  # type: ignore[arg-type]
    with Image.open(path) as page:
        page.verify()

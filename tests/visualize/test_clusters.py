"""Which images are on a contact sheet, in which order, and which are decoded for it; thumbnails and grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcluster.data.arrays import open_array
from deepcluster.engine.run import Run, load_run
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import ClusteredImages, clustered_images
from deepcluster.visualize.clusters import (
    Contact,
    clarity,
    clearness,
    contact,
    contact_sheet,
    draw_clusters,
    largest,
    main_classes,
    named_by,
)
from deepcluster.visualize.images import grid, thumbnail

from .conftest import rewritten


def images_in(assignment: np.ndarray, distance: np.ndarray) -> ClusteredImages:
    """Unlabelled images with these clusters and distances."""
    source = open_array(np.zeros((len(assignment), 1, 1, 3), np.uint8))
    return ClusteredImages(source, assignment, distance, 4)


@given(st.lists(st.tuples(st.integers(-1, 3), st.floats(0, 9, width=32)), min_size=1, max_size=40), st.integers(0, 6))
def test_nearest_come_first_farthest_last_and_none_is_in_both(rows: list[tuple[int, float]], far: int) -> None:
    assignment = np.array([cluster for cluster, _ in rows])
    distance = np.array([value for _, value in rows], np.float32)
    found = contact(images_in(assignment, distance), 2, images=5, farthest=far)
    expected = sorted((index for index, row in enumerate(rows) if row[0] == 2), key=lambda i: (distance[i], i))
    assert found.nearest.tolist() == expected[:5]
    assert found.farthest.tolist() == (expected[5:][-far:] if far else [])
    assert found.size == len(expected)
    if expected:
        assert found.distance == pytest.approx(float(np.mean(distance[expected])), rel=1e-5)
    else:
        assert found.distance is None


def test_unknown_distances_are_sorted_last_and_not_averaged() -> None:
    found = contact(images_in(np.zeros(3, np.int64), np.array([np.nan, 3.0, 1.0])), 0, images=3)
    assert found.nearest.tolist() == [2, 1, 0] and found.distance == 2.0
    without = contact(images_in(np.zeros(3, np.int64), np.full(3, np.nan)), 0, images=2)
    assert without.nearest.tolist() == [0, 1] and without.distance is None


def test_main_classes_ignore_images_without_label_or_cluster() -> None:
    cluster, labels = np.array([0, 0, 0, 0, 0, 1, -1, 3, 3]), np.array([1, 1, 0, -1, -1, -1, 2, 2, 0])
    label, purity = main_classes(cluster, labels, 5)
    assert label.tolist() == [1, -1, -1, 0, -1]
    np.testing.assert_allclose(purity, [2 / 3, np.nan, np.nan, 0.5, np.nan])


def test_largest_clusters_come_first() -> None:
    assert largest(np.array([1, 2, 2, 0])).tolist() == [1, 2, 0, 3]


def test_a_sheet_shows_the_chosen_images_and_reads_no_others(run: Run) -> None:
    shown = clustered_images(run, "clusters")
    contacts = [contact(shown, int(number), images=3, farthest=1) for number in largest(shown.sizes)[:2]]
    reads: list[int] = []

    def read(index: int) -> np.ndarray:
        reads.append(int(index))
        return shown.source.read(int(index))

    page = contact_sheet(contacts, read, columns=3)
    expected = [index for each in contacts for index in [*each.nearest, *each.farthest]]
    assert reads == expected and len(expected) == 8
    assert page.shape[1] == 3 * 100 + 4


def test_clusters_asked_for_get_a_page_each(run: Run) -> None:
    pages = draw_clusters(run, only=(3, 0))
    assert list(pages) == ["cluster-0003", "cluster-0000"]
    assert all(style.png(page)[:4] == b"\x89PNG" for page in pages.values())
    with pytest.raises(DeepClusterError, match="0 to 4"):
        draw_clusters(run, only=(5,))


def test_images_without_distances_come_in_the_order_of_the_source(run: Run) -> None:
    (run.folder / "distance.npy").unlink()
    shown = clustered_images(run, "clusters")
    found = contact(shown, int(largest(shown.sizes)[0]), images=60)
    assert found.distance is None and found.nearest.tolist() == sorted(found.nearest.tolist())


def test_a_caption_leaves_out_what_is_not_known() -> None:
    none = np.array([], np.int64)
    assert Contact(4, 1, none, none).caption == "cluster 4  ·  1 image"
    assert Contact(4, 2000, none, none, 0.5, "ant", 0.25).caption.endswith(
        "2,000 images  ·  ant 25%  ·  mean distance 0.50"
    )


def test_grid_puts_every_image_in_its_place() -> None:
    images = [np.full((3, 2, 3), shade, np.uint8) for shade in range(1, 6)]
    page = grid(images, columns=2, gap=1)
    assert page.shape == (3 * 4 + 1, 2 * 3 + 1, 3)
    for number in range(5):
        row, column = divmod(number, 2)
        assert (page[1 + 4 * row : 4 + 4 * row, 1 + 3 * column : 3 + 3 * column] == number + 1).all()
    assert (page[9:12, 4:6] == 255).all()
    assert grid([], 3).dtype == np.uint8
    assert grid([images[0], np.zeros((5, 4, 3), np.uint8)], 2, gap=0).shape == (5, 8, 3)


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 32), (40, 90, 32), (90, 40, 32), (1, 7, 4), (32, 32, 32)])
def test_thumbnail_is_the_central_square(height: int, width: int, side: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    image[top : top + short, left : left + short] = 200
    thumb = thumbnail(image, side)
    assert thumb.shape == (side, side, 3) and (thumb == 200).all()


def test_thumbnails_of_tiny_images_keep_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    assert np.array_equal(thumbnail(image, 32), image.repeat(4, 0).repeat(4, 1))
    assert (thumbnail(None, 5) == 232).all()


def test_a_sheet_of_images_that_are_gone_is_drawn(run: Run, squares: Path, tmp_path: Path) -> None:
    page = contact_sheet([Contact(0, 3, np.arange(3), np.array([], np.int64))], lambda index: None)
    assert (page[-50, 10:90] == 232).all()
    with pytest.raises(DeepClusterError, match="nowhere"):
        draw_clusters(rewritten(run, data=str(tmp_path / "nowhere")))
    with pytest.raises(DeepClusterError, match="no longer holds the images"):
        draw_clusters(rewritten(run, data=str(squares), source_fingerprint="another"))
    assert load_run(run.folder, device="cpu").clustered


def test_a_number_is_no_name() -> None:
    assert [named_by(label) for label in ("7", "cat", "n01440764")] == ["class 7", "cat", "n01440764"]


def test_a_cluster_is_clear_where_the_next_center_is_far() -> None:
    draw = np.random.default_rng(0)
    rows, cluster = draw.normal(size=(60, 3)), np.arange(60) % 5
    cluster[cluster == 3] = 4  # an empty one
    cluster[[0, 7]] = -1
    cluster[cluster == 2] = 1
    cluster[2] = 2  # and one of a single image
    centers = np.stack([rows[cluster == one].mean(0) if (cluster == one).any() else np.zeros(3) for one in range(5)])
    distance = np.linalg.norm(rows - centers[cluster], axis=1).astype(np.float32)
    shown = ClusteredImages(None, cluster, distance, 5)  # type: ignore[arg-type]
    found = clarity(shown.sizes, shown.mean_distance, centers)
    for one in (0, 1, 4):
        others = [each for each in np.unique(cluster[cluster >= 0]) if each != one]
        members = rows[cluster == one]
        alone = [np.linalg.norm(x - np.delete(members, k, 0).mean(0)) for k, x in enumerate(members)]
        own, apart = np.mean(alone), min((np.linalg.norm(centers[one] - centers[each]), each) for each in others)
        own_next = distance[cluster == apart[1]].mean() * len(members) / (len(members) - 1) if apart[1] != 2 else 0
        chance = own**2 / len(members) + own_next**2 / max(1, (cluster == apart[1]).sum())
        squared = max(apart[0] ** 2 - chance, 0)
        assert found[one] == pytest.approx(1 - own / np.sqrt(own**2 + squared), abs=1e-5)
    assert found[2] == 0 and np.isnan(found[3])
    assert [clearness(value) for value in (0.5, 0.45, 0.3, 0.1, 0, np.nan)] == [
        "clear",
        "clear",
        "fairly clear",
        "near another",
        "near another",
        "",
    ]
    assert np.isnan(clarity(np.array([9]), np.array([0.5]), centers[:1])).all()
    same = np.array([[0.0, 0], [1, 0], [1, 0]])  # equal images: far from all others, or on another center
    np.testing.assert_array_equal(clarity(np.array([5, 5, 5]), np.zeros(3), same), [1, 0, 0])


def test_clarity_is_a_silhouette_of_images_and_small_clusters_have_no_advantage() -> None:
    draw = np.random.default_rng(0)

    def of(rows: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.bincount(cluster)
        centers = np.stack([rows[cluster == one].mean(0) for one in range(len(sizes))])
        far = np.linalg.norm(rows[:, None] - centers[None], axis=2)
        own = np.take_along_axis(far, cluster[:, None], 1)[:, 0]
        np.put_along_axis(far, cluster[:, None], np.inf, 1)
        silhouette = np.bincount(cluster, 1 - own / far.min(1)) / sizes
        return clarity(sizes, np.bincount(cluster, own) / sizes, centers), silhouette

    cluster = np.repeat(np.arange(4), 500)
    found, silhouette = of(draw.normal(size=(2000, 32)) + 8 * np.eye(4, 32)[cluster], cluster)
    np.testing.assert_allclose(found, silhouette, atol=0.03)  # which takes the nearest center of each image
    cluster = np.repeat(np.arange(60), np.where(np.arange(60) < 50, 4, 40))  # of one cloud, cut at random
    found, _ = of(draw.normal(size=(600, 64)), cluster)
    assert np.abs(found).max() < 0.1

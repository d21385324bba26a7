"""Maps, neighbors, purity, two runs, arrangement of images: what they compute and that they can be drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.compare import compare_figure, named_side_by_side, short_names
from deepcluster.visualize.images import enlarged, framed, paragraph, side_by_side, stacked, text_line, titled
from deepcluster.visualize.map import COLORS, lay_out, map_figure, nearest_to_cells, palette, thumbnail_map
from deepcluster.visualize.neighbors import agreement, draw_queries, nearest_rows, neighbor_rows
from deepcluster.visualize.purity import purity_figure, size_and_purity

from .conftest import metrics_row


def groups(n: int = 90, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated groups."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    return (6 * rng.normal(size=(3, dim)))[labels] + rng.normal(size=(n, dim)), labels


@pytest.mark.parametrize("dim", [12, 200])
def test_pca_layout_matches_scikit_learn_on_unit_rows(dim: int) -> None:
    features, _ = groups(dim=dim)
    places = lay_out(features, "pca")
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = PCA(2, svd_solver="full").fit_transform(units)
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-5)
    np.testing.assert_array_equal(places, lay_out(features, "pca", seed=5))
    assert lay_out(np.arange(1.0, 6)[:, None], "pca").shape == (5, 2)


def test_tsne_keeps_groups_together_and_is_deterministic() -> None:
    features, labels = groups()
    places = lay_out(features, "tsne", seed=1, perplexity=10)
    near = NearestNeighbors(n_neighbors=6).fit(places).kneighbors(return_distance=False)
    assert (labels[near] == labels[:, None]).mean() > 0.95
    np.testing.assert_array_equal(places, lay_out(features, "tsne", seed=1, perplexity=10))


def test_impossible_maps_are_errors() -> None:
    features, _ = groups()
    with pytest.raises(DeepClusterError, match="too few"):
        lay_out(features[:3], "pca")


def test_a_legend_names_few_groups_and_not_many() -> None:
    features, labels = groups()
    places = lay_out(features, "pca")
    labels[4] = -1
    page = map_figure(places, labels, ["ant", "bee", "cow"], "A map")
    legend = page.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ant", "bee", "cow"]
    dots = [len(np.asarray(each.get_offsets())) for each in page.axes[0].collections]
    assert sorted(filter(None, dots)) == [1, 89]
    many = map_figure(places, np.arange(90) % 13, [str(number) for number in range(13)], "A map")
    assert many.axes[0].get_legend() is None
    assert map_figure(places, None, [], "A map").axes[0].get_legend() is None
    assert style.png(page)[:4] == b"\x89PNG"
    assert len(set(palette(36))) == 36 and palette(3) == list(COLORS[:3])


def test_thumbnails_do_not_overlap_and_are_the_nearest_to_the_cell() -> None:
    places = np.random.default_rng(0).normal(size=(300, 2))
    cells = nearest_to_cells(places, 8)
    unit = (places - places.min(0)) / np.ptp(places, axis=0) * 8
    for (row, column), number in cells.items():
        middle = np.array([column + 0.5, 7 - row + 0.5])
        inside = np.flatnonzero((np.abs(unit - middle) <= 0.5 + 1e-9).all(1))
        assert number in inside and np.square(unit[inside] - middle).sum(1).argmin() == inside.tolist().index(number)
    assert len(set(cells.values())) == len(cells)
    page = thumbnail_map(
        places, np.arange(300), lambda number: np.full((9, 9, 3), number % 200, np.uint8), cells=8, side=10
    )
    for (row, column), number in cells.items():
        assert (page[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10] == number % 200).all()
    empty = thumbnail_map(places, np.arange(300), lambda number: None, cells=8, side=10)
    assert (empty == 255).all()


def test_size_and_purity_match_counting() -> None:
    assignment = np.array([0, 0, 0, 3, 3, -1, 3, 1, 0])
    labels = np.array([5, 5, 2, 2, 2, 2, -1, 9, 5])
    sizes, purity = size_and_purity(assignment, labels)
    assert sizes.tolist() == [4, 1, 2] and purity.tolist() == [0.75, 1.0, 1.0]
    rng = np.random.default_rng(0)
    assignment, labels = rng.integers(-1, 40, 900), rng.integers(-1, 7, 900)
    sizes, purity = size_and_purity(assignment, labels)
    for place, cluster in enumerate(range(40)):
        members = Counter(labels[(assignment == cluster) & (labels >= 0)].tolist())
        assert sizes[place] == sum(members.values()) and purity[place] == max(members.values()) / sizes[place]
    page = purity_figure(sizes, purity, 7)
    assert style.png(page)[:4] == b"\x89PNG" and "40 clusters" in page.axes[0].get_title(loc="left")
    assert style.png(purity_figure(np.array([3]), np.array([1.0]), 1))[:4] == b"\x89PNG"
    with pytest.raises(DeepClusterError, match="class folders"):
        size_and_purity(assignment, np.full(900, -1))


def test_neighbors_match_scikit_learn() -> None:
    features, labels = groups()
    features[7] = np.nan
    queries = np.array([3, 50, 89])
    rows = nearest_rows(features, queries, 5)
    good = np.delete(np.arange(90), 7)
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features[good])
    expected = good[search.kneighbors(features[queries], return_distance=False)][:, 1:]
    assert rows.tolist() == expected.tolist()
    assert agreement(queries, rows, labels) == (labels[rows] == labels[queries][:, None]).mean()
    assert agreement(queries, rows, np.full(90, -1)) is None
    with pytest.raises(DeepClusterError, match="ask for fewer"):
        nearest_rows(features, queries, 89)


def test_a_copy_of_the_query_is_a_neighbor_and_the_query_is_not() -> None:
    features = np.eye(6)[[0, 0, 0, 1, 2, 3]]
    rows = nearest_rows(features, np.array([1]), 2)
    assert sorted(rows[0].tolist()) == [0, 2]


def test_queries_are_drawn_of_different_classes() -> None:
    good, labels = np.arange(100, 160), np.repeat([4, 5, 6], [50, 8, 2])
    drawn = draw_queries(good, 6, 0, labels)
    assert Counter(labels[drawn - 100].tolist()) == {4: 2, 5: 2, 6: 2}
    assert drawn.tolist() == draw_queries(good, 6, 0, labels).tolist() != draw_queries(good, 6, 1, labels).tolist()
    assert len(set(draw_queries(good, 60, 0).tolist())) == 60
    with pytest.raises(DeepClusterError, match="61 queries"):
        draw_queries(good, 61, 0)


def test_frames_show_whether_the_class_is_the_same() -> None:
    labels = np.array([0, 0, 1, -1])
    rows = {"trained": np.array([[1, 2, 3]]), "untrained": np.array([[3, 2, 1]])}

    def read(index: int) -> np.ndarray:
        return np.full((30, 30, 3), 9, np.uint8)

    page = neighbor_rows(np.array([0]), rows, read, labels=labels, classes=("ant", "bee"), side=60)
    right = page[:60, -3 * 60 - 2 * 4 :]
    tiles = [right[:, place * 64 : place * 64 + 60] for place in range(3)]
    assert tiles[0][0, 0].tolist() == [0, 143, 103] and tiles[1][0, 0].tolist() == [213, 94, 0]
    assert (tiles[2] == 9).all()
    plain = neighbor_rows(np.array([0]), rows, lambda index: None, side=60)
    assert plain.shape == page.shape and page.shape[0] == 124


def test_two_runs_in_one_figure() -> None:
    one = [metrics_row(epoch, 5, 60) for epoch in range(4)]
    two = [{"epoch": epoch, "loss": 2.0 - epoch / 9} for epoch in range(7)]
    page = compare_figure({"a": one, "b": two})
    assert [axes.get_title(loc="left") for axes in page.axes][:2] == ["Loss", "NMI with labels"]
    first = [np.size(each.get_xdata()) for each in page.axes[0].lines]
    assert [points for points in first if points > 1] == [4, 7]
    assert [text.get_text() for text in page.legends[0].get_texts()] == ["a", "b"]
    assert style.png(page)[:4] == b"\x89PNG"
    with pytest.raises(DeepClusterError, match="no curve to compare"):
        compare_figure({"a": [], "b": []})


def test_short_names() -> None:
    assert short_names(["runs/a/x", "runs/b/x"]) == ["a/x", "b/x"]
    assert short_names(["runs/x", "timm:resnet18"]) == ["runs/x", "timm:resnet18"]
    assert short_names(["runs/x", "runs/x"]) == ["x (1)", "x (2)"]


def test_stacking_frames_and_text() -> None:
    dark, pale = np.zeros((10, 20, 3), np.uint8), np.full((6, 30, 3), 100, np.uint8)
    under, next_to = stacked([dark, pale], gap=2), side_by_side([dark, pale], gap=2)
    assert under.shape == (18, 30, 3) and (under[10:12] == 255).all() and (under[:10, 20:] == 255).all()
    assert next_to.shape == (10, 52, 3) and (next_to[6:, 22:] == 255).all()
    assert enlarged(dark, 3).shape == (30, 60, 3)
    edge = framed(dark, "#ff0000", 2)
    assert edge[1, 5].tolist() == [255, 0, 0] and edge[2, 2].tolist() == [0, 0, 0] and (dark == 0).all()
    assert text_line("word " * 90, 200).shape[1] == 200 and (text_line("word", 200) < 128).any()
    long = paragraph("word " * 60, 300)
    assert long.shape[0] > 3 * paragraph("word", 300).shape[0]
    page = titled(dark, "A title", "what is seen")
    assert page.shape[1] > 500 and (page[-20:-10, 10:30] == 0).all()
    assert named_side_by_side({"a": dark, "b": pale}).shape[1] == 20 + 24 + 30

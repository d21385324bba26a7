"""The table and its pages against slow counting; neighbors, near-duplicates and the map against whole matrices."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.explore import layout
from deepcluster.explore.catalog import Catalog
from deepcluster.explore.duplicates import twins
from deepcluster.explore.groups import Groups
from deepcluster.explore.thumbs import Thumbs
from deepcluster.explore.vectors import Vectors, unit_rows
from deepcluster.visualize.clusters import clarity


def scene(n: int = 300, k: int = 9, seed: int = 0) -> tuple[Catalog, Vectors, np.ndarray]:
    draw = np.random.default_rng(seed)
    rows = unit_rows(draw.normal(size=(n, 5)).astype(np.float32))
    found = draw.integers(0, k, n)
    found[found == 4] = 5  # an empty cluster
    found[[7, 70]] = -1
    rows[[7, 70]] = 0
    centers = np.stack([rows[found == c].mean(0) if (found == c).any() else np.zeros(5) for c in range(k)])
    distance = np.linalg.norm(rows - centers[found], axis=1).astype(np.float32)
    distance[[7, 70]] = np.nan
    catalog = Catalog(Groups(found), distance, lambda: centers.astype(np.float32))
    labels = draw.integers(-1, 3, n)
    catalog.set_labels(labels, ("ant", "bee"))
    return catalog, Vectors(rows, np.array([7, 70])), labels


def check_table(catalog: Catalog, labels: np.ndarray) -> None:
    groups = catalog.groups
    table = catalog.table()
    assert table.number.tolist() == sorted(set(groups.group.tolist()))
    for row, number in enumerate(table.number):
        members = np.flatnonzero(groups.group == number)
        assert table.size[row] == len(members)
        own = catalog.own[members]
        expected = np.nanmean(own) if np.isfinite(own).any() else np.nan
        np.testing.assert_allclose(table.distance[row], expected, rtol=1e-5)
        known = labels[members][labels[members] >= 0] if number >= 0 else labels[:0]
        counts = np.bincount(known, minlength=3)
        assert table.label[row] == (counts.argmax() if len(known) else -1)
        if len(known):
            np.testing.assert_allclose(table.purity[row], counts.max() / len(known), rtol=1e-6)
        best = members[np.nanargmin(own)] if np.isfinite(own).any() else members[0]
        assert catalog.cover(int(number)) == best


def test_table_is_what_counting_gives_before_and_after_edits() -> None:
    catalog, vectors, labels = scene()
    check_table(catalog, labels)
    catalog.vectors = vectors
    catalog.refresh()
    edits = (
        {"op": "merge", "clusters": [0, 1]},
        {"op": "move", "images": [3, 7, 9], "to": 2},
        {"op": "split", "cluster": 3, "parts": [np.flatnonzero(catalog.groups.group == 3)[:4].tolist()]},
    )
    back = []
    for edit in edits:
        back.append(catalog.groups.apply(catalog.groups.plan(edit)))
        catalog.update(catalog.groups.touched)
        check_table(catalog, labels)
        for number in set(catalog.groups.group.tolist()) - {-1}:
            members = catalog.groups.members(number)
            members = members[~np.isin(members, vectors.bad)]
            if catalog.row(number)["edited"] and 7 not in catalog.groups.members(number):
                center = vectors.rows[members].mean(0)
                expected = np.linalg.norm(vectors.rows[members] - center, axis=1)
                np.testing.assert_allclose(catalog.own[members], expected, rtol=1e-4, atol=1e-5)
    for patch in reversed(back):
        catalog.groups.apply(patch)
        catalog.update(catalog.groups.touched)
    np.testing.assert_array_equal(catalog.own, catalog.distance)
    assert not any(catalog.row(int(number))["edited"] for number in catalog.table().number)


def test_clusters_are_named_by_their_class_and_the_clearest_come_first() -> None:
    catalog, _, labels = scene()
    centers = catalog._centroids()
    sizes = np.bincount(catalog.groups.group[catalog.groups.group >= 0], minlength=len(centers))
    own = [catalog.own[catalog.groups.group == one].mean() if size else np.nan for one, size in enumerate(sizes)]
    sure = clarity(sizes, np.asarray(own), centers)
    clear, classed = {}, set()
    for row in catalog.rows()["rows"]:
        members = catalog.groups.members(row["id"])
        if row["id"] >= 0:
            clear[row["id"]] = sure[row["id"]]
        counts = np.bincount(labels[members][labels[members] >= 0], minlength=3)
        half = row["id"] >= 0 and counts.max() >= counts.sum() / 2
        classed |= {row["id"]} if half else set()
        assert row["name"] == (catalog.class_name(int(counts.argmax())) if half else catalog.groups.name(row["id"]))
    listed = [row["id"] for row in catalog.rows()["rows"]]
    assert listed == [*sorted(clear, key=lambda one: (one not in classed, -clear[one])), -1]
    assert 0 < len(classed) < len(clear)
    catalog.groups.apply(catalog.groups.plan({"op": "rename", "cluster": listed[0], "name": "mine"}))
    assert catalog.row(listed[0])["name"] == catalog.row(listed[0])["given"] == "mine"
    assert [row["id"] for row in catalog.rows(search="mine")["rows"]] == listed[:1]


@pytest.mark.parametrize("seen", [False, True])
def test_many_changed_clusters_are_what_one_after_the_other_gives(seen: bool) -> None:
    catalog, vectors, labels = scene(600, 40)
    if seen:
        catalog.vectors = vectors
        catalog.refresh()
    draw = np.random.default_rng(2)
    centers = catalog._centroids()
    for _ in range(4):
        images = draw.choice(600, 60, replace=False).tolist()
        catalog.groups.apply(catalog.groups.plan({"op": "move", "images": images, "to": None}))
        catalog.update(catalog.groups.touched)
        check_table(catalog, labels)
        groups, own = catalog.groups, catalog.distance.copy()
        numbers = np.unique(groups.group[groups.group >= 0])
        for number, center in zip(numbers, catalog._centers(numbers), strict=True):
            members = groups.members(int(number))
            edited = members.tolist() != np.flatnonzero(groups.original == number).tolist()
            assert catalog.row(int(number))["edited"] == edited
            if edited and seen:
                expected = vectors.rows[members].mean(0)
                own[members] = np.linalg.norm(vectors.rows[members] - expected, axis=1)
            elif edited:
                expected = centers[groups.original[members][groups.original[members] >= 0]].mean(0)
            else:
                expected = centers[number]
            np.testing.assert_allclose(center, expected, rtol=1e-4, atol=1e-5)
        own[vectors.bad] = np.nan
        np.testing.assert_allclose(catalog.own, own, rtol=1e-4, atol=1e-5)


def test_thousands_of_changed_clusters_take_one_pass_over_the_images() -> None:
    found = np.random.default_rng(0).integers(0, 5000, 200_000)
    catalog = Catalog(Groups(found), None, lambda: np.zeros((5000, 4), np.float32))
    catalog.groups.group[:20_000] = 5000
    with mock.patch.object(np, "isin", wraps=np.isin) as passes:
        catalog.update(set(range(5001)))
    assert passes.call_count == 1
    assert len(catalog._visible_centers()[0]) == 5001


def test_nearest_clusters_are_those_of_the_whole_matrix() -> None:
    catalog, _, _ = scene()
    centers = catalog._centroids()
    there = [c for c in range(9) if c != 4]
    found = catalog.nearest(there, 3)
    for group in there:
        others = sorted((float(np.linalg.norm(centers[group] - centers[c])), c) for c in there if c != group)
        assert [number for number, _ in found[group]] == [c for _, c in others[:3]]
        np.testing.assert_allclose([apart for _, apart in found[group]], [d for d, _ in others[:3]], atol=1e-3)
    catalog.groups.hidden.add(found[0][0][0])
    catalog.version += 1
    assert catalog.nearest([0], 1)[0][0][0] == found[0][1][0], "hidden clusters are no neighbors"
    assert len(catalog.nearest([0], 50)[0]) == 6


def test_rows_are_sorted_searched_and_paged() -> None:
    catalog, _, _ = scene()
    catalog.groups.names[2] = "Foxes 10"
    catalog.groups.names[3] = "foxes 9"
    catalog.groups.hidden.add(6)
    for sort in ("size", "distance", "purity", "number"):
        for descending in (False, True):
            rows = catalog.rows(sort=sort, descending=descending)["rows"]
            values = [row["id" if sort == "number" else sort] for row in rows if row["id"] >= 0]
            assert values == sorted(values, reverse=descending)
    names = [row["name"] for row in catalog.rows(sort="name", descending=False)["rows"] if "oxes" in row["name"]]
    assert names == ["foxes 9", "Foxes 10"]
    assert {row["id"] for row in catalog.rows(search="FOX")["rows"]} == {2, 3}
    found = catalog.rows()  # images in no cluster have a row, and are no cluster
    assert found["rows"][-1]["id"] == -1 and found["clusters"] == found["total"] - 1
    assert found["all_clusters"] == found["all"] - 1 == found["clusters"] + 1
    assert {row["id"] for row in catalog.rows(search="foxes 10")["rows"]} == {2}
    assert all(row["label"] == "bee" for row in catalog.rows(search="bee")["rows"])
    whole = [row["id"] for row in catalog.rows()["rows"]]
    assert 6 not in whole and 6 in [row["id"] for row in catalog.rows(hidden=True)["rows"]]
    assert [row["id"] for k in range(0, 10, 3) for row in catalog.rows(part=slice(k, k + 3))["rows"]] == whole
    with pytest.raises(DeepClusterError):
        catalog.rows(sort="color")


def test_members_and_outliers_by_distance() -> None:
    catalog, _, _ = scene()
    found = catalog.members(5).tolist()
    members = np.flatnonzero(catalog.groups.group == 5)
    assert found == members[np.argsort(catalog.own[members], kind="stable")].tolist()
    assert catalog.members(5, farthest=True)[0] == found[-1]
    outliers, score = catalog.outliers()
    expected: dict[int, float] = {}
    for number in set(range(9)) - {4}:
        members = np.flatnonzero(catalog.groups.group == number)
        own = catalog.own[members].astype(np.float64)
        far = own > own.mean() + 2 * own.std()
        expected |= dict(zip(members[far].tolist(), (own[far] / own.mean()).tolist(), strict=True))
    assert 1 <= len(expected) <= 15, "few of 300 stand out"
    assert outliers.tolist() == sorted(expected, key=expected.__getitem__, reverse=True)
    np.testing.assert_allclose(score, sorted(expected.values(), reverse=True), rtol=1e-5)
    with pytest.raises(DeepClusterError, match="no cluster 4"):
        catalog.members(4)


def test_neighbors_and_duplicates_are_exact() -> None:
    catalog, vectors, _ = scene(400)
    vectors.rows[20] = vectors.rows[10]
    catalog.groups.original.setflags(write=True)
    assignment = catalog.groups.original.copy()
    assignment[20] = assignment[10] = 0
    whole = vectors.rows @ vectors.rows.T
    whole[:, vectors.bad] = -np.inf
    np.fill_diagonal(whole, -np.inf)
    for index in (0, 10, 399):
        near, similarity = vectors.nearest(vectors.rows[index], 12, but=index)
        np.testing.assert_allclose(similarity, np.sort(whole[index])[::-1][:12], atol=1e-6)
        assert index not in near and not set(near) & {7, 70}
    assert len(vectors.nearest(vectors.rows[0], 10_000, but=0)[0]) == 397
    found = twins(vectors, assignment)
    inside = np.where(assignment[:, None] == assignment[None], whole, -np.inf)
    good = np.setdiff1d(np.arange(400), [7, 70])
    np.testing.assert_allclose(found.similarity[good], inside[good].max(1), atol=1e-6)
    assert found.partner[10] == 20 and found.partner[20] == 10 and found.partner[7] == -1
    first = found.groups(0.9999)[0]
    assert first.tolist() == [10, 20]
    linked = {i for group in found.groups(0.9) for i in group.tolist()}
    close = {i for i in good if inside[i].max() >= 0.9}
    assert linked == close
    assert found.groups(1.5) == []


@pytest.mark.parametrize("name", list(layout.LAYOUTS))
def test_the_map_keeps_apart_what_is_apart(name: str) -> None:
    draw = np.random.default_rng(1)
    centers = np.eye(3, 8)
    kind = np.arange(240) % 3
    rows = unit_rows((centers[kind] + draw.normal(scale=0.08, size=(240, 8))).astype(np.float32))
    rows[5] = 0
    options = {"landmarks": 90} if name == "neighborhoods" else {}
    place = layout.LAYOUTS[name](Vectors(rows, np.array([5])), lambda done, total: None, **options)
    assert place.dtype == np.int16 and place.shape == (240, 2) and place[5].tolist() == [0, 0]
    good = np.arange(240) != 5
    means = np.stack([place[good & (kind == c)].mean(0) for c in range(3)])
    nearest = np.linalg.norm(place[:, None] - means[None], axis=2).argmin(1)
    assert (nearest == kind)[good].mean() > 0.97
    assert np.abs(place).max() > 20_000


class Flat:
    """Plain squares; the third cannot be read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        self.reads += 1
        if index == 3:
            raise BadImage("it is gone")
        return np.full((90, 130, 3), index % 256, np.uint8)


def test_thumbnails_are_made_once() -> None:
    source = Flat()
    thumbs = Thumbs(lambda: source)  # type: ignore[arg-type, return-value]
    first = thumbs.get(1, 96)
    assert np.asarray(Image.open(io.BytesIO(first))).shape == (90, 90, 3)
    assert thumbs.get(1, 96) == first and source.reads == 1
    for _ in range(2):  # what cannot be read is tried again: it may come back
        with pytest.raises(BadImage, match="it is gone"):
            thumbs.get(3, 96)
    assert source.reads == 3

"""Tables worked on part by part, by an engine that sends every piece away and loses some, give what they give whole."""

from __future__ import annotations

import copyreg
import io
import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.clustering.duplicates import repeats
from deepcluster.clustering.hierarchical import HierarchicalKMeans
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.tables import TableClusters, cluster_table
from deepcluster.clustering.whitening import Whitening
from deepcluster.distributed import ALIGN, ProcessGroup
from deepcluster.engine.curate import curate_features
from deepcluster.engine.ray_engine import _map, _place
from deepcluster.errors import DeepClusterError
from deepcluster.features.parallel import over_rows, spread_by
from deepcluster.features.table import open_table


def sent(something: Any) -> Any:
    """A copy as another process gets it, for which files are what tables are."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream)
    pickler.dispatch_table = copyreg.dispatch_table | {np.memmap: lambda table: (_map, (_place(table),))}
    pickler.dump(something)
    return pickle.loads(stream.getvalue())


class Pieces:
    """An engine that runs pieces backwards and from copies; every third is done a second time, as if it had been lost.

    Attributes:
        ran: the names of what was run in parts.
    """

    def __init__(self) -> None:
        self.ran: set[str] = set()

    def cuts(self, count: int, step: int) -> list[tuple[int, int]]:
        parts = min(5, max(1, -(-count // ALIGN)))
        return [ProcessGroup(part, parts).row_range(count) for part in range(parts)]

    def run(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> list[Any]:
        self.ran.add(work.__name__)
        found = []
        for number, call in reversed(list(enumerate(calls))):
            for _ in range(2 if number % 3 == 0 else 1):
                again, given, common = sent((work, call, shared))
                result = again(*given, *common)
            found.append(sent(result))
        return found[::-1]

    def keep(self, make: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *shared: Any) -> _Kept:
        self.ran.add(make.__name__)
        return _Kept(make, list(calls), shared)


class _Kept:
    def __init__(self, make: Callable[..., Any], calls: list[tuple[Any, ...]], shared: tuple[Any, ...]) -> None:
        self.make, self.shared, self.columns = sent(make), shared, sent(calls)
        self.objects = [self.make(*columns, *sent(shared)) for columns in self.columns]
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def each(self, method: str, *arguments: Any) -> list[Any]:
        if len(self.told) == 3:  # one is lost with all it knew
            self.objects[1] = self.make(*self.columns[1], *sent(self.shared))
            for earlier, given in self.told:
                getattr(self.objects[1], earlier)(*self.columns[1], *sent(given))
        self.told.append(sent((method, arguments)))
        self.objects = sent(self.objects)
        both = zip(self.objects, self.columns, strict=True)
        return [sent(getattr(kept, method)(*columns, *sent(arguments))) for kept, columns in both]


def mixture(n: int, d: int, groups: int, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups, d))[rng.integers(groups, size=n)] + spread * rng.normal(size=(n, d))
    return x.astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    x = mixture(6000, 12, 40)
    x[[3, 2500, 5999]] = np.nan
    np.save(tmp_path / "f.npy", x)
    return tmp_path / "f.npy"


def same(one: Any, two: Any) -> None:
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        ({"n_clusters": 40, "precision": "float32"}, "NearestStep"),
        ({"n_clusters": 40, "precision": "bfloat16", "max_iter": 3}, "NearestStep"),
        ({"n_clusters": 90, "init": "k-means++"}, "MarginPart"),
        ({"n_clusters": 280, "precision": "int8"}, "MarginPart"),
        ({"n_clusters": 30, "spherical": True, "tol": 1e-3}, "NearestStep"),
    ],
)
@pytest.mark.parametrize("on_disk", [True, False])
def test_k_means(arguments: dict[str, Any], step: str, on_disk: bool, tmp_path: Path) -> None:
    x: Any = mixture(6000, 16, 40)
    if on_disk:
        np.save(tmp_path / "x.npy", x)
        x = open_table(tmp_path / "x.npy")[0]
    whole = KMeans(**arguments, random_state=0).fit(x)
    pieces = Pieces()
    with spread_by(pieces):
        parts = KMeans(**arguments, random_state=0).fit(x)
    for name in ("labels_", "cluster_centers_", "inertia_", "objectives_"):
        same(getattr(whole, name), getattr(parts, name))
    assert {step, "_own_moments", "_nearest"} <= pieces.ran


def test_empty_clusters_are_filled_alike() -> None:
    x = np.repeat(mixture(20, 6, 20), 200, axis=0)[np.random.default_rng(3).permutation(4000)]
    pieces = Pieces()
    found = []
    for engine in (None, pieces):
        with pytest.warns(UserWarning, match="fewer distinct rows"):
            if engine is None:
                found.append(KMeans(60, max_iter=4, random_state=0).fit(x))
            else:
                with spread_by(engine):
                    found.append(KMeans(60, max_iter=4, random_state=0).fit(x))
    same(found[0].labels_, found[1].labels_)
    same(found[0].cluster_centers_, found[1].cluster_centers_)
    assert "_sums" in pieces.ran


@pytest.mark.parametrize("algorithm", ["kmeans", "hierarchical"])
def test_a_table_with_bad_rows(algorithm: str, table: Path, tmp_path: Path) -> None:
    def found(folder: str) -> TableClusters:
        def clusterer(rows: np.ndarray) -> Any:
            if algorithm == "kmeans":
                return KMeans(70, random_state=0)
            return HierarchicalKMeans(60, branches=(3, 4), random_state=0, max_bytes=0, scratch=tmp_path)

        (tmp_path / folder).mkdir()
        return cluster_table(open_table(table)[0], clusterer, embedding=Whitening(8), scratch=tmp_path / folder)

    whole, pieces = found("whole"), Pieces()
    with spread_by(pieces):
        parts = found("parts")
    for name in ("assignment", "distance", "centroids"):
        same(getattr(whole, name), getattr(parts, name))
    assert (whole.assignment < 0).sum() == 3
    assert {"_odd", "_copy", "_own_moments", "_whiten", "_nearest", "_squared_distances"} <= pieces.ran
    if algorithm == "hierarchical":
        assert "_grow_branch" in pieces.ran and whole.clusterer.inertia_ == parts.clusterer.inertia_
        for one, two in zip(whole.clusterer.levels_, parts.clusterer.levels_, strict=True):
            same(one, two)


def test_curation(table: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"clusters": (200, 20), "resamplings": 2, "duplicates": 0.95}
    whole, pieces = curate_features(open_table(table)[0], 900, scratch=tmp_path, **how), Pieces()
    with spread_by(pieces):
        parts = curate_features(open_table(table)[0], 900, scratch=tmp_path, **how)
    for name in ("index", "cluster", "duplicate"):
        same(getattr(whole, name), getattr(parts, name))
    assert whole.report() == parts.report() and 0 < whole.duplicate.sum() < 5000
    assert {"_take", "_repeats", "MarginPart"} <= pieces.ran


def test_near_duplicates_are_shared_out_by_whole_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    x = np.concatenate([x, x[:200] + 1e-4])[rng.permutation(600)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    label = np.where(x[:, 0] > 1.0, -1, (x[:, 1] > 0) * 7 + (x[:, 2] > 0) * 2)
    whole = repeats(x, label, 0.999)
    monkeypatch.setattr("deepcluster.clustering.duplicates.SHARE", 100)
    with spread_by(Pieces()):
        same(whole, repeats(x, label, 0.999))
    assert whole.sum() == 200


def test_a_row_that_is_not_finite_is_named_as_the_table_counts_it(tmp_path: Path) -> None:
    x = mixture(5000, 6, 3)
    x[4321, 2] = np.inf
    with spread_by(Pieces()), pytest.raises(DeepClusterError, match=r"Row 4321 of the features holds NaN"):
        KMeans(3, random_state=0).fit(x)


def _mean(rows: Any) -> Any:
    return torch.as_tensor(np.asarray(rows[:])).mean(0)


def test_a_file_that_is_not_there_is_told_with_the_machine(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", mixture(3000, 4, 3))
    x = open_table(tmp_path / "x.npy")[0]
    (tmp_path / "x.npy").unlink()
    with spread_by(Pieces()), pytest.raises(DeepClusterError, match="put tables and --out on a disk that all machines"):
        over_rows(_mean, [x])


def test_parts_of_a_table_in_parts_are_read_from_its_files(tmp_path: Path) -> None:
    x = mixture(5000, 8, 9)
    for start, stop in ((0, 700), (700, 5000)):
        np.save(tmp_path / f"part-{start:012d}-{stop:012d}.npy", x[start:stop])
    about = {"format": "deepcluster table", "version": 1, "rows": 5000, "finished": True}
    (tmp_path / "table.json").write_text(json.dumps(about))
    table = open_table(tmp_path)[0]
    with spread_by(Pieces()):
        parts = KMeans(9, random_state=0).fit(table)
    same(KMeans(9, random_state=0).fit(x).labels_, parts.labels_)

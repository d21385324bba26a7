"""Ground truth: the real files, small ones written here, groups, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.retrieval.ground_truth import groups, holidays_by_name, locate_images, read_ground_truth


class Named:
    """Paths that pass for a source."""

    def __init__(self, paths: list[str], labels: list[int] | None = None) -> None:
        self.paths, self.name = paths, "named"
        self.labels = None if labels is None else np.array(labels)
        self.classes = ()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return self.paths[index]


def test_oxford_and_paris(shared_data: Path) -> None:
    for name, n, first in (("oxford5k", 5063, "all_souls_000013"), ("paris6k", 6392, "paris_defense_000605")):
        truth = read_ground_truth(shared_data / "retrieval" / f"gnd_{name}.mat")
        assert (truth.name, truth.kind, len(truth.names), len(truth.queries)) == (name, "classic", n, 55)
        assert truth.queries[0] == first and not truth.ignores_own_image
        for query, ok, junk in zip(truth.queries, truth.sets["ok"], truth.sets["junk"], strict=True):
            assert truth.names.index(query) in ok  # by tradition a query counts as found in its own image
            assert not set(ok.tolist()) & set(junk.tolist())
    oxford = read_ground_truth(shared_data / "retrieval" / "gnd_oxford5k.mat")
    assert oxford.boxes is not None and oxford.boxes[0].tolist() == [136.5, 34.1, 648.5, 955.7]
    assert (len(oxford.sets["ok"][0]), len(oxford.sets["junk"][0])) == (78, 33)
    names = {oxford.names[row].rpartition("_")[0] for row in oxford.sets["ok"][0]}
    assert "all_souls" in names  # indices are from zero


def test_revisited(shared_data: Path) -> None:
    for name, n in (("roxford5k", 4993), ("rparis6k", 6322)):
        truth = read_ground_truth(shared_data / "retrieval" / f"gnd_{name}.mat")
        old = read_ground_truth(shared_data / "retrieval" / f"gnd_{name[1:]}.mat")
        assert (truth.kind, len(truth.names), len(truth.queries)) == ("revisited", n, 70)
        assert truth.queries[:1] == old.queries[:1] and not set(truth.queries) & set(truth.names)
        assert set(truth.queries) | set(truth.names) == set(old.names)
        easy, hard, junk = (truth.sets[grade] for grade in ("easy", "hard", "junk"))
        assert truth.union(truth.measures["_medium"][0], 0).tolist() == [*easy[0], *hard[0]]
        assert truth.union(truth.measures["_hard"][1], 0).tolist() == [*easy[0], *junk[0]]
        assert truth.union(truth.measures["_easy"][1], 0).tolist() == [*hard[0], *junk[0]]


def test_holidays_by_file_and_by_name_are_the_same(shared_data: Path) -> None:
    truth = read_ground_truth(shared_data / "retrieval" / "gnd_holidays.mat")
    assert (truth.kind, len(truth.names), len(truth.queries), truth.boxes) == ("holidays", 1491, 500, None)
    assert sum(len(ok) for ok in truth.sets["ok"]) == 991 and truth.ignores_own_image
    named = holidays_by_name(Named([f"jpg/{name}.jpg" for name in reversed(truth.names)]))  # type: ignore[arg-type]
    assert named.names == truth.names and named.queries == truth.queries
    for grade in ("ok", "junk"):
        assert all(map(np.array_equal, named.sets[grade], truth.sets[grade]))
    with pytest.raises(DeepClusterError, match=r"not the Holidays set.*IMG_1"):
        holidays_by_name(Named(["IMG_1.jpg"]))  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="no query of Holidays"):
        holidays_by_name(Named(["100000.jpg", "100101.jpg"]))  # type: ignore[arg-type]


def cells(rows: Sequence[Sequence[int]]) -> np.ndarray:
    found = np.empty(len(rows), object)
    for place, row in enumerate(rows):
        found[place] = np.array(row, np.uint16)[None]
    return found


def write_mat(file: Path, *, names: list[str], queries: list[int], **sets: Sequence[Sequence[Any]]) -> Path:
    """A gnd file as the sets' authors write it, indices from one."""
    gnd = np.zeros(len(queries), [(grade, object) for grade in sets])
    for grade, rows in sets.items():
        gnd[grade] = cells(rows)
    texts = np.array(names, object)[:, None]
    scipy.io.savemat(file, {"gnd": gnd[:, None], "imlist": texts, "qidx": np.array(queries)[:, None] + 1})
    return file


def test_written_file_is_read_back(tmp_path: Path) -> None:
    boxes = [[1, 2, 30, 40], [0, 0, 8, 9]]
    file = write_mat(
        tmp_path / "gnd_toy.mat", names=list("abcd"), queries=[1, 3], ok=[[2, 3], [4]], junk=[[1], []], bbx=boxes
    )
    truth = read_ground_truth(file)
    assert (truth.name, truth.names, truth.queries) == ("toy", tuple("abcd"), ("b", "d"))
    assert [rows.tolist() for rows in truth.sets["ok"]] == [[1, 2], [3]]
    assert [rows.tolist() for rows in truth.sets["junk"]] == [[0], []]
    assert truth.boxes is not None and truth.boxes.tolist() == boxes
    rest = truth.subset(np.array([False, True, True, True]), np.array([True, False]))
    assert (rest.names, rest.queries) == (tuple("bcd"), ("b",))
    assert [rows.tolist() for rows in rest.sets["ok"]] == [[0, 1]] and rest.sets["junk"][0].tolist() == []


@pytest.mark.parametrize("keep", [0, 10, 200, 400])
def test_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    file = write_mat(tmp_path / "gnd_toy.mat", names=list("abcd"), queries=[1], ok=[[2]], junk=[[]], bbx=[[0, 0, 5, 5]])
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DeepClusterError, match=r"give a complete gnd_oxford5k.mat"):
        read_ground_truth(file)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ok": [[9]]}, "beyond the 4"),
        ({"ok": [[0]]}, "beyond the 4"),
        ({"bbx": [[5, 5, 5, 9]]}, "box is empty"),
        ({"names": list("abca")}, "a name twice"),
        ({"queries": [7]}, "out of range"),
    ],
)
def test_inconsistent_file_is_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"names": list("abcd"), "queries": [1], "ok": [[2]], "junk": [[]], "bbx": [[0, 0, 5, 5]]}
    with pytest.raises(DeepClusterError, match=why):
        read_ground_truth(write_mat(tmp_path / "gnd_toy.mat", **(parts | change)))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "gnd_roxford5k.pkl"
    file.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DeepClusterError, match=r"is a pickle.*give gnd_roxford5k.mat"):
        read_ground_truth(file)


def test_groups_by_pattern_and_by_label() -> None:
    paths = ["coil/obj1__0.png", "coil/obj1__60.png", "coil/obj12__0.png", "coil/obj2__0.png", "coil/obj2__60.png", "x"]
    truth = groups(Named(paths), r"obj(\d+)__")  # type: ignore[arg-type]
    assert truth.queries == (paths[0], paths[1], paths[3], paths[4])  # no partner, no query
    assert [rows.tolist() for rows in truth.sets["ok"]] == [[0, 1], [0, 1], [3, 4], [3, 4]]
    assert [rows.tolist() for rows in truth.sets["junk"]] == [[0], [1], [3], [4]]
    assert truth.names == tuple(paths)
    whole = groups(Named(paths), r"obj\d+__")  # type: ignore[arg-type]
    assert whole.sets["ok"][2].tolist() == [3, 4]
    labelled = groups(Named(paths, [0, 0, 1, 2, 2, -1]))  # type: ignore[arg-type]
    assert labelled.queries == truth.queries
    rows, asked = locate_images(labelled, Named(paths))  # type: ignore[arg-type]
    assert rows.tolist() == list(range(6)) and asked.tolist() == [0, 1, 3, 4]


def test_missing_groups_are_refused() -> None:
    with pytest.raises(DeepClusterError, match="is not a regular expression"):
        groups(Named(["a", "b"]), "obj(")  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="No two of the 2 images of named, the first of which is a"):
        groups(Named(["a", "b"]), "(.)")  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match="Nothing says which images"):
        groups(Named(["a", "b"]))  # type: ignore[arg-type]


def test_images_are_located_by_name_in_any_folder(tmp_path: Path) -> None:
    file = write_mat(
        tmp_path / "gnd_toy.mat", names=list("abcd"), queries=[1], ok=[[2, 3]], junk=[[]], bbx=[[0, 0, 5, 5]]
    )
    truth = read_ground_truth(file)
    rows, asked = locate_images(truth, Named(["z/d.jpg", "y/b.JPG", "q.png", "a.webp"]))  # type: ignore[arg-type]
    assert rows.tolist() == [3, 1, -1, 0] and asked.tolist() == [1]
    with pytest.raises(DeepClusterError, match="1 of 1 query of toy is not in named, the first being b"):
        locate_images(truth, Named(["a.jpg"]))  # type: ignore[arg-type]
    with pytest.raises(DeepClusterError, match=r"holds the image b of toy twice, as 1/b.jpg and 2/b.jpg"):
        locate_images(truth, Named(["1/b.jpg", "2/b.jpg"]))  # type: ignore[arg-type]

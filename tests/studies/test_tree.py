"""Purity over a tree against a brute force that walks from every image up the tree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deepcluster.errors import DeepClusterError
from deepcluster.studies.tree import paths_of, purity_over, read_tree, study_tree

DIGITS = """\
# digits by their strokes
round digit with a loop
straight digit
one_loop round
two_loops round

0 one_loop
6 one_loop
9 one_loop
8 two_loops
1 straight
4 straight
7 straight
open digit
2 open
3 open
5 open
"""
CLASSES = tuple("0123456789")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tree.txt").write_text(DIGITS)
    return tmp_path / "tree.txt"


def ancestors(text: str, node: str) -> list[str]:
    """From the root down, by searching the text for each step."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == node and not line.startswith("#"):
            return [*ancestors(text, words[1]), node]
    return [node]


def brute_force(assignment: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[list[dict], dict[int, str]]:
    """Counts image by image."""
    images = [
        (int(cluster), ancestors(DIGITS, CLASSES[label]))
        for cluster, label in zip(assignment, labels, strict=True)
        if cluster >= 0 and label >= 0
    ]
    clusters = sorted({cluster for cluster, _ in images})
    best = dict.fromkeys(clusters, "")
    rows = []
    for depth in range(4):
        at = [(cluster, path[depth] if depth < len(path) else path[-1]) for cluster, path in images]
        right, pure = 0, 0
        for cluster in clusters:
            inside = Counter(node for other, node in at if other == cluster)
            node, most = inside.most_common(1)[0]
            right += most
            if most / sum(inside.values()) > threshold:
                pure += 1
                if node not in CLASSES:
                    best[cluster] = node
        everything = Counter(node for _, node in at)
        chance = everything.most_common(1)[0][1] / len(images)
        nodes = len({path[min(depth, len(path) - 1)] for _, path in images})
        rows.append({"depth": depth, "nodes": nodes, "purity": right / len(images), "chance": chance, "pure": pure})
    return rows, best


@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.7), (1, 0.5), (2, 0.6), (3, 0.9)])
def test_purity_is_the_brute_forces(file: Path, seed: int, threshold: float) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(-1, 10, 300)
    group = np.array([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])[labels]  # strokes, with mistakes
    assignment = np.where(draw.random(300) < 0.25, draw.integers(-1, 9, 300), group * 3 + labels % 3)
    paths = paths_of(read_tree(file), CLASSES)
    depths, clusters = purity_over(assignment, labels, paths, threshold)
    expected, best = brute_force(assignment, labels, threshold)
    assert [{name: row[name] for name in expected[0]} for row in depths] == expected
    assert {row["cluster"]: row["node"] for row in clusters} == best
    assert len(set(best.values())) > 1  # several nodes are met
    for row in depths:
        assert row["pure_share"] == pytest.approx(row["pure"] / len(clusters))


def test_a_mixed_cluster_is_pure_higher_up(file: Path) -> None:
    labels = np.array([0, 6, 9, 8, 1, 1])
    depths, clusters = purity_over(np.array([0, 0, 0, 0, 1, 1]), labels, paths_of(read_tree(file), CLASSES))
    assert [row["pure"] for row in depths] == [2, 2, 2, 1]
    assert [(row["node"], row["depth"], row["node_purity"]) for row in clusters] == [
        ("one_loop", 2, 0.75),
        ("straight", 1, 1.0),
    ]


def test_names_come_from_the_third_column_and_the_names_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("open\topen curve\n0 zero\n")
    tree = read_tree(file, tmp_path / "names.txt")
    assert [tree.name(node) for node in ("round", "open", "0", "1")] == ["with a loop", "open curve", "zero", "1"]
    assert paths_of(tree, ["zero"]) == [["digit", "round", "one_loop", "0"]]  # a class by its name


def test_imagenets_own_order(tmp_path: Path) -> None:
    (tmp_path / "is_a.txt").write_text("n00001740 n02084071\nn02084071 n02085620\n")
    tree = read_tree(tmp_path / "is_a.txt", parent_first=True)
    assert tree.chain("n02085620") == ["n00001740", "n02084071", "n02085620"]


def test_the_first_parent_is_followed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("dog pet\ndog animal\npet thing\nanimal thing\n")
    tree = read_tree(tmp_path / "t.txt")
    assert tree.chain("dog") == ["thing", "pet", "dog"] and tree.dropped == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a b\nb c\nc a\n", r"circle \((a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)\)"),
        ("a a\n", r"circle \(a -> a\)"),
        ("a b\nlonely\n", "Line 2 of"),
        ("# nothing\n", "holds no line"),
    ],
)
def test_trees_that_are_none(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(DeepClusterError, match=sentence):
        read_tree(tmp_path / "t.txt")


def test_labels_that_are_not_in_the_tree(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=r"2 of 3 classes are not in .*\(ten, eleven\)"):
        paths_of(read_tree(file), ["1", "ten", "eleven"])
    (tmp_path / "names.txt").write_text("1 stroke\n4 stroke\n")
    with pytest.raises(DeepClusterError, match="name of 2 nodes"):
        paths_of(read_tree(file, tmp_path / "names.txt"), ["stroke"])
    with pytest.raises(DeepClusterError, match="cannot be read"):
        read_tree(tmp_path / "gone.txt")


def test_numbers_that_make_no_sense(file: Path) -> None:
    paths = paths_of(read_tree(file), CLASSES)
    with pytest.raises(DeepClusterError, match="--threshold"):
        purity_over(np.zeros(2, int), np.zeros(2, int), paths, 0.3)
    with pytest.raises(DeepClusterError, match="both a cluster and a label"):
        purity_over(np.array([-1, 0]), np.array([0, -1]), paths)


def test_classes_without_images_need_no_node(file: Path, tmp_path: Path) -> None:
    labels, assignment = np.array([1, 1, 3, 3, -1]), np.array([0, 0, 1, 1, 1])
    study = study_tree("run", assignment, labels, ("elsewhere", "0", "gone", "8"), read_tree(file), file)
    assert [row["label"] for row in study.more["clusters"]] == ["0", "8"]
    assert "2 of 2 clusters are pure" in study.sentence and "describes 2 of the clusters" in study.sentence
    study.save_tables(tmp_path / "out")
    assert (tmp_path / "out/tree-clusters.csv").read_text().splitlines()[1] == "0,2,0,1.0,one_loop,2,1.0,one_loop"

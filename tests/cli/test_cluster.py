"""`deepcluster cluster` with each algorithm, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcluster.cli.main import main
from deepcluster.clustering import PIC, HierarchicalKMeans, Whitening
from deepcluster.distributed import ProcessGroup
from processes import together


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 12))[np.arange(240) % 6] + 0.4 * rng.normal(size=(240, 12))
    np.save(tmp_path / "f.npy", x.astype(np.float32))
    return tmp_path / "f.npy"


def clusters(path: Path) -> tuple[list[int], list[float]]:
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return [int(row[2]) for row in rows], [float(row[3]) for row in rows]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["--neighbors", "9"], {"n_neighbors": 9}),
        (
            ["--version", "published", "--alpha", "0.2", "--sigma", "0.5", "--iterations", "3"],
            {"version": "published", "alpha": 0.2, "sigma": 0.5, "max_iter": 3},
        ),
    ],
)
def test_pic(table: Path, words: list[str], arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = table.with_name("c.csv")
    line = ["cluster", str(table), "--algorithm", "pic", "--whiten", "6", "--out", str(out), *words]
    assert main([*line, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    x = Whitening(6).fit_transform(np.load(table))
    run = PIC(**arguments).fit(x)
    label, distance = clusters(out)
    assert label == run.labels_.tolist()
    np.testing.assert_allclose(distance, np.linalg.norm(x - run.cluster_centers_[label], axis=1), rtol=1e-3)
    assert scores["clusters_used"] == run.n_clusters_ and scores["objective"] == pytest.approx(run.inertia_, rel=1e-5)
    assert scores["rows"] == 240 and scores["size_max"] == np.bincount(label).max()
    assert main(line) == 0
    assert f"240 rows in {run.n_clusters_} clusters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--backbone", "timm:resnet18"], "--backbone is for images"),
        (["--k", "0"], "--k is 0: ask for at least 1 cluster"),
        (["--k", "3", "--sigma", "0.2"], "--sigma is not an option of kmeans"),
        (["--algorithm", "pic", "--k", "3"], "--k is not an option of pic"),
        (["--algorithm", "hierarchical", "--k", "7", "--branches", "2"], "7 clusters cannot be shared out evenly"),
        (["--algorithm", "hierarchical", "--k", "7", "--sigma", "2"], "--sigma is not an option of hierarchical"),
        (["--k", "6", "--branches", "2"], "--branches is not an option of kmeans"),
        (["--algorithm", "pic", "--seed", "3"], "--seed is not an option of pic"),
        (["--algorithm", "pic", "--neighbors", "240"], "ask for fewer neighbors"),
        (["--algorithm", "pic", "--version", "mine"], "version"),
    ],
)
def test_mistakes(table: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(table), "--whiten", "0", "--out", str(table.with_name("c.csv")), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("deepcluster: ") and said.count("\n") == 1 and sentence in said
    assert [path.name for path in table.parent.iterdir()] == ["f.npy"]


def test_kmeans_uses_its_options(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.with_name("c.csv")
    line = ["cluster", str(table), "--k", "6", "--whiten", "0", "--out", str(out)]
    found = []
    for words in ([], ["--seed", "0", "--iterations", "20"], ["--seed", "1"], ["--iterations", "1"]):
        assert main([*line, *words]) == 0
        found.append(clusters(out))
    assert found[0] == found[1] and found[0] != found[2] and found[0] != found[3]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["--branches", "6"], {"branches": (6,)}),
        (
            ["--branches", "2", "3", "--seed", "4", "--iterations", "2"],
            {"branches": (2, 3), "random_state": 4, "max_iter": 2},
        ),
    ],
)
def test_hierarchical(
    table: Path, words: list[str], arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = table.with_name("c.csv")
    line = [
        "cluster",
        str(table),
        "--algorithm",
        "hierarchical",
        "--k",
        "12",
        "--whiten",
        "6",
        "--out",
        str(out),
        *words,
    ]
    assert main([*line, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    x = Whitening(6).fit_transform(np.load(table))
    run = HierarchicalKMeans(12, **{"random_state": 0, **arguments}).fit(x)
    label, distance = clusters(out)
    assert label == run.labels_.tolist()
    np.testing.assert_allclose(distance, np.linalg.norm(x - run.cluster_centers_[label], axis=1), rtol=1e-3)
    assert scores["objective"] == pytest.approx(run.inertia_, rel=1e-5) and scores["clusters_used"] == 12


def _one_of_several(group: ProcessGroup, folder: str, lines: list[list[str]]) -> list[int]:
    return [
        main(["cluster", f"{folder}/f.npy", *line, "--out", f"{folder}/{group.size}-{i}.csv"])
        for i, line in enumerate(lines)
    ]


@pytest.mark.slow
def test_two_processes_write_the_same_table_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(9, 12))[np.arange(2600) % 9] + 0.4 * rng.normal(size=(2600, 12))).astype(np.float32)
    x[[3, 1500, 2599], 2] = np.nan
    np.save(tmp_path / "f.npy", x)
    lines = [["--k", "20", "--whiten", "6"], ["--k", "20", "--algorithm", "hierarchical"], ["--algorithm", "pic"]]
    assert together(_one_of_several, 1, str(tmp_path), lines[:2]) == [[0, 0]]
    assert together(_one_of_several, 2, str(tmp_path), lines) == [[0, 0, 2]] * 2
    for i in range(2):
        assert (tmp_path / f"2-{i}.csv").read_text() == (tmp_path / f"1-{i}.csv").read_text()
    assert not (tmp_path / "2-2.csv").exists()

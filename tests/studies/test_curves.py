"""Curves, sizes and tables: what is said of numbers that somebody made up."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.studies.curves import agreement, course, epochs_and_values, stability, stopping
from deepcluster.studies.figure2 import figure2
from deepcluster.studies.series import sentence
from deepcluster.studies.sizes import row_of, sizes_of_runs, study_sizes
from deepcluster.studies.study import Study, as_csv, read_study, run_names
from deepcluster.visualize.studies import (
    curves_figure,
    draw_shares,
    series_figure,
    sizes_figure,
    stopping_figure,
    tree_figure,
)
from deepcluster.visualize.style import figure, png

QUIET = Screen(quiet=True)


def run(folder: Path | str = "runs/a", watch: str = "none", **curves: list[float | None]) -> Any:
    length = max(map(len, curves.values()))
    rows = [{"epoch": e, **{name: values[e] for name, values in curves.items()}} for e in range(length)]
    return SimpleNamespace(folder=Path(folder), metrics=rows, config={"settings": {"watch": watch}, "seed": 0})


def texts(page: Any) -> str:
    return " | ".join(text.get_text() for axes in page.axes for text in axes.texts)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (1 - np.exp(-np.arange(40) / 4), "levelled off"),
        (np.arange(12) / 20, "rising"),
        (1 - np.arange(12) / 20, "falling"),
        (np.array([0.1, 0.5, 0.6]), "short"),
    ],
)
def test_how_a_curve_ends(values: np.ndarray, word: str) -> None:
    end = course(values)
    assert end.word == word
    if word == "levelled off":
        assert end.value == pytest.approx(values[-10:].mean())
        assert values[end.since] >= end.value - 0.01 > values[end.since - 1]


def test_stability_says_saturated_or_not() -> None:
    flat = [None, 0.3, 0.5, *[0.7] * 20]
    study = stability([run("runs/a", nmi_previous=flat), run("runs/b", nmi_previous=[None, *np.arange(9) / 10])])
    assert "a: NMI(t-1,t) has saturated at 0.700, reached in epoch 4; the clusters keep changing" in study.sentence
    assert "b: NMI(t-1,t) has not saturated: it is still rising, by 0.200" in study.sentence
    assert study.rows[0] == {"run": "a", "epoch": 2, "nmi_previous": 0.3} and len(study.rows) == 22 + 9
    with pytest.raises(DeepClusterError, match="no NMI"):
        stability([run(nmi_previous=[None])])


def test_agreement_without_labels_is_a_sentence() -> None:
    study = agreement([run(nmi_labels=[0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])])
    assert "levelled off at 0.400, reached in epoch 3" in study.sentence and "(+0.200)" in study.sentence
    with pytest.raises(DeepClusterError, match="no labels"):
        agreement([run(loss=[1.0, 2.0])])


def test_stopping_names_the_epoch(tmp_path: Path) -> None:
    study = stopping(run(tmp_path, "knn", watched=[0.2, None, 0.5, 0.513, 0.4, 0.3]), QUIET)
    assert study.sentence == (
        "The kNN score was highest after epoch 4, at 51.3 %, and has not risen in the 2 values after it"
        " (30.0 % after epoch 6)."
    )
    assert [row["epoch"] for row in study.rows if row["best"]] == [4] and len(study.rows) == 5
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/epoch-0003.ckpt").touch()
    assert "epoch-0003.ckpt holds" in stopping(run(tmp_path, "knn", watched=[0, 0, 0, 1, 0.5]), QUIET).sentence
    assert "still rising" in stopping(run(tmp_path, "nmi", watched=[0.1, 0.2]), QUIET).sentence
    assert "one value alone" in stopping(run(tmp_path, "nmi", watched=[0.1]), QUIET).sentence
    with pytest.raises(DeepClusterError, match="--watch knn"):
        stopping(run(tmp_path / "none", loss=[1.0]), QUIET)


@pytest.mark.parametrize(
    ("scores", "parts"),
    [
        ([50, 60, 40], ["k = 100 with kNN 60.0 %: above the number of classes, 50 (2 times as many). One run"]),
        ([60, 50, 40], ["k = 5 with", "not above the number", "smallest value tried"]),
        ([40, 50, 60], ["k = 1,000 with", "largest value tried"]),
    ],
)
def test_the_best_k(scores: list[int], parts: list[str]) -> None:
    rows = [{"k": k, "score": score / 100} for k, score in zip((5, 100, 1000), scores, strict=True)]
    said = sentence("k", "knn", rows, 50)
    assert all(part in said for part in parts), said


def test_values_that_cannot_be_told_apart_are_named() -> None:
    rows = [{"k": k, "score": s, "error": 0.01} for k, s in ((5, 0.5), (20, 0.585), (60, 0.6), (90, 0.57))]
    said = sentence("k", "knn", rows, 10)
    assert "; 20 is within two standard errors of it (2.0 points)" in said
    assert "classes" not in sentence("reassign", "knn", [{**row, "reassign": row["k"]} for row in rows], 10)
    assert "nothing to be compared" in sentence("k", "knn", rows[:1], 10)


def test_sizes_are_counted_over_clusters_in_use() -> None:
    assert row_of("a", np.array([0, 3, 9, 10, 40])) == {
        "run": "a",
        "images": 62,
        "k": 5,
        "used": 4,
        "min": 3,
        "median": 9.5,
        "max": 40,
        "under_10": 0.5,
        "as_even_as": pytest.approx(2.6, abs=0.2),
    }


def test_sizes_of_runs_side_by_side(tmp_path: Path) -> None:
    def clustered(name: str, assignment: list[int], k: int) -> Any:
        return SimpleNamespace(folder=tmp_path / name, assignment=np.array(assignment), centroids=np.zeros((k, 2)))

    sizes = sizes_of_runs([clustered("kmeans", [0, 0, 1, -1], 3), clustered("pic", [0, 1, 2, 2], 3)])
    assert {name: each.tolist() for name, each in sizes.items()} == {"kmeans": [2, 1, 0], "pic": [1, 1, 2]}
    study = study_sizes(sizes, ["x", "y"])
    assert "kmeans: 2 clusters of 1 to 2 images" in study.sentence and len(study.more["clusters"]) == 6
    with pytest.raises(DeepClusterError, match="No image"):
        sizes_of_runs([clustered("none", [-1], 3)])


def test_run_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "x/a", tmp_path / "y/a"]) == ["x/a", "y/a"]
    with pytest.raises(DeepClusterError, match="twice"):
        run_names([tmp_path / "a", tmp_path / "a"])


def test_tables_on_disk(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x,y"}, {"a": None, "c": 0.25}]
    study = Study("k", "said.", {"n": np.int64(3), "nan": float("nan")}, rows, more={"parts": [{"p": 1}]})
    study.save(tmp_path / "new", series_figure([{"k": 2, "score": 0.5}], "k", "t", "u"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["k-parts.csv", "k.csv", "k.json", "k.png"]
    read = list(csv.DictReader(io.StringIO((tmp_path / "new/k.csv").read_text())))
    assert read == [{"a": "1", "b": "x,y", "c": ""}, {"a": "", "b": "", "c": "0.25"}]
    found = read_study(tmp_path / "new", "k")
    assert found == {
        "study": "k",
        "sentence": "said.",
        "settings": {"n": 3, "nan": None},
        "rows": rows,
        "parts": [{"p": 1}],
    }
    assert as_csv([]) == "\n"
    with pytest.raises(DeepClusterError, match=r"no k\.json"):
        read_study(tmp_path, "k")
    (tmp_path / "k.json").write_text('{"study": "other"}')
    with pytest.raises(DeepClusterError, match="damaged"):
        read_study(tmp_path, "k")


def test_figure_2_says_what_is_missing(tmp_path: Path) -> None:
    _, page = figure2(run("runs/a", nmi_previous=[None, 0.5, 0.6]), None)
    assert "a has no NMI(t, labels)" in texts(page) and "no study of k" in texts(page)
    settings = {"score": "knn", "classes": 10}
    (tmp_path / "k.json").write_text(
        json.dumps({"study": "k", "settings": settings, "rows": [{"k": 5, "score": 0.4}, {"k": 50, "score": 0.6}]})
    )
    study, page = figure2(None, tmp_path)
    assert "no run was given" in texts(page) and "10 classes" in texts(page) and "best: k = 50, 60.0" in texts(page)
    assert study.sentence == "Panels c are drawn from our own runs; a and b had no data."
    assert [row["score"] for row in study.rows] == [0.4, 0.6]


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_is_marked_wherever_it_is(best: int) -> None:
    rows = [{"k": k, "score": 0.9 if n == best else 0.5, "error": 0.01} for n, k in enumerate((5, 6, 3000))]
    page = series_figure(rows, "k", "title", "kNN (%)", 100)
    png(page)
    assert f"best: k = {('5', '6', '3,000')[best]}, 90.0" in texts(page)
    axes = page.axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 5 and axes.get_xlim()[1] > 3000
    watched = [{"epoch": n + 1, "watched": row["score"], "best": n == best} for n, row in enumerate(rows)]
    page = stopping_figure(watched, "kNN score")
    assert f"best: 90.0 after epoch {best + 1}" in texts(page) and png(page)


def test_any_numbers_are_a_picture() -> None:
    x = np.arange(1, 4)
    assert png(curves_figure({str(n): (x, x / 10 + n / 100) for n in range(9)}, "t", "u"))
    assert png(curves_figure({"one": (x[:1], x[:1] / 3), "longer": (x, x / 3)}, "t", "u"))
    assert png(series_figure([{"k": 7, "score": 0.0}], "k", "t", "u"))
    assert png(sizes_figure({"one": np.array([5]), "even": np.array([3, 3, 0]), "wide": np.array([1, 10_000])}))
    assert png(sizes_figure({"same": np.array([4, 4])}))
    depths = [{"depth": d, "purity": 1 - d / 5, "chance": 0.2, "pure": 9 - d} for d in range(3)]
    assert png(tree_figure(depths, 0.7, 9))


def test_every_cluster_is_in_the_shares() -> None:
    sizes = {"a": np.array([1, 1, 2, 900, 0]), "b": np.random.default_rng(0).integers(1, 3000, 500)}
    axes = figure(4, 3).add_subplot()
    draw_shares(axes, sizes)
    drawn = [patch.get_data().values.sum() for patch in axes.patches]
    assert drawn == pytest.approx([100] * 4)


def test_epochs_without_a_number_are_left_out() -> None:
    x, y = epochs_and_values([{"epoch": 0, "a": None}, {"epoch": 1, "a": 2.0}, {"epoch": 2}], "a")
    assert x.tolist() == [2] and y.tolist() == [2.0]


def words_of(page: Figure) -> str:
    return " | ".join(text.get_text() for text in page.axes[0].texts)


def test_one_value_has_a_bar_and_equal_ones_are_not_called_best() -> None:
    one = series_figure([{"k": 50, "score": 0.5, "error": 0.01}], "k", "Choice of k", "kNN (%)", 10)
    assert "bar: two standard errors" in words_of(one) and "band" not in words_of(one) and "best" not in words_of(one)
    assert len(one.axes[0].containers) == 1
    rows = [{"k": k, "score": score, "error": 0.01} for k, score in ((5, 0.4), (10, 0.55), (50, 0.55), (100, 0.5))]
    assert "equally good: k = 10 and 50, 55.0" in words_of(series_figure(rows, "k", "Choice of k", "kNN (%)", 10))
    said = sentence("k", "knn", rows, 10)
    assert said.startswith("Of 4 values k = 10 and 50 are equally good and the best, with kNN 55.0 %.")
    assert "smallest" not in sentence("k", "knn", rows[1:], 10)


@pytest.mark.parametrize("best", range(4))
@pytest.mark.parametrize("classes", [3, 10, 12, 40, 200])
def test_no_word_lies_on_the_line_of_the_classes(best: int, classes: int) -> None:
    """Nor on another word: boxes as matplotlib draws them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = [{"k": k, "score": 0.6 if n == best else 0.5, "error": 0.01} for n, k in enumerate((5, 12, 50, 100))]
    page = series_figure(rows, "k", "Choice of k", "kNN (%)", classes)
    FigureCanvasAgg(page).draw()
    axes = page.axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    line = axes.transData.transform((classes, 0))[0]
    for word, box in boxes.items():
        if "band" not in word:  # which has paper behind it
            assert not box.x0 < line < box.x1, word
        assert box.x0 >= 0 and box.x1 <= page.bbox.width, word
    pairs = [(a, b) for a in boxes for b in boxes if a < b]
    assert not [(a, b) for a, b in pairs if boxes[a].overlaps(boxes[b])]


def test_the_first_dots_are_whole() -> None:
    x = np.arange(2, 12)
    axes = curves_figure({"a": (x, x / 20)}, "Stability", "NMI(t-1, t)").axes[0]
    assert axes.get_xlim()[0] < 2 and axes.get_xlim()[1] > 11


def test_no_column_of_a_table_is_cut() -> None:
    from rich.console import Console

    row = dict.fromkeys(("k", "score", "error", "clusters_used", "nmi_previous", "nmi_labels", "seconds"), 1234.5678)
    study = Study("k", "", {}, [{"run": "a-name-of-a-run-that-is-long/" * 2, **row}])
    console = Console(width=80, record=True, file=open("/dev/null", "w"), soft_wrap=True)  # noqa: SIM115
    console.print(study.table(), soft_wrap=False)
    text = console.export_text()
    assert "…" not in text and "seconds" in text and text.count("1,235") == 7 and max(map(len, text.splitlines())) <= 80

"""Curves and sizes: what is drawn, for one epoch and for ten thousand clusters."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from PIL import Image

from deepcluster.clustering.metrics import effective
from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.history import Panel, curve, draw_history, history_figure, panel_figure, panels
from deepcluster.visualize.sizes import draw_sizes, sizes_figure, summary

from .conftest import metrics_row as line


def texts(page: Figure) -> list[str]:
    return [text.get_text() for axes in page.axes for text in axes.texts]


def drawn(panel: Panel, metrics: list[dict[str, Any]]) -> Figure:
    return panel_figure([(panel, panel.curves(metrics))])


def test_a_curve_leaves_out_what_is_not_a_number() -> None:
    metrics: list[dict[str, Any]] = [
        {"epoch": 0, "a": None},
        {"epoch": 1, "a": 2.0},
        {"epoch": 2, "a": float("nan")},
        {"epoch": 3},
    ]
    x, y = curve(metrics, "a")
    assert x.tolist() == [2.0] and y.tolist() == [2.0]


def test_panels_need_numbers() -> None:
    titles = [panel.title for panel in panels([{"epoch": 0, "loss": 1.0, "nmi_labels": None}], 5)]
    assert titles == ["Loss"]
    with pytest.raises(DeepClusterError, match="no epoch has ended"):
        history_figure([], 5)


def test_lines_and_levels_are_labeled() -> None:
    page = history_figure([line(epoch, 50, 1000) for epoch in range(6)], 50, 1000)
    assert len(page.axes) == 8
    words = texts(page)
    assert f"ln K = {math.log(50):.3g}" in words and "mean = 20" in words
    assert {"loss", "NMI with previous", "NMI with labels", "purity", "train", "features", "cluster"} <= set(words)
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in page.axes)


def test_a_series_keeps_its_color_and_epochs_are_whole_numbers() -> None:
    [panel] = [panel for panel in panels([line(0, 50, 1000)], 50) if panel.title == "Agreement"]
    early, late = (drawn(panel, [line(e, 50, 1000) for e in range(epochs)]).axes[0] for epochs in (1, 3))
    colors = [{text.get_text(): text.get_color() for text in axes.texts} for axes in (early, late)]
    assert len(colors[0]) == 2 and colors[0].items() < colors[1].items()
    inside = [tick for tick in early.get_xticks() if early.get_xlim()[0] <= tick <= early.get_xlim()[1]]
    assert inside == [1.0]


def test_labels_do_not_overlap() -> None:
    metrics = [line(epoch, 50, 1000) | {"nmi_previous": 0.61, "nmi_labels": 0.6, "purity": 0.6} for epoch in range(3)]
    [panel] = [panel for panel in panels(metrics, 50) if panel.title == "Agreement"]
    page = drawn(panel, metrics)
    page.draw_without_rendering()
    boxes = sorted((text.get_window_extent().y0, text.get_window_extent().y1) for text in page.axes[0].texts)
    assert len(boxes) == 3
    for (_, top), (bottom, _) in pairwise(boxes):
        assert bottom >= top - 4  # pixels, at 144 a inch


@pytest.mark.parametrize(("epochs", "k"), [(1, 5), (1, 1), (3, 10_000), (300, 20)])
def test_history_of_any_length_is_drawn(epochs: int, k: int, tmp_path: Path) -> None:
    path = style.save(history_figure([line(epoch, k, 60) for epoch in range(epochs)], k, 60), tmp_path / "a" / "h.png")
    with Image.open(path) as page:
        page.verify()
    assert [file.name for file in path.parent.iterdir()] == ["h.png"]


@pytest.mark.parametrize(
    "sizes",
    [[60], [0, 60], [0], [5, 5, 5], [1, 1, 10_000], np.random.default_rng(0).zipf(1.5, 10_000).clip(0, 10**6)],
    ids=["one", "empty", "nothing", "even", "wide", "many"],
)
def test_sizes_of_any_spread_are_drawn(sizes: list[int]) -> None:
    page = sizes_figure(np.array(sizes))
    with Image.open(io.BytesIO(style.png(page))) as picture:
        assert picture.width > 1000
    for axes in page.axes:
        assert axes.get_xlabel() and axes.get_ylabel()


def test_histogram_counts_every_cluster_once() -> None:
    for sizes in ([3, 3, 4, 900, 0], [7, 8, 9, 9], [1, 1, 1, 2]):
        page = sizes_figure(np.array(sizes))
        [steps] = page.axes[1].patches
        assert isinstance(steps, StepPatch) and steps.get_data()[0].sum() == len(sizes)


def test_effective_clusters() -> None:
    assert effective(np.array([5, 5, 5, 0])) == pytest.approx(3)
    share = np.array([0.5, 0.3, 0.2])
    assert effective(np.array([50, 30, 0, 20])) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert effective(np.array([9])) == pytest.approx(1)
    assert effective(np.zeros(3, np.int64)) == 0
    assert summary(np.array([10, 0, 10])) == (
        "20 images in 2 of 3 clusters, 0 to 10 each; half of them hold 10 or more"
    )


def test_pictures_are_written_to_the_folder_or_an_error_says_why(run: Run) -> None:
    folder = run.folder / "pictures"
    (name, page), *others = [*draw_history(run).items(), *draw_sizes(run).items()]
    assert name == "history" and [other for other, _ in others] == ["sizes"]
    assert style.save(page, folder / "history.png") == folder / "history.png"
    with pytest.raises(DeepClusterError, match="cannot be written"):
        style.save(page, folder / "history.png" / "sizes.png")  # not a folder


def test_svg_uses_the_colors_of_the_page_and_loads_nothing() -> None:
    metrics = [line(epoch, 5, 60) for epoch in range(3)]
    texts = [style.svg(drawn(panel, metrics)) for panel in panels(metrics, 5, 60)]
    for text in texts:
        assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
        assert not re.search(r"https?:|url\((?!#)|@import", text)
        assert "var(--quiet)" in text and "var(--series-1)" in text
        assert not any(color in text for color in (*style.SERIES, style.INK, style.QUIET, style.LINE))
        HTMLParser().feed(text)
    ids = [name for text in texts for name in set(re.findall(r'id="([^"]+)"', text))]
    clips = [name for name in ids if name.startswith("p")]
    assert clips and len(clips) == len(set(clips))
    for text in texts:  # every reference inside a figure leads to something in it
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(re.findall(r'id="([^"]+)"', text))


def test_the_same_figure_gives_the_same_svg() -> None:
    metrics = [line(epoch, 5, 60) for epoch in range(3)]
    panel = panels(metrics, 5)[0]
    assert style.svg(drawn(panel, metrics)) == style.svg(drawn(panel, metrics))

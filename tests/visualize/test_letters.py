"""Names that cannot be drawn are drawn all the same: in another font where there is one, as escapes elsewhere."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.engine.run import Run
from deepcluster.errors import DeepClusterWarning
from deepcluster.visualize import letters, style
from deepcluster.visualize.clusters import draw_clusters
from deepcluster.visualize.compare import compare_figure
from deepcluster.visualize.confusion import confusion_figure, draw_confusion
from deepcluster.visualize.images import paragraph, text_line
from deepcluster.visualize.letters import drawable, font_file, verbatim
from deepcluster.visualize.map import map_figure
from deepcluster.visualize.neighbors import draw_neighbors
from deepcluster.visualize.report import write_report
from visualize.conftest import metrics_row, rewritten

NAMES = (
    "new\nline", "fox \N{FOX FACE} é", "\u4e2d\u6587", "\u0639\u0631\u0628\u0649", "\udce9t\udcff \ud83d",
    "a\x00b\x1b[31m\tc", r"$\frac{1$ and $x^", "_hidden", "x" * 100_000, "\u202elif.exe",
)  # fmt: skip


@pytest.fixture
def strict() -> None:
    """Warnings, such as of a missing glyph, count as failures."""
    warnings.simplefilter("error")


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_becomes_a_line_of_letters(name: str, strict: None) -> None:
    for bold in (False, True):
        assert all(font_file(letter, bold) for letter in drawable(name, bold))
        line = text_line(name, 200, bold=bold)
        assert line.shape[1] == 200 and (line < 128).any()
    assert paragraph(f"of {name}.", 200).shape[1] == 200


def test_what_is_drawn_says_which_letter_is_missing() -> None:
    assert drawable("a\nb\t\udce9\x7f") == "a\\nb\\t\\udce9\\x7f"
    assert drawable("é \u0639 Ж\u00a0\u200dx") == "é \u0639 Ж x"
    assert verbatim("_a $1$") == " _a \\$1\\$" and len(verbatim("x" * 500, 40)) == 40


def test_letters_come_from_another_font_where_one_is_installed(monkeypatch: pytest.MonkeyPatch, strict: None) -> None:
    caches = (letters.installed_fallbacks, letters.font_file, letters._drawable)
    pages, found = [], []
    for families in ((), ("STIXGeneral",)):  # it comes with matplotlib too
        monkeypatch.setattr(letters, "FALLBACKS", families)
        for each in caches:
            each.cache_clear()
        found.append(drawable("a\u210a"))
        pages.append(text_line("a\u210a", 90))
        style.png(map_figure(np.eye(2), None, (), "a\u210a", "a\u210a"))
    monkeypatch.undo()
    for each in caches:
        each.cache_clear()
    assert found == ["a\\u210a", "a\u210a"] and not np.array_equal(pages[0], pages[1])


def test_figures_take_any_name(strict: None) -> None:
    cluster = np.arange(40) % len(NAMES)
    page = confusion_figure(cluster, cluster, NAMES)
    assert len(page.axes[0].get_yticklabels()) == len(NAMES)
    style.png(page)
    spots = np.random.default_rng(0).normal(size=(40, 2))
    page = map_figure(spots, cluster, NAMES, " ".join(NAMES[:8]), NAMES[5])
    legend = page.axes[0].get_legend()
    assert legend is not None and len(legend.get_texts()) == len(NAMES)
    style.png(page)
    style.png(compare_figure({name: [metrics_row(0, 5, 60)] for name in NAMES[:6]}))


def test_pictures_and_report_of_images_with_such_names(run: Run, tmp_path: Path, strict: None) -> None:
    folder = tmp_path / "images"
    draw = np.random.default_rng(0)
    for index, name in enumerate([*NAMES[:4], "\udce9t"] * 13):
        file = folder / name / f"{index:02d} \udcff\n\N{FOX FACE}.png"
        os.makedirs(file.parent, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(file)
    for picture in (
        *draw_clusters(run, data=folder, images=2).values(),
        *draw_neighbors(run, data=folder, queries=5, k=2).values(),
        *draw_confusion(run, data=folder).values(),
    ):
        style.png(picture)
    moved = rewritten(run, assignment=draw.integers(0, 5, 65), data=str(folder), images=65)
    moved = rewritten(moved, source_fingerprint=moved.source().fingerprint())
    with pytest.warns(DeepClusterWarning, match="it is of 61 images, and the run has 65"):  # its distances
        page = write_report(moved, clusters=2, images=2).read_text(encoding="utf-8")
    assert "\u4e2d\u6587" in page and "\N{FOX FACE}" in page

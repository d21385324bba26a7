"""The page: self-contained, escaped, and written whatever the run looks like."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.visualize import history, report_text, style
from deepcluster.visualize.report import embed, write_report

from .conftest import HOSTILE, FakeRun, LostRun, NewRun, make_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, images and text of a page; complains of tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.images, self.tags, self.open = "", [], [], []  # type: ignore[var-annotated]
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    def words(self) -> str:
        return " ".join(self.text.split())


def report(run: FakeRun, plots: bool = False, **options: int) -> Page:
    """Writes and reads the page; most tests are not about plots, which take a second, and leave them blank."""
    with pytest.MonkeyPatch.context() as patch:
        if not plots:
            patch.setattr(style, "svg", lambda figure: "<svg></svg>")
            patch.setattr(history, "figure", lambda panels, metrics: None)
        path = write_report(run, **options)  # type: ignore[arg-type]
    assert path == run.folder / "report.html"
    return Page(path)


def test_the_page_needs_nothing_from_elsewhere(run: FakeRun) -> None:
    page = report(run, plots=True)
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?!data:image/|#)[^"'\s>]""", page.source)
    assert not re.search(r"https?://|url\((?!#)|@import|@font-face", page.source)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_every_image_is_inside_and_is_the_right_one(run: FakeRun) -> None:
    page = report(run, images=3)
    assert len(page.images) == 4 * (3 + 6)  # four clusters that hold images, with the farthest of each
    for image in page.images:
        kind, _, content = image["src"].removeprefix("data:image/").partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.format == kind.upper()
            index = int(re.search(r"/(\d+)\.png$", image["alt"])[1])  # type: ignore[index]
            assert np.unique(np.asarray(picture)).tolist() == [index]


def test_paths_labels_and_names_are_escaped(run: FakeRun) -> None:
    (run.folder / "bad_images.csv").write_text(f'index,path,reason\n7,"{HOSTILE.replace(chr(34), chr(34) * 2)}",cut\n')
    (run.folder / "evaluation").mkdir()
    (run.folder / "evaluation" / "x.json").write_text(json.dumps({"protocol": HOSTILE, "scores": {HOSTILE: 0.5}}))
    run.config |= {"preset": HOSTILE, "data": HOSTILE}
    run.source().labels[:] = 1  # the hostile class
    page = report(run, plots=True)
    assert "<script" not in page.source.lower()
    assert page.words().count("alert(") >= 6  # all are there, as text


def test_it_says_what_the_run_is(run: FakeRun) -> None:
    words = report(run, clusters=2).words()
    assert "tiny-deepcluster on photos" in words
    assert "59 images in 4 clusters, after 4 epochs" in words
    assert "seed 3" in words and "torch 2.8.0" in words and "2026-01-05 10:11" in words
    assert "The 2 largest of 4 clusters" in words
    assert "1 of 5 clusters is empty" in words
    assert "deepcluster train tiny-deepcluster --data somewhere/photos --out" in words
    assert "--epochs 4 --batch-size 32 --seed 3 --image-size 20 --method.k 5" in words


def test_clusters_come_by_size_with_their_main_class(run: FakeRun) -> None:
    run.assignment = np.array([4] * 30 + [2] * 20 + [0] * 9 + [-1])
    page = report(run)
    assert re.findall(r'id="cluster-(\d+)"', page.source) == ["4", "2", "0"]
    assert "ant 67%" in page.words()  # images 0 to 29: labels 0 twenty times, 1 ten times
    assert "All 3 clusters, by size" in page.words()


def test_evaluations_stand_in_tables(run: FakeRun) -> None:
    folder = run.folder / "evaluation"
    folder.mkdir()
    scores = {"knn20_top1": 0.5432, "k10_nmi": 0.4, "k10_nmi_std": 0.0123, "odd": None}
    (folder / "knn.json").write_text(json.dumps({"protocol": "knn", "settings": {"k": [20]}, "scores": scores}))
    (folder / "broken.json").write_text("{")
    (folder / "other.json").write_text("[1]")
    [table] = report_text.evaluations(run.folder)
    assert table.rows == [("knn20_top1", "54.3", ""), ("k10_nmi", "40.0", "1.2"), ("odd", "n/a", "")]
    assert table.settings == [("k", "[20]")]
    words = report(run).words()
    assert "knn20_top1 54.3" in words and "k10_nmi_std" not in words


def test_bad_images_are_listed(run: FakeRun) -> None:
    rows = "".join(f'{number},"a, b/{number}.jpg",zero bytes\n' for number in range(250))
    (run.folder / "bad_images.csv").write_text("index,path,reason\n" + rows)
    words = report(run).words()
    assert "250 files could not be decoded" in words and "the first 200" in words
    assert "a, b/199.jpg" in words and "a, b/200.jpg" not in words


def test_without_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path, labels=False)
    for row in run.metrics:
        del row["nmi_labels"], row["purity"]
    words = report(run, plots=True).words()
    assert "purity" not in words and "NMI with labels" not in words and "main class" not in words


def test_one_cluster(tmp_path: Path) -> None:
    words = report(make_run(tmp_path, k=1), plots=True).words()
    assert "59 images in 1 cluster, after 4 epochs" in words


def test_interrupted_in_the_second_epoch(tmp_path: Path) -> None:
    words = report(make_run(tmp_path, epochs=1), plots=True).words()
    assert "stands at 1 of 4 epochs" in words and "--resume" in words and "after 1 epoch," in words


def test_killed_before_the_first_clustering(tmp_path: Path) -> None:
    page = report(make_run(tmp_path, epochs=0, kind=NewRun))
    assert "not clustered yet" in page.words() and "Nothing has been clustered yet" in page.words()
    assert page.images == []


def test_images_that_moved_are_a_sentence(tmp_path: Path) -> None:
    page = report(make_run(tmp_path, kind=LostRun))
    assert "The images cannot be shown: There is no folder somewhere/photos" in page.words()
    assert page.images == [] and page.source.count("<svg") == 10


def test_images_that_changed_are_not_passed_off_as_the_old_ones(run: FakeRun) -> None:
    run.config["source_fingerprint"] = "another"
    page = report(run)
    assert "no longer holds the images" in page.words() and page.images == []


def test_some_images_gone(run: FakeRun) -> None:
    run.source().gone = set(range(0, 60, 2))
    page = report(run)
    assert "can no longer be read" in page.words() and "missing" in page.words()
    assert 0 < len(page.images) < 60


def test_one_cluster_that_swallows_the_rest_is_a_remark(run: FakeRun) -> None:
    run.assignment = np.array([0] * 50 + [1] * 10)
    assert "One cluster holds 50 of 60 images" in report(run).words()


def test_ten_thousand_clusters_stay_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=20_000, k=10_000)
    run.source().side = 1
    page = report(run)
    assert len(page.source) < 2_000_000
    assert "The 24 largest of 9,999 clusters" in page.words() and "The 500 largest clusters as a table" in page.words()


def test_photos_are_jpeg_and_tiny_pictures_keep_every_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    head, _, content = embed(noise, 112).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), noise)
    head, _, content = embed(np.zeros((300, 500, 3), np.uint8), 112).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (112, 112)


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert report_text.duration(seconds) == said


def test_names_of_data_are_short() -> None:
    assert report_text.short("/data/photos/") == "photos"
    assert report_text.short("digits") == "digits"
    assert report_text.short("a/train-{000..003}.tar") == "train-{000..003}.tar"
    assert report_text.short("torchvision:CIFAR10?root=/data") == "torchvision:CIFAR10"


def test_the_summary_says_what_the_curves_say() -> None:
    metrics = [
        {"loss": 3.5, "purity": 0.2, "nmi_labels": 0.1, "watched": 0.31},
        {"loss": 3.0, "purity": 0.3, "nmi_labels": 0.2, "watched": 0.42, "nmi_previous": 0.5, "reassigned": 0.6},
        {"loss": 2.5, "purity": 0.4, "nmi_labels": 0.3, "watched": 0.40, "nmi_previous": 0.7, "reassigned": 0.25},
    ]
    said = " ".join(report_text.summary({"settings": {"watch": "knn"}}, metrics, np.array([1, 5, 9, 0])))
    for part in ("fell from 3.50 to 2.50 in 3", "among 4 clusters would cost 1.39", "Half of the clusters hold 5",
                 "smallest holds 1 and the largest 9", "from 0.50 to 0.70, still rising", "25 % of the images changed",
                 "40 % of the images are of their cluster's main class", "NMI of 0.30", "kNN accuracy",
                 "42.0 % after epoch 2"):  # fmt: skip
        assert part in said, part
    assert report_text.summary({}, [], None) == []
    assert report_text.summary({}, [{"loss": None}], np.array([3])) == [
        "Half of the clusters hold 3 images or more; the smallest holds 3 and the largest 3."
    ]


def test_guessing_counts_turns() -> None:
    config = {"settings": {"method": {"name": "deepercluster", "k": 20, "super_clusters": 4, "rotations": True}}}
    sizes, metrics = np.full(20, 9), [{"loss": 4.2}, {"loss": 3.9}]
    figure = next(fact for fact in report_text.key_figures(config, metrics, sizes) if fact.name == "loss")
    assert figure.hint == "guessing: ln 80 = 4.38"
    assert report_text.remarks(config, metrics, sizes, 0, Path("run")) == []
    assert "20 clusters and 4 turns would cost 4.38" in " ".join(report_text.summary(config, metrics, sizes))
    (loss,) = (panel for panel in history.panels(metrics, 20, turns=4) if panel.title == "Loss")
    assert loss.levels == {"ln 80": pytest.approx(np.log(80))}

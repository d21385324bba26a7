"""The page: self-contained, escaped, and written whatever the run looks like."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.data.naming import short_name
from deepcluster.data.open import open_images
from deepcluster.engine.model import MODEL
from deepcluster.engine.run import Run
from deepcluster.engine.scores import evaluations
from deepcluster.errors import DeepClusterWarning
from deepcluster.visualize import history, report_text
from deepcluster.visualize.report import embedded_thumbnail, environment, write_report

from .conftest import HOSTILE, K, N, metrics_row, rewritten

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, images and text of a page; complains of tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.attributes = "", ""
        self.images: list[dict[str, Any]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.attributes += " ".join(f'{name}="{value}"' for name, value in attrs if name not in ("alt", "title"))
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


def report(run: Run, data: str | None = None, **options: int) -> Page:
    path = write_report(run, data, **options)
    assert path == run.folder / "report.html"
    return Page(path)


def four_epochs(run: Run, **config: Any) -> Run:
    """The run with the curves of four epochs and one empty cluster; image 7 is bad."""
    assignment = np.append(np.arange(N) % (K - 1) + 1, -1)
    assignment[7] = -1
    settings = run.config["settings"] | {"epochs": 4}
    metrics = [metrics_row(epoch, K, N) for epoch in range(4)]
    return rewritten(run, assignment=assignment, metrics=metrics, settings=settings, **config)


def test_the_page_loads_nothing_and_escapes_paths_labels_and_names(run: Run) -> None:
    markup = "<script>alert(1)</script>"
    (run.folder / "bad_images.csv").write_text(f'index,path,reason\n7,"{markup}",cut\n')
    (run.folder / "evaluation").mkdir(exist_ok=True)
    (run.folder / "evaluation" / "x.json").write_text(json.dumps({"protocol": markup, "scores": {markup: 0.5}}))
    (run.folder / "pictures").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(run.folder / "pictures" / "neighbors.png")
    page = report(four_epochs(run, preset=markup))
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?!data:image/|#)[^"'\s>]""", page.attributes)
    assert not re.search(r"https?://|url\((?!#)|@import|@font-face", page.source)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.words().count("alert(1)") >= 5  # all are there, as text
    assert HOSTILE in page.words()  # the name of a class
    assert page.source.count("<svg") == 10
    assert 'id="pictures"' in page.source and page.words().count("Nearest neighbors, trained and untrained") == 1


def test_images_that_have_moved_are_told_and_shown_from_their_new_place(run: Run, tmp_path: Path) -> None:
    whole = report(run).images
    moved = rewritten(run, data=str(tmp_path / "gone"))
    with pytest.warns(DeepClusterWarning, match="gone, are not there any more: give --data"):
        assert report(moved).images == []
    assert report(moved, str(run.config["data"])).images == whole != []


def test_every_image_is_embedded_and_is_the_right_one(run: Run) -> None:
    page = report(four_epochs(run), images=3)
    whole = [image for image in page.images if image["alt"]]  # the others are links to the clusters, with their names
    assert len(whole) == 4 * (3 + 6)  # four clusters that hold images, with the farthest of each
    assert [image["src"] for image in page.images[:4]] == [image["src"] for image in whole[:: 3 + 6]]
    for image in whole:
        kind, _, content = image["src"].removeprefix("data:image/").partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.format == kind.upper()
            index = int(re.search(r"/(\d+)\.png$", image["alt"])[1])  # type: ignore[index]
            assert np.asarray(picture)[0, 0, 0] == index


def test_the_page_describes_the_run(run: Run) -> None:
    rows = "".join(f'{number},"a, b/{number}.jpg",zero bytes\n' for number in range(250))
    (run.folder / "bad_images.csv").write_text("index,path,reason\n" + rows)
    folder = run.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    scores = {"knn20_top1": 0.5432, "k10_nmi": 0.4, "k10_nmi_std": 0.0123, "odd": None}
    (folder / "knn.json").write_text(json.dumps({"protocol": "knn", "settings": {"k": [20]}, "scores": scores}))
    (folder / "broken.json").write_text("{")
    for number, other in enumerate(("[1]", '{"scores": 3}', '{"scores": {}, "settings": [1]}', "[" * 50_000, "\0")):
        (folder / f"other{number}.json").write_text(other)
    [table] = evaluations(run.folder)
    assert table.rows == [("knn20_top1", "54.3", ""), ("k10_nmi", "40.0", "1.2"), ("odd", "n/a", "")]
    assert table.settings == [("k", "[20]")]
    words = report(
        four_epochs(run, preset="tiny-deepcluster", data="somewhere/photos", created="2026-01-05T10:11:12+00:00"),
        clusters=2,
    ).words()
    for part in (
        "photos", "59 images in 4 clusters, after 4 epochs of tiny-deepcluster", "seed 3", "2026-01-05 10:11",
        "1 of 5 clusters is empty", "deepcluster train tiny-deepcluster --data somewhere/photos --out",
        "--epochs 4 --batch-size 16 --seed 3 --image-size 16 --method.k 5", "knn20_top1 54.3",
        "250 files could not be decoded", "the first 200", "a, b/199.jpg", "The images cannot be shown",
    ):  # fmt: skip
        assert part in words, part
    assert "a, b/200.jpg" not in words and "k10_nmi_std" not in words


def test_the_clearest_clusters_come_first_with_their_main_class(run: Run) -> None:
    found = rewritten(run, assignment=np.array([4] * 30 + [2] * 20 + [0] * 9 + [-1] * 2))
    centers, distance, near = np.asarray(run.centroids)[[0, 2, 4]], np.asarray(run.distance), {}
    for place, (number, images) in enumerate({0: slice(50, 59), 2: slice(30, 50), 4: slice(30)}.items()):
        others = np.linalg.norm(np.delete(centers, place, 0) - centers[place], axis=1)
        many = images.stop - (images.start or 0)
        known = np.asarray(run.source().labels)[images]
        mixed = np.bincount(known[known >= 0]).max() < (known >= 0).sum() / 2
        near[str(number)] = mixed, np.nanmean(distance[images]) * many / (many - 1) / others.min()
    page = report(found, images=2)
    assert re.findall(r'id="cluster-(\d+)"', page.source) == sorted(near, key=near.__getitem__)
    assert "a ant 67% of this class 30 images" in page.words()  # images 0 to 29: the first class twenty times
    assert "All 3 clusters, the clearest first" in page.words()
    assert "The 2 largest of 3 clusters" in report(found, clusters=2, images=2).words()
    assert page.words().index("the clearest first") < page.words().index("Key figures"), "the groups before the numbers"


def test_a_run_without_labels_in_one_cluster_interrupted_in_its_second_epoch(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "squares.npy", np.zeros((N + 1, 20, 20, 3), np.uint8))
    row = {name: value for name, value in metrics_row(0, 1, N).items() if name not in ("nmi_labels", "purity")}
    fingerprint = open_images(str(tmp_path / "squares.npy")).fingerprint()
    lone = rewritten(run, assignment=np.zeros(N + 1), metrics=[row])
    lone = rewritten(lone, data=str(tmp_path / "squares.npy"), source_fingerprint=fingerprint)
    words = report(lone).words()
    assert "purity" not in words and "NMI with labels" not in words and "main class" not in words
    assert "61 images in 1 cluster, after 1 epoch" in words and "One cluster holds 61 of 61 images" in words
    assert "has finished 1 of 2 epochs" in words and "--resume" in words


def test_a_run_killed_before_its_first_clustering(run: Run) -> None:
    for name in ("assignment.npy", "distance.npy", "model.safetensors", "metrics.jsonl"):
        (run.folder / name).unlink()
    page = report(run)
    assert "not clustered yet" in page.words() and "Nothing has been clustered yet" in page.words()
    assert page.images == []


def test_images_that_changed_are_not_shown_as_the_old_ones(run: Run) -> None:
    page = report(rewritten(run, source_fingerprint="another"))
    assert "no longer holds the images" in page.words() and page.images == []


def test_images_that_can_no_longer_be_read_are_counted(run: Run, squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "photos")
    for index, file in enumerate(sorted((tmp_path / "photos").rglob("[0-9]*.png"))):
        if index % 2:
            file.write_bytes(b"torn")
    fingerprint = open_images(str(tmp_path / "photos")).fingerprint()
    page = report(rewritten(run, data=str(tmp_path / "photos"), source_fingerprint=fingerprint))
    assert "can no longer be read" in page.words() and "missing" in page.words()
    assert 0 < len(page.images) < N


def test_ten_thousand_clusters_make_a_small_page(run: Run, tmp_path: Path) -> None:
    n, k = 20_000, 10_000
    np.save(tmp_path / "squares.npy", np.zeros((n, 1, 1, 3), np.uint8))
    fingerprint = open_images(str(tmp_path / "squares.npy")).fingerprint()
    dataclasses.replace(run.model, centroids=torch.zeros(k, run.centroids.shape[1])).save(run.folder / MODEL)
    np.save(run.folder / "distance.npy", np.zeros(n, np.float32))
    many = rewritten(
        run, assignment=np.arange(n) % (k - 1) + 1, data=str(tmp_path / "squares.npy"), images=n,
        source_fingerprint=fingerprint,
    )  # fmt: skip
    page = report(many)
    assert len(page.source) < 2_000_000
    assert "The 24 largest of 9,999 clusters" in page.words() and "The 500 largest clusters as a table" in page.words()


def test_photos_are_jpeg_and_tiny_pictures_keep_every_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    head, _, content = embedded_thumbnail(noise, 112).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), noise)
    head, _, content = embedded_thumbnail(np.zeros((300, 500, 3), np.uint8), 112).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (112, 112)


def test_names_of_data_are_short() -> None:
    assert short_name("/data/photos/") == "photos"
    assert short_name("digits") == "digits"
    assert short_name("a/train-{000..003}.tar") == "train-{000..003}.tar"
    assert short_name("torchvision:CIFAR10?root=/data") == "torchvision:CIFAR10"


def words(part: str, config: dict[str, Any], metrics: list[dict[str, Any]], sizes: np.ndarray | None) -> str:
    """A part of the page about these numbers, in one line."""
    says = getattr(environment().get_template("report_text.html").module, part)
    return " ".join(says(report_text.Numbers(config, metrics, sizes)).split())


def test_the_summary_says_what_the_curves_say() -> None:
    metrics = [
        {"loss": 3.5, "purity": 0.2, "nmi_labels": 0.1, "watched": 0.31},
        {"loss": 3.0, "purity": 0.3, "nmi_labels": 0.2, "watched": 0.42, "nmi_previous": 0.5, "reassigned": 0.6},
        {"loss": 2.5, "purity": 0.4, "nmi_labels": 0.3, "watched": 0.40, "nmi_previous": 0.7, "reassigned": 0.25},
    ]
    said = words("summary", {"settings": {"watch": "knn"}}, metrics, np.array([1, 5, 9, 0]))
    for part in ("fell from 3.50 to 2.50 in 3", "among 4 clusters would cost 1.39", "Half of the clusters hold 5",
                 "smallest holds 1 and the largest 9", "from 0.50 to 0.70, still rising", "25 % of the images changed",
                 "40 % of the images are of their cluster's main class", "NMI of 0.30", "kNN accuracy",
                 "42.0 % after epoch 2"):  # fmt: skip
        assert part in said, part
    assert words("summary", {}, [], None) == ""
    assert words("summary", {}, [{"loss": None}], np.array([3])) == (
        "Half of the clusters hold 3 images or more; the smallest holds 3 and the largest 3."
    )


def test_guessing_counts_rotations() -> None:
    config = {"settings": {"method": {"name": "deepercluster", "k": 20, "super_clusters": 4, "rotations": True}}}
    sizes, metrics = np.full(20, 9), [{"loss": 4.2}, {"loss": 3.9}]
    assert "guessing: ln 80 = 4.38" in words("figures", config, metrics, sizes)
    assert report_text.remarks(report_text.Numbers(config, metrics, sizes), 0, Path("run")) == []
    assert "20 clusters and 4 rotations would cost 4.38" in words("summary", config, metrics, sizes)
    (loss,) = (panel for panel in history.panels(metrics, 20, rotations=4) if panel.title == "Loss")
    assert loss.levels == {"ln 80": pytest.approx(np.log(80))}

"""The scripts of examples/reproduce, run as a user runs them, on images of which one file is broken."""

from __future__ import annotations

import csv
import io
import json
import re
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli.main import main
from deepcluster.config import override
from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_run
from deepcluster.engine.train import train
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.knn import knn
from deepcluster.presets import find_preset
from restarts import stop_after

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"
SETTINGS = {"epochs": 2, "batch_size": 16, "method.whiten": 8, "image_size": 12}
OPTIONS = ["--epochs", "2", "--batch-size", "16", "--method.whiten", "8", "--image-size", "12"]
Script = Callable[..., int]


def run_script(patch: pytest.MonkeyPatch, name: str, *words: object) -> int:
    """Runs a script with words of a command line in this process; returns its exit status."""
    patch.syspath_prepend(str(SCRIPTS))
    patch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *map(str, words)])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return partial(run_script, monkeypatch)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The names of a script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: SimpleNamespace(**runpy.run_path(str(SCRIPTS / f"{name}.py")))


def write_images(folder: Path, n: int, seed: int) -> Path:
    """n images in four class folders, and one file that is no image."""
    shapes = np.random.default_rng(0).integers(0, 200, (4, 12, 12, 3))
    draw = np.random.default_rng(seed)
    for index in range(n):
        file = folder / "abcd"[index % 4] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noisy = 0.25 * shapes[index % 4] + draw.integers(0, 200, (12, 12, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
    (folder / "a" / "002-broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "train", 96, 1)


@pytest.fixture(scope="module")
def ks(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of k whose second run was stopped before."""
    out = tmp_path_factory.mktemp("sweep") / "ks"
    run = override(find_preset("tiny-deepcluster").run, SETTINGS | {"method.k": 8})
    stop_after(out / "k-00008", run, 8, str(images))
    words = ["tiny-deepcluster", "--data", images, "--out", out, *OPTIONS, "--values", 24, 8, 2]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        assert run_script(patch, "sweep", *words) == 0
    assert "k = 2" in said.getvalue() and "f 3 values" in said.getvalue()
    return out


def test_sweep_leaves_a_table_a_picture_and_a_sentence(ks: Path) -> None:
    rows = list(csv.DictReader((ks / "k.csv").open()))
    assert [row["k"] for row in rows] == ["2", "8", "24"]
    found = json.loads((ks / "k.json").read_text())
    assert found["settings"]["classes"] == 4 and "kNN" in found["sentence"]
    assert [row["score"] for row in found["rows"]] == [float(row["score"]) for row in rows]
    with Image.open(ks / "k.png") as picture:
        assert picture.width > 800
    for row in found["rows"]:
        run = load_run(ks / row["run"])
        assert run.config["settings"]["method"]["k"] == row["k"] == len(run.centroids)
        assert len(run.metrics) == 2 and run.config["finished"] and run.config["bad_images"] == 1
        score = knn(run).scores["knn20_top1"]
        assert row["score"] == pytest.approx(score)
        assert row["error"] == pytest.approx(np.sqrt(score * (1 - score) / 96))


def test_sweep_reuses_finished_runs_and_resumes_stopped_ones(
    ks: Path, images: Path, tmp_path: Path, script: Script
) -> None:
    touched = (ks / "k-00002/run.json").stat().st_mtime_ns
    assert script("sweep", "tiny-deepcluster", "--data", images, "--out", ks, *OPTIONS, "--values", 2, 8, 24) == 0
    assert (ks / "k-00002/run.json").stat().st_mtime_ns == touched
    run = override(find_preset("tiny-deepcluster").run, SETTINGS | {"method.k": 8})
    alone = train(run, str(images), tmp_path / "alone", screen=Screen(quiet=True))
    stopped = load_run(ks / "k-00008")
    assert [row["loss"] for row in stopped.metrics] == [row["loss"] for row in alone.metrics]
    np.testing.assert_array_equal(stopped.assignment, alone.assignment)


def test_sweep_of_reassign_with_a_test_set(
    images: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    test = write_images(tmp_path / "test", 40, 2)
    words = ["tiny-deepcluster", "--data", images, "--test", test, "--out", tmp_path / "re", *OPTIONS, "--method.k", 6]
    words += ["--setting", "method.reassign", "--values", 0.5, 2, "--json"]
    for score in ("nmi", "knn"):
        capsys.readouterr()
        assert script("sweep", *words, "--score", score) == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["reassign"] for row in found["rows"]] == [0.5, 2] and found["study"] == "reassign"
        assert all(0 < row["score"] <= 1 for row in found["rows"])
    run = load_run(tmp_path / "re/reassign-0.5")
    assert run.config["settings"]["method"]["reassign"] == 0.5
    assert found["rows"][0]["score"] == knn(run, None, str(test)).scores["knn20_top1"]
    assert (tmp_path / "re/reassign.png").exists()


def test_mistakes_are_one_sentence(
    ks: Path, images: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistake(name: str, *words: object) -> str:
        capsys.readouterr()
        assert script(name, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{name}.py: ") and error.count("\n") == 1
        return error

    def sweep(*more: object, out: Path = tmp_path / "new", data: object = images) -> str:
        return mistake("sweep", "tiny-deepcluster", "--data", data, "--out", out, *OPTIONS[2:], *more)

    assert "--epochs 2, not 3" in sweep("--epochs", 3, "--values", 2, 8, out=ks)
    assert "cannot form 98 clusters" in sweep("--values", 2, 98)
    assert "--method.k" in sweep("--values", 0, 5)
    assert "varies --method.k itself" in sweep("--method.k", 7, "--values", 2, 3)
    assert "two or more that differ" in sweep("--values", 10, 10)
    words = ("--out", tmp_path / "new", "--values", 2, 4)
    pic = mistake("sweep", "tiny-deepcluster-pic", "--data", images, *words)
    assert "finds the number of clusters itself" in pic
    odc = mistake("sweep", "tiny-odc", "--data", images, "--setting", "method.reassign", *words)
    assert "no --method.reassign to vary" in odc
    np.save(tmp_path / "plain.npy", np.zeros((9, 12, 12, 3), np.uint8))
    assert "has none" in sweep("--values", 2, 3, data=tmp_path / "plain.npy")
    assert not (tmp_path / "new").exists()  # nothing was trained before the mistake was seen
    other = write_images(tmp_path / "other", 97, 3)
    assert "not the ones" in sweep("--epochs", 2, "--values", 2, 8, data=other, out=ks)
    assert "no preset" in mistake("sweep", "tini", "--data", "digits", *words)
    assert "preset comes first" in mistake("sweep", "--data", "digits")
    assert "--sweep" in mistake("figure2", "--out", tmp_path)
    assert "k.json" in mistake("figure2", "--sweep", tmp_path, "--out", tmp_path)
    assert "no run.json" in mistake("sizes", tmp_path)
    assert "--watch knn" in mistake("stopping", ks / "k-00002")


def test_studies_of_finished_runs(
    ks: Path, images: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [ks / "k-00002", ks / "k-00008"]
    (tmp_path / "tree.txt").write_text("a x\nb x\nc y\nd y\nx all\ny all\n")
    watched = tmp_path / "watched"
    options = [*OPTIONS, "--method.k", "6", "--keep-every", "1", "--watch", "knn"]
    assert main(["train", "tiny-deepcluster", "--data", str(images), "--out", str(watched), *options]) == 0
    studies: tuple[tuple[Any, ...], ...] = (
        ("sizes", *runs),
        ("stopping", watched),
        ("tree", runs[1], "--tree", tmp_path / "tree.txt"),
        ("tree", runs[1], "--tree", tmp_path / "tree.txt", "--data", images),
        ("figure2", *runs, "--sweep", ks),
    )
    for name, *words in studies:
        out = tmp_path / "out" / name
        capsys.readouterr()
        assert script(name, *words, "--out", out, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["study"] == name and found["rows"] and found["sentence"].endswith(".")
        assert {f"{name}.{end}" for end in ("csv", "json", "png")} <= {path.name for path in out.iterdir()}
    assert script("sizes", *runs) == 0 and (runs[0] / "studies/sizes.png").exists()
    curves = json.loads((tmp_path / "out/figure2/figure2.json").read_text())
    assert {row["panel"] for row in curves["rows"]} == {"a", "b", "c"}
    assert "k-00008: NMI(t-1, t)" in curves["sentence"] and "f 3 values" in curves["sentence"]
    stopping = json.loads((tmp_path / "out/stopping/stopping.json").read_text())
    assert [row["epoch"] for row in stopping["rows"]] == [1, 2]


def test_kept_checkpoints_score_as_watching_does(images: Path, tmp_path: Path, part: Callable[[str], Any]) -> None:
    values = SETTINGS | {"k": 6, "keep_every": 1, "watch": "knn", "precision": "32"}
    run = train(
        override(find_preset("tiny-deepcluster").run, values), str(images), tmp_path / "r", screen=Screen(quiet=True)
    )
    rows = part("stopping").score_checkpoints(run)
    assert [row["score"] for row in rows] == pytest.approx([row["watched"] for row in run.metrics])


def test_stopping_names_the_epoch(tmp_path: Path, part: Callable[[str], Any]) -> None:
    sentence = part("stopping").sentence
    run = SimpleNamespace(folder=tmp_path)
    rows = [{"epoch": epoch, "score": score} for epoch, score in ((1, 0.2), (3, 0.5), (4, 0.513), (5, 0.4), (6, 0.3))]
    assert sentence(run, rows, 2, "kNN score") == (
        "The kNN score was highest after epoch 4, at 51.3 %, and has not risen in the 2 values after it"
        " (30.0 % after epoch 6)."
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/epoch-0003.ckpt").touch()
    assert "epoch-0003.ckpt holds" in sentence(run, rows, 2, "kNN score")
    assert "still rising" in sentence(run, rows[:3], 2, "NMI")
    assert "one value alone" in sentence(run, rows[:1], 0, "NMI")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (1 - np.exp(-np.arange(40) / 4), "leveled off at 1.000, reached in epoch 20"),
        (np.arange(12) / 20, "still rising, by 0.150 from the 3 values before"),
        (1 - np.arange(12) / 20, "still falling, by 0.150"),
        (np.array([0.1, 0.5, 0.6]), "from 0.100 to 0.600; 3 values are too few"),
    ],
)
def test_how_a_curve_ends(values: np.ndarray, words: str, part: Callable[[str], Any]) -> None:
    assert words in part("figure2").ending(np.arange(len(values)) + 1, values)


@pytest.mark.parametrize(
    ("scores", "parts"),
    [
        ([50, 60, 40], ["k = 100 with kNN 60.0 %: above the number of classes, 50 (2 times as many). One run"]),
        ([60, 50, 40], ["k = 5 with", "not above the number", "smallest value tried"]),
        ([40, 50, 60], ["k = 1,000 with", "largest value tried"]),
        ([40, 60, 60], ["Of 3 values k = 100 and 1,000 are equally good"]),
        ([50, 60, 59.5], ["within two standard errors (2.0 points): 1,000"]),
    ],
)
def test_sentence_of_a_sweep(scores: list[float], parts: list[str], part: Callable[[str], Any]) -> None:
    rows = [{"k": k, "score": score / 100, "error": 0.01} for k, score in zip((5, 100, 1000), scores, strict=True)]
    sentence = part("sweep").sentence("k", "kNN", rows, 50)
    assert all(words in sentence for words in parts), sentence


def test_sizes_are_counted_over_clusters_in_use(part: Callable[[str], Any]) -> None:
    sizes = part("sizes")
    row = sizes.row_of("a", np.array([0, 3, 9, 10, 40]))
    assert row == {"run": "a", "images": 62, "k": 5, "used": 4, "min": 3, "median": 9.5, "max": 40, "under_10": 0.5,
                   "as_even_as": pytest.approx(2.6, abs=0.2)}  # fmt: skip
    page = sizes.sizes_figure({"one": np.array([5]), "wide": np.array([1, 1, 2, 900, 0]), "same": np.array([4, 4])})
    shares = [patch.get_data().values.sum() for patch in page.axes[1].patches]
    assert shares == pytest.approx([100] * 3)  # every cluster is in a bin
    empty = SimpleNamespace(folder="r", assignment=np.array([-1]), centroids=np.zeros((3, 2)))
    with pytest.raises(DeepClusterError, match="No image"):
        sizes.sizes_of(empty)


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


def brute_force(
    assignment: np.ndarray, labels: np.ndarray, threshold: float
) -> tuple[list[dict[str, Any]], dict[int, str]]:
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
        chance = Counter(node for _, node in at).most_common(1)[0][1] / len(images)
        nodes = len({path[min(depth, len(path) - 1)] for _, path in images})
        rows.append({"depth": depth, "nodes": nodes, "purity": right / len(images), "chance": chance, "pure": pure})
    return rows, best


@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.7), (1, 0.5), (2, 0.6), (3, 0.9)])
def test_purity_over_a_tree_equals_brute_force(
    file: Path, seed: int, threshold: float, part: Callable[[str], Any]
) -> None:
    tree, draw = part("tree"), np.random.default_rng(seed)
    labels = draw.integers(-1, 10, 300)
    group = np.array([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])[labels]  # strokes, with mistakes
    assignment = np.where(draw.random(300) < 0.25, draw.integers(-1, 9, 300), group * 3 + labels % 3)
    paths = tree.paths_of(tree.read_tree(file), CLASSES)
    depths, clusters = tree.purity_over(assignment, labels, paths, threshold)
    expected, best = brute_force(assignment, labels, threshold)
    assert [{name: row[name] for name in expected[0]} for row in depths] == expected
    assert {row["cluster"]: row["node"] for row in clusters} == best
    assert len(set(best.values())) > 1  # several nodes are met


def test_a_mixed_cluster_is_pure_higher_up(file: Path, part: Callable[[str], Any]) -> None:
    tree, labels = part("tree"), np.array([0, 6, 9, 8, 1, 1])
    paths = tree.paths_of(tree.read_tree(file), CLASSES)
    depths, clusters = tree.purity_over(np.array([0, 0, 0, 0, 1, 1]), labels, paths, 0.7)
    assert [row["pure"] for row in depths] == [2, 2, 2, 1]
    assert [(row["node"], row["depth"], row["node_purity"]) for row in clusters] == [
        ("one_loop", 2, 0.75),
        ("straight", 1, 1.0),
    ]
    with pytest.raises(DeepClusterError, match="--threshold"):
        tree.purity_over(np.zeros(2, int), np.zeros(2, int), paths, 0.3)
    with pytest.raises(DeepClusterError, match="both a cluster and a label"):
        tree.purity_over(np.array([-1, 0]), np.array([0, -1]), paths, 0.7)


def test_forms_of_a_tree_file(file: Path, tmp_path: Path, part: Callable[[str], Any]) -> None:
    tree = part("tree")
    (tmp_path / "names.txt").write_text("open\topen curve\n0 zero\n")
    known = tree.read_tree(file, tmp_path / "names.txt")
    assert known.names == {"round": "with a loop", "open": "open curve", "0": "zero"}
    assert tree.paths_of(known, ["zero"]) == [["digit", "round", "one_loop", "0"]]  # a class by its name
    (tmp_path / "is_a.txt").write_text("n00001740 n02084071\nn02084071 n02085620\n")
    imagenet = tree.read_tree(tmp_path / "is_a.txt", parent_first=True)
    assert imagenet.path("n02085620") == ["n00001740", "n02084071", "n02085620"]
    (tmp_path / "t.txt").write_text("dog pet\ndog animal\npet thing\nanimal thing\n")
    several = tree.read_tree(tmp_path / "t.txt")
    assert several.path("dog") == ["thing", "pet", "dog"] and several.ignored == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a b\nb c\nc a\n", r"cycle \((a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)\)"),
        ("a a\n", r"cycle \(a -> a\)"),
        ("a b\nlonely\n", "Line 2 of"),
        ("# nothing\n", "holds no line"),
    ],
)
def test_damaged_tree_files(tmp_path: Path, text: str, sentence: str, part: Callable[[str], Any]) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(DeepClusterError, match=sentence):
        part("tree").read_tree(tmp_path / "t.txt")


def test_classes_missing_from_the_tree(file: Path, tmp_path: Path, part: Callable[[str], Any]) -> None:
    tree = part("tree")
    with pytest.raises(DeepClusterError, match=r"2 of 3 classes are not in .*\(ten, eleven\)"):
        tree.paths_of(tree.read_tree(file), ["1", "ten", "eleven"])
    (tmp_path / "names.txt").write_text("1 stroke\n4 stroke\n")
    with pytest.raises(DeepClusterError, match="name of 2 nodes"):
        tree.paths_of(tree.read_tree(file, tmp_path / "names.txt"), ["stroke"])
    with pytest.raises(DeepClusterError, match="cannot be read"):
        tree.read_tree(tmp_path / "gone.txt")


def test_the_page_names_every_script() -> None:
    named = set(
        re.findall(
            r"^python examples/reproduce/(\w+)\.py", (SCRIPTS.parents[1] / "docs" / "reproduce.md").read_text(), re.M
        )
    )
    assert named == {path.stem for path in SCRIPTS.glob("*.py")} - {"common"}

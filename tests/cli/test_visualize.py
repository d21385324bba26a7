"""`deepcluster visualize` as a user types it, on a tiny run and on networks that are none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli.main import main
from deepcluster.cli.visualize import PICTURES
from deepcluster.engine.run import load_run
from deepcluster.visualize.report import write_report

TRAIN = ["--epochs", "1", "--batch-size", "16", "--method.k", "5", "--method.whiten", "8", "--image-size", "16"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images of three classes, one of them torn."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 200, (3, 16, 16, 3))
    for number in range(45):
        image = (shapes[number % 3] + rng.integers(0, 55, (16, 16, 3))).astype(np.uint8)
        path = folder / ("ant", "bee", "cow")[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "ant" / "torn.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    sobel = ["--backbone.sobel", "paper"]
    assert main(["train", "tiny-deepcluster", "--data", str(photos), "--out", str(out), *TRAIN, *sobel]) == 0
    return out


def drawn(capsys: pytest.CaptureFixture[str], *words: object) -> list[Path]:
    """The pictures of a command that must succeed, each a PNG that can be opened and is not of one color."""
    capsys.readouterr()
    status = main(["visualize", *(str(word) for word in words), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    files = [Path(file) for file in json.loads(out)["pictures"]]
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG" and len(np.unique(np.asarray(image.convert("L")))) > 4
    return files


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence of a command that must fail."""
    capsys.readouterr()
    assert main(["visualize", *(str(word) for word in words)]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("deepcluster: ") and err.count("\n") == 1
    return err


def test_every_picture_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {
        "activations": ["--tap", "conv2", "--count", 3, "--steps", 3],
        "top-images": ["--taps", "conv1", "conv3", "--count", 3, "--beside", "fourier", "--steps", 2],
        "neighbors": ["--queries", 3, "--k", 4],
        "map": ["--points", 30, "--layout", "pca"],
        "compare": ["--other", run, "--queries", 2, "--k", 3],
    }
    for what in PICTURES:
        files = drawn(capsys, run, what, *more.get(what, []))
        assert files and all(file.parent == run / "pictures" for file in files), what
    names = {file.name for file in (run / "pictures").iterdir()}
    assert names == {
        "filters.png", "activations-conv2.png", "top-images-conv1.png", "top-images-conv3.png", "neighbors.png",
        "clusters.png", "sizes.png", "purity.png", "confusion.png", "history.png", "map-pca.png",
        "compare-history.png", "compare-filters.png", "compare-neighbors.png",
    }  # fmt: skip
    page = write_report(load_run(run)).read_text()
    assert "First-layer filters" in page and "data:image/" in page and len(page) < 10_000_000


def test_other_images_and_output_folders(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.npy"
    np.save(new, np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    for what in ("clusters", "sizes"):
        assert drawn(capsys, run, what, "--data", new, "--out", tmp_path / "p") == [tmp_path / "p" / f"{what}.png"]
    assert "has no labels" in mistake(capsys, run, "purity", "--data", new)
    assert "has no labels" in mistake(capsys, run, "confusion", "--data", new)
    pages = drawn(capsys, run, "clusters", "--only", 1, 2, "--out", tmp_path / "q")
    assert [file.name for file in pages] == ["cluster-0001.png", "cluster-0002.png"]


def test_activations_of_clusters(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for by in ("centroid", "logit"):
        out = tmp_path / by
        words = ["--clusters", 0, 2, "--by", by, "--recipe", "fourier", "--steps", 2, "--out", out]
        assert [file.name for file in drawn(capsys, run, "activations", *words)] == ["activations-clusters.png"]
    assert (tmp_path / "logit/activations-clusters.png").read_bytes() != (
        tmp_path / "centroid/activations-clusters.png"
    ).read_bytes()


@pytest.mark.slow
def test_options_change_the_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways: dict[str, list[list[object]]] = {
        "filters": [
            [], ["--shared"], ["--order", "pca"], ["--sobel", "direction"], ["--sobel", "gray"], ["--untrained"],
        ],
        "activations": [
            ["--steps", 2], ["--steps", 3], ["--lr", 40], ["--decay", 1], ["--smooth", 9], ["--objective", "neuron"],
            ["--recipe", "fourier"], ["--seed", 4], ["--size", 20], ["--filters", 1, 2],
        ],
        "top-images": [[], ["--score", "max"], ["--images", 4], ["--filters", 0], ["--count", 2]],
        "neighbors": [[], ["--index", 3, 4], ["--seed", 3], ["--tap", "conv1"], ["--k", 3]],
        "map": [[], ["--color", "label"], ["--color", "none"], ["--thumbnails"], ["--points", 20], ["--tap", "conv1"]],
    }  # fmt: skip
    common: dict[str, list[object]] = {
        "activations": ["--tap", "conv2"],
        "top-images": ["--taps", "conv2"],
        "map": ["--layout", "pca"],
        "neighbors": ["--queries", 2],
    }
    for what, options in ways.items():
        seen = set()
        for number, words in enumerate(options):
            given = [*common.get(what, []), *words]
            if what == "activations" and "--steps" not in words:
                given += ["--steps", 2]
            if what == "activations" and "--filters" not in words:
                given += ["--count", 2]
            (file,) = drawn(capsys, run, what, *given, "--out", tmp_path / what / str(number))
            seen.add(file.read_bytes())
        assert len(seen) == len(options), what


def test_networks_without_a_run(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = ["convnet", "--image-size", 16]
    kept = ["--data", photos, "--out", tmp_path]
    assert drawn(capsys, net[0], "filters", "--untrained", *net[1:], "--out", tmp_path)
    assert drawn(capsys, net[0], "top-images", "--untrained", *net[1:], *kept, "--count", 2)
    assert drawn(capsys, net[0], "map", "--untrained", *net[1:], *kept, "--layout", "pca")
    weights = run / "model.safetensors"
    assert drawn(capsys, weights, "neighbors", *kept, "--queries", 2, "--k", 3)
    for what in ("sizes", "history", "clusters", "purity", "confusion"):
        assert "has no clusters" in mistake(capsys, weights, what)
    assert "give --data" in mistake(capsys, net[0], "top-images", "--untrained", *net[1:], "--out", tmp_path)


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean filters?" in mistake(capsys, run, "filter")
    assert "picture is missing" in mistake(capsys, run)
    assert "conv1, conv2" in mistake(capsys, run, "activations", "--tap", "layer9")
    assert "no filter 999" in mistake(capsys, run, "top-images", "--filters", 999)
    assert "no cluster 77" in mistake(capsys, run, "activations", "--clusters", 77)
    assert "no cluster 77" in mistake(capsys, run, "clusters", "--only", 77)
    assert "leave out --tap" in mistake(capsys, run, "activations", "--clusters", 1, "--tap", "conv1")
    assert "name some by --clusters" in mistake(capsys, run, "activations", "--by", "logit")
    assert "--beside" in mistake(capsys, run, "top-images", "--steps", 3)
    assert "--points 2 are too few" in mistake(capsys, run, "map", "--points", 2)
    assert "leave out --image-size" in mistake(capsys, run, "filters", "--image-size", 9)
    assert "has no clusters" in mistake(capsys, run, "map", "--untrained", "--color", "cluster")
    assert "Image 999 cannot be a query" in mistake(capsys, run, "neighbors", "--index", 999)
    assert "--other must be given" in mistake(capsys, run, "compare")
    assert "no file or folder" in mistake(capsys, run, "map", "--data", tmp_path / "nowhere")
    assert "is no run folder" in mistake(capsys, tmp_path, "history")
    assert "cannot take images of 1 px" in mistake(
        capsys, "alexnet", "activations", "--untrained", "--image-size", 64, "--size", 1
    )
    if importlib.util.find_spec("umap") is None:
        assert "pip install umap-learn" in mistake(capsys, run, "map", "--layout", "umap")


def test_help_lists_the_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {what} " in out for what in PICTURES)

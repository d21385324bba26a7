"""docs/promises.md and docs/trust.md name a test for each promise; here is what no other file holds."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli.evaluate import PROTOCOLS
from deepcluster.cli.main import COMMANDS, main
from deepcluster.cli.visualize import PICTURES
from deepcluster.clustering import PIC, KMeans
from deepcluster.engine import loop
from deepcluster.engine.log import Screen
from deepcluster.methods.params import METHODS
from deepcluster.presets import PRESETS

ROOT = Path(__file__).parents[1]
HELP = ROOT / "tests" / "cli" / "help"
PAGE = (ROOT / "docs" / "promises.md").read_text()
ROWS = re.findall(r"^\| (.+) \| (.+) \|$", PAGE, re.M)
SMALL = ("--batch-size", "16", "--method.k", "4", "--method.whiten", "8", "--image-size", "12")
TRAINED = set(METHODS) - {"frozen"}
NAMED = {
    "deepcluster": ("alexnet", "vgg16", "pic-alexnet", "resnet18", "resnet50"),
    "deepercluster": ("vgg16", "resnet18"),
    "odc": ("resnet50", "alexnet", "resnet18"),
    "deepcluster-v2": ("resnet18", "resnet50"),
    "swav": ("resnet18", "resnet50"),
    "rotnet": ("resnet18",),
}


@pytest.mark.parametrize("page", ["trust.md", "promises.md"])
def test_each_promise_has_its_test(page: str) -> None:
    promised = (ROOT / "docs" / page).read_text().partition("## Dependencies")[0]
    rows = [row for row in re.findall(r"^\| .*$", promised, re.M) if not row.startswith("| promise |")]
    assert len(rows) > 12
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)+)`", row.split("|")[2])
        assert named, row
        for file, names in named:
            text = (ROOT / file).read_text()
            *classes, test = names.strip(":").split("::")
            assert re.search(rf"^ *def {test}\(", text, re.M), (file, test)
            assert all(f"class {name}:" in text for name in classes), (file, classes)


def test_every_command_has_a_promise() -> None:
    promised = {name for row, _ in ROWS for name in re.findall(r"`(\w+)[ `]", row)}
    assert set(COMMANDS) - promised == {"index"}  # beyond what is promised
    assert len(ROWS) > 45


def test_names_versions_and_license() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for line in ('name = "deepcluster"', 'requires-python = ">=3.10"', 'license = "Apache-2.0"', '"torch>=2.8",'):
        assert re.search(rf"^ *{re.escape(line)}$", project, re.M), line
    (command,) = entry_points(group="console_scripts", name="deepcluster")
    assert command.value == "deepcluster.cli.main:main"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert '"py.typed"' in project and (ROOT / "src/deepcluster/py.typed").is_file()


def test_protocols_pictures_and_formats() -> None:
    nine = {"clusters", "knn", "linear", "mlp", "low-shot", "retrieval"}
    nine |= {f"voc-{task}" for task in ("classification", "detection", "segmentation")}
    assert set(PROTOCOLS) == nine and all(f"`{name}`" in PAGE for name in nine)
    drawn = {"filters", "activations", "top-images", "neighbors", "clusters", "sizes", "history"}
    assert drawn <= set(PICTURES) and all(f"`{name}`" in PAGE for name in drawn)
    formats = re.search(r"--format \{(.*?)\}", (HELP / "export.txt").read_text().replace("\n", ""))
    promised = {"safetensors", "torchvision", "timm", "onnx", "huggingface", "embedding-atlas"}
    assert formats and promised <= set(formats[1].replace(" ", "").split(","))


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_options_of_training(method: str) -> None:
    text = (HELP / f"train-tiny-{method}.txt").read_text()
    for option in ("epochs", "batch-size", "seed", "image-size", "device", "precision", "method.k", "backbone.name"):
        assert f"  --{option} " in text, option
    for option in ("optimizer.lr", "optimizer.momentum", "optimizer.weight-decay", "data."):
        assert f"  --{option}" in text, option
    assert "  --port " in (HELP / "explore.txt").read_text()


def test_presets_of_each_method() -> None:
    named = {f"{method}-{network}" for method, networks in NAMED.items() for network in networks}
    tiny = {f"tiny-{method}" for method in NAMED}
    assert named | tiny <= set(PRESETS) and set(NAMED) >= TRAINED


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("deepcluster-alexnet", {"epochs": 500, "batch_size": 256, "method.k": 10_000, "optimizer.lr": 0.05}),
        ("deepcluster-vgg16", {"method.k": 10_000, "method.whiten": 256, "method.iterations": 20}),
        ("deepcluster-pic-alexnet", {"method.neighbors": 5, "method.sigma": 0.2, "method.alpha": 0.001}),
        ("deepercluster-vgg16", {"batch_size": 3072, "method.k": 320_000, "method.super_clusters": 4}),
        ("odc-resnet50", {"epochs": 440, "method.k": 10_000, "optimizer.lr": 0.06, "data.gray": 0.2}),
        ("deepcluster-v2-resnet50", {"epochs": 800, "batch_size": 4096, "method.k": 3_000}),
        ("swav-resnet50", {"epochs": 800, "method.k": 3_000, "optimizer.lr": 4.8, "data.small_views": 6}),
    ],
)  # fmt: skip
def test_presets_have_the_papers_values(name: str, values: dict[str, Any]) -> None:
    for path, value in values.items():
        found: Any = PRESETS[name].run
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


def test_clusterers_take_the_arguments_of_the_papers() -> None:
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    kmeans = KMeans(n_clusters=10, max_iter=20, init="random", random_state=0).fit(x)
    assert kmeans.cluster_centers_.shape == (10, 8)
    assert len(set(PIC(n_neighbors=5, sigma=0.2, alpha=0.001).fit_predict(x))) > 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_have_a_rate_and_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Terminal(), io.StringIO()):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.setenv("TERM", "xterm")
            with Screen().bar("features", 1_000) as bar:
                for _ in range(4):
                    bar(100)
                    time.sleep(0.1)
        drawn = stream.getvalue()
        assert bool(drawn) is stream.isatty()
        if drawn:
            assert "400/1000" in drawn and re.search(r"\d images/s", drawn) and re.search(r"0:00:0\d", drawn)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photos of two colors in class folders, one of them damaged."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(48):
        kind, color = (("red", (190, 60, 60)), ("blue", (60, 60, 190)))[number % 2]
        (folder / kind).mkdir(exist_ok=True)
        photo = (np.array(color) + draw.normal(0, 25, (14, 16, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / kind / f"{number:02d}.png")
    (folder / "red" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of ten epochs by the command line, and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "tiny-deepcluster", "--data", str(photos), "--out", str(out), "--epochs", "10", *SMALL]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        assert main([*words, "--keep-every", "10"]) == 0
    return out, printed.getvalue()


def test_bad_images_are_counted_on_screen(run: tuple[Path, str]) -> None:
    assert "1 of 49 files cannot be decoded" in run[1] and "bad_images.csv" in run[1]


def test_kept_checkpoints_are_named_by_their_epoch(run: tuple[Path, str]) -> None:
    assert {"last.ckpt", "epoch-0009.ckpt"} <= {file.name for file in (run[0] / "checkpoints").iterdir()}
    assignment = np.load(run[0] / "assignment.npy")
    assert assignment.shape == (49,) and assignment.dtype == np.int64 and (assignment == -1).sum() == 1


def test_every_command_prints_one_json_object(
    photos: Path, run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, made = str(run[0]), str(tmp_path)
    lines = {
        "train": f"tiny-deepcluster --data {photos} --out {made}/run --epochs 1 {' '.join(SMALL)}",
        "presets": "tiny-odc",
        "assign": f"{folder} --data {photos} --out {made}/a.csv",
        "features": f"{folder} --data {photos} --out {made}/f.npy",
        "index": f"{made}/shard.tar --out {made}/m.json",
        "cluster": f"{photos} --out {made}/groups --backbone {folder}",
        "curate": f"{made}/f.npy --size 5 --out {made}/list.txt",
        "evaluate": f"{folder} clusters",
        "doctor": f"{folder} --images 48",
        "export": f"{folder} --out {made}/x.safetensors",
        "report": folder,
        "visualize": f"{folder} sizes",
        "plan": "tiny-deepcluster --images 1000",
    }
    assert set(COMMANDS) - set(lines) == {"explore"}  # which serves
    subprocess.run(["tar", "-cf", f"{made}/shard.tar", "-C", str(photos), "blue", "red"], check=True)
    found = {}
    for command, line in lines.items():
        assert main([command, *shlex.split(line), "--json"]) == 0, command
        found[command] = json.loads(capsys.readouterr().out)
        assert isinstance(found[command], dict) and found[command], command
    scores = found["evaluate"]
    assert scores.keys() >= {"protocol", "settings", "scores", "draws"}
    assert all(0 <= scores["scores"][name] <= 1 for name in ("nmi", "ami", "accuracy", "purity"))
    assert json.loads((run[0] / "evaluation" / "clusters.json").read_text()) == scores
    assert (run[0] / "report.html").is_file() and list((run[0] / "pictures").glob("*.png"))
    grouped = tmp_path / "groups"
    assert (grouped / "report.html").is_file() and len(np.load(grouped / "assignment.npy")) == 49


def test_labels_change_no_weight(photos: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(
        "".join(f"{photo}\n" for folder in ("blue", "red") for photo in sorted((photos / folder).glob("*")))
    )
    for name, data in (("labelled", photos), ("unlabelled", listed)):
        words = ["train", "tiny-deepcluster", "--data", str(data), "--out", str(tmp_path / name), "--epochs", "2"]
        assert main([*words, *SMALL]) == 0
    same = [(tmp_path / name / "assignment.npy") for name in ("labelled", "unlabelled")]
    np.testing.assert_array_equal(np.load(same[0]), np.load(same[1]))
    losses = [[json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()] for file in same]
    assert [row["loss"] for row in losses[0]] == [row["loss"] for row in losses[1]]
    assert "purity" in losses[0][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = loop
    original = module.step_all

    def stop(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        os.kill(os.getpid(), number)

    out = tmp_path / "run"
    words = ["train", "tiny-deepcluster", "--data", str(photos), "--out", str(out), "--epochs", "2", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(module, "step_all", stop)
        assert main(words) == 128 + number
    printed = capsys.readouterr().out
    assert f"stopped and saved; resume with: deepcluster train --resume {out}" in printed
    assert main(["train", "--resume", str(out)]) == 0
    assert "epoch 2/2" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_trains_scores_and_reports(tmp_path: Path) -> None:
    """What `make demo` does once the package is installed, in another folder."""
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in recipe.splitlines() if re.match(r"\.venv/bin/(?:deepcluster|python examples)", line)]
    assert len(lines) == 6
    printed = ""
    for line in lines:
        words = [word.replace("examples/", f"{ROOT}/examples/") for word in shlex.split(line)[1:]]
        module = [] if "/python " in line else ["-m", "deepcluster"]
        done = subprocess.run([sys.executable, *module, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert "accuracy" in printed and "nmi" in printed
    for name in ("demo", "demo-tiles"):
        assert "</html>" in (tmp_path / "runs" / name / "report.html").read_text()

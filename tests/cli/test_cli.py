"""The command line as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli.main import COMMANDS, main
from deepcluster.engine.log import line

OPTIONS = ["--epochs", "1", "--batch-size", "16", "--method.k", "4", "--method.whiten", "8", "--image-size", "12"]


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence of a command that must fail."""
    status, _, err = said(capsys, *words)
    assert status == 2, err
    assert err.startswith("deepcluster: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def cut_off(folder: Path) -> Path:
    """A file in place of the folder, in which nothing can be written, not by root either."""
    shutil.rmtree(folder)
    folder.write_text("")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "images.npy"
    shapes = np.random.default_rng(0).integers(0, 200, (4, 12, 12, 3))
    noise = np.random.default_rng(1).integers(0, 55, (64, 12, 12, 3))
    np.save(file, (shapes[np.arange(64) % 4] + noise).astype(np.uint8))
    return file


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "tiny-deepcluster", "--data", str(images), "--out", str(out), *OPTIONS]) == 0
    return out


def test_help_works_without_torch_and_offline() -> None:
    commands = [["--help"], ["train", "tiny-deepcluster", "--help"], *([name, "--help"] for name in COMMANDS)]
    code = f"""
import sys, socket
socket.socket.connect = None
from deepcluster.cli.main import main
for words in {commands!r}:
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    assert not status, (words, status)
    assert "torch" not in sys.modules, (words, "torch was loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(commands)


def test_version_is_in_the_changelog(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "--version")
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    assert f"## {out.split()[1]}" in changelog


def test_presets_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "presets")
    assert "deepcluster-alexnet" in out and max(map(len, out.splitlines())) < 80
    _, out, _ = said(capsys, "presets", "deepcluster-alexnet")
    assert "12 days" in out and "--method.k" in out
    assert max(len(line) for line in out.splitlines() if "Command:" not in line) < 80
    assert "    Command: deepcluster train deepcluster-alexnet --data imagenet/train --out runs/alexnet\n" in out
    _, out, _ = said(capsys, "presets", "tiny-deepcluster", "--json")
    assert json.loads(out)["settings"]["method"]["k"]


def test_help_of_a_command_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "help", "train") == said(capsys, "train", "--help")


def test_line_of_an_epoch_breaks_between_values() -> None:
    row = {"epoch": 1, "loss": 1.777, "nmi_previous": 0.681, "nmi_labels": 0.744, "purity": 0.902, "clusters_used": 20}
    row |= {"size_min": 38, "size_max": 173, "rankme": 35.1, "images_per_second": 2961.0}
    whole, broken = (line(row, 9, "1.8 s", *width) for width in ((), (80,)))
    assert "\n" not in whole and whole.endswith("2,961 images/s  1.8 s left")
    assert broken.count("\n") == 1 and broken.replace("\n", "") == whole and max(map(len, broken.split("\n"))) < 80
    assert not line(row, 2, "0.1 s").endswith("left")


def test_train_prints_one_line_per_epoch(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(capsys, "train", "tiny-deepcluster", "--data", images, "--out", tmp_path / "r", *OPTIONS)
    assert status == 0
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 1
    assert "\x1b" not in out and "report" in out  # no bars, no color: this is no terminal


def test_train_as_json_prints_one_object(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "tiny-deepcluster", "--data", images, "--out", tmp_path / "r", *OPTIONS, "--json"]
    assert json.loads(said(capsys, *words)[1])["epochs"] == 1


def test_assign_and_features_and_cluster(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    assert json.loads(said(capsys, "assign", run, "--data", images, "--out", out, "--json")[1])["images"] == 64
    clusters = [int(line.split(",")[2]) for line in out.read_text().splitlines()[1:]]
    np.testing.assert_array_equal(clusters, np.load(run / "assignment.npy"))
    table = tmp_path / "f.npy"
    assert said(capsys, "features", run, "--data", images, "--out", table)[0] == 0
    assert (
        np.load(table, mmap_mode="r").shape[0] == 64
        and json.loads(table.with_suffix(".json").read_text())["rows"] == 64
    )
    grouped = tmp_path / "c.parquet"
    status, out_, _ = said(capsys, "cluster", table, "--k", 4, "--whiten", 8, "--out", grouped, "--json")
    assert status == 0 and json.loads(out_)["clusters_used"] == 4
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(grouped).to_pydict()
    assert list(columns) == ["index", "path", "cluster", "distance"] and all(columns["path"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "c.parquet", "f.json", "f.npy"]


def test_cluster_leaves_out_rows_of_undecodable_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(np.full((12, 12, 3), number * 20, np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes(b"")
    table, out = tmp_path / "f.npy", tmp_path / "c.csv"
    assert said(capsys, "features", run, "--data", folder, "--out", table)[0] == 0
    assert np.isnan(np.load(table)).any(1).tolist() == [number == 5 for number in range(12)]
    assert said(capsys, "cluster", table, "--k", 2, "--whiten", 2, "--out", out)[0] == 0
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert [row[2] == "-1" for row in rows] == [number == 5 for number in range(12)]


def test_features_of_a_timm_model_by_name(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sentence = mistake(
        capsys, "features", "timm:resnet10t.c3_in1k", "--data", images, "--out", tmp_path / "f.npy", "--image-size", 32
    )
    assert "weights" in sentence
    unknown = mistake(capsys, "features", "timm:resnet18x", "--data", images, "--out", tmp_path / "f.npy")
    assert "timm:resnet18" in unknown


def test_evaluate_export_report(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = tmp_path / "digits"
    words = ["train", "tiny-deepcluster", "--data", "digits", "--out", digits, "--epochs", 1, "--method.k", 20]
    assert said(capsys, *words)[0] == 0
    status, out, _ = said(capsys, "evaluate", digits, "clusters", "--json")
    scores = json.loads(out)
    assert (
        status == 0
        and scores["protocol"] == "clusters"
        and {"nmi", "ami", "ari", "accuracy", "purity"} <= set(scores["scores"])
    )
    assert json.loads((digits / "evaluation/clusters.json").read_text()) == scores
    status, out, _ = said(capsys, "evaluate", digits, "knn", "--data", "digits", "--k", 5, "--json")
    assert status == 0 and 0.5 < json.loads(out)["scores"]["knn5_top1"] <= 1
    assert cut_off(digits / "evaluation").is_file()
    status, out, err = said(capsys, "evaluate", digits, "clusters", "--json")
    assert status == 2 and json.loads(out) == scores and "evaluation" in err, (
        "scores are said where they cannot be kept"
    )
    for kind, name in (("safetensors", "b.safetensors"),):
        assert said(capsys, "export", digits, "--format", kind, "--out", tmp_path / name)[0] == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert "torchvision" in mistake(capsys, "export", digits, "--format", "torchvision", "--out", tmp_path / "b.pth")
    assert said(capsys, "report", digits)[0] == 0
    assert "</html>" in (digits / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("assign {run} --data {images}", "a.csv"),
        ("features {run} --data {images}", "a.npy"),
        ("cluster {table} --k 3", "a.csv"),
        ("curate {images} --size 3", "a.csv"),
        ("visualize {run} sizes", ""),
        ("evaluate {run} linear --data digits --holdout 0.2", ""),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    command: str, name: str, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("worked for nothing")

    monkeypatch.setattr("deepcluster.models.backbone.Backbone.forward", work)
    monkeypatch.setattr("deepcluster.visualize.sizes.draw_sizes", work)
    monkeypatch.setattr("deepcluster.clustering.kmeans.KMeans.fit", work)
    (tmp_path / "file").write_text("")
    np.save(tmp_path / "table.npy", np.eye(8))
    words = command.format(run=run, images=images, table=tmp_path / "table.npy").split()
    assert "file is no folder" in mistake(capsys, *words, "--out", tmp_path / "file" / name)


class TestMistakes:
    """What a user can get wrong, and the sentence that reports it."""

    def train(self, capsys: pytest.CaptureFixture[str], data: object, out: object, *more: object) -> str:
        return mistake(capsys, "train", "tiny-deepcluster", "--data", data, "--out", out, *OPTIONS, *more)

    def test_missing_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nowhere" in self.train(capsys, tmp_path / "nowhere", tmp_path / "r")
        assert not (tmp_path / "r").exists()

    def test_empty_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        assert "empty" in self.train(capsys, tmp_path / "empty", tmp_path / "r")

    def test_folder_without_images(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes/a.txt").write_text("x")
        assert "image" in self.train(capsys, tmp_path / "notes", tmp_path / "r")

    def test_one_image(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "one.npy", np.zeros((1, 12, 12, 3), np.uint8))
        assert "at least 2" in self.train(capsys, tmp_path / "one.npy", tmp_path / "r")

    def test_fewer_images_than_clusters(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "64 images for 100 clusters" in self.train(capsys, images, tmp_path / "r", "--method.k", 100)
        assert not (tmp_path / "r").exists()  # so that the next try finds its place free

    def test_all_images_identical(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "same.npy", np.full((64, 12, 12, 3), 90, np.uint8))
        assert "same features" in self.train(capsys, tmp_path / "same.npy", tmp_path / "r")

    def test_only_broken_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "broken").mkdir()
        for name, content in (("a.jpg", b""), ("b.png", b"text"), ("c.webp", b"RIFF")):
            (tmp_path / "broken" / name).write_bytes(content)
        assert "decoded" in self.train(capsys, tmp_path / "broken", tmp_path / "r")

    def test_unknown_preset(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "These begin so: tiny-deepcluster, " in mistake(
            capsys, "train", "tiny-deepclust", "--data", "x", "--out", "y"
        )

    def test_unknown_option(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "Did you mean --method.k?" in self.train(capsys, images, tmp_path / "r", "--method.kk", 3)

    def test_wrong_value(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--epochs" in self.train(capsys, images, tmp_path / "r", "--epochs", "many")

    def test_missing_value(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--out" in mistake(capsys, "train", "tiny-deepcluster", "--data", "x")

    def test_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "Did you mean assign?" in mistake(capsys, "asign", "x")

    def test_output_folder_in_use(self, run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--resume" in self.train(capsys, images, run)

    def test_output_folder_with_other_files(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        assert "other files" in self.train(capsys, images, tmp_path, "--overwrite")
        assert (tmp_path / "thesis.tex").exists()

    def test_leftovers_of_a_killed_run_are_removed(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / ".try").write_text("{}")
        (tmp_path / ".run.json.0a1b2c3d.part").write_text("{")
        words = ["train", "tiny-deepcluster", "--data", images, "--out", tmp_path, *OPTIONS]
        assert said(capsys, *words)[0] == 0
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_unwritable_output_folder(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("x")
        assert "cannot be written" in self.train(capsys, images, tmp_path / "file" / "r")

    def test_full_disk(self, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full on this system")
        from deepcluster.errors import DeepClusterError
        from deepcluster.io import write_atomic

        with pytest.raises(DeepClusterError, match="No space left"):
            write_atomic(images.with_suffix(".txt"), lambda beside: Path("/dev/full").write_text("x" * 10**6))
        assert not images.with_suffix(".txt").exists() and not list(images.parent.glob(".*"))

    def test_resume_with_another_preset(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sentence = mistake(capsys, "train", "deepcluster-alexnet", "--resume", run)
        assert "tiny-deepcluster" in sentence and "deepcluster-alexnet" in sentence

    def test_resume_of_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "run.json" in mistake(capsys, "train", "--resume", tmp_path)
        assert "does not exist" in mistake(capsys, "train", "--resume", tmp_path / "none")

    def test_float16_on_a_cpu(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "bf16" in self.train(capsys, images, tmp_path / "r", "--precision", "16", "--device", "cpu")

    def test_a_device_that_is_not_there(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "tpu" in self.train(capsys, images, tmp_path / "r", "--device", "tpu")

    def test_several_processes(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "--processes is 0" in self.train(capsys, images, tmp_path / "r", "--processes", "0")
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        said = self.train(capsys, images, tmp_path / "r", "--processes", "2")
        assert "--processes is 2 but the launcher started 3" in said
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert "3 processes do not divide into 2" in self.train(capsys, images, tmp_path / "r")
        assert not (tmp_path / "r").exists()

    def test_wrong_output_names(
        self, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ".csv" in mistake(capsys, "assign", run, "--data", images, "--out", tmp_path / "a.xls")
        assert ".npy" in mistake(capsys, "features", run, "--data", images, "--out", tmp_path / "a.csv")

    def test_no_labels_to_score(self, run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "label" in mistake(capsys, "evaluate", run, "clusters", "--data", images)
        assert "Did you mean knn?" in mistake(capsys, "evaluate", run, "knnn")

    def test_no_feature_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no feature table" in mistake(
            capsys, "cluster", tmp_path / "f.npy", "--k", 3, "--out", tmp_path / "c.csv"
        )
        (tmp_path / "f.npy").write_bytes(b"text")
        assert "no .npy file" in mistake(capsys, "cluster", tmp_path / "f.npy", "--k", 3, "--out", tmp_path / "c.csv")

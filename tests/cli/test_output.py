"""Terminals, logs and files take every name and every sentence, whatever their encoding."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import tarfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from deepcluster.cli.main import COMMANDS, main
from deepcluster.engine.assignment import Assignment
from deepcluster.engine.log import clusters_of
from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterWarning, counted

NAMES = (
    os.fsdecode(b"caf\xe9/1.png"), unicodedata.normalize("NFD", "été/é.png"), unicodedata.normalize("NFC", "été/è.png"),
    "line\nend 😀/a.png", "plain/a, \"b\".png",
)  # fmt: skip
THINGS = "image|cluster|file|row|epoch|step|shard|machine|process"
BROKEN = os.fsdecode(b"caf\xe9/br\xf6ken.png")


def said(monkeypatch: pytest.MonkeyPatch, encoding: str, *words: object) -> str:
    """What a command prints to streams of an encoding that takes nothing else."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        for stream in streams:
            stream.flush()
    printed = [stream.buffer.getvalue().decode(encoding) for stream in streams]
    assert status == 0 and "Traceback" not in printed[1], printed
    return "".join(printed)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names") / "photos"
    colors = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3))
    for k, color in enumerate(colors):
        name = NAMES[k % len(NAMES)]
        file = root / (name if k < len(NAMES) else f"{name.partition('/')[0]}/{k}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(color, (12, 12, 3)).astype(np.uint8)).save(file)
    (root / BROKEN).write_bytes(b"no image")
    return root


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_command_speaks_to_any_terminal(
    photos: Path, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = tmp_path / "läuft", tmp_path / "f.npy"
    small = ("--epochs", 1, "--batch-size", 16, "--method.k", 4, "--method.whiten", 8, "--image-size", 12)
    told = said(monkeypatch, encoding, "train", "tiny-deepcluster", "--data", photos, "--out", run, *small)
    assert r"br\xf6ken.png" in told
    with open(run / "bad_images.csv", encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [r"caf\xe9/br\xf6ken.png"]
    for out in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        said(monkeypatch, encoding, "assign", run, "--data", photos, "--out", out)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert paths == pyarrow.parquet.read_table(tmp_path / "a.parquet")["path"].to_pylist()
    assert {r"caf\xe9/1.png", *NAMES[1:]} <= set(paths)
    if encoding != "ascii":
        return
    for words in (("doctor", run), ("evaluate", run, "clusters"), ("report", run),
                  ("features", run, "--data", photos, "--out", table),
                  ("cluster", table, "--k", 3, "--out", tmp_path / "c.csv")):  # fmt: skip
        said(monkeypatch, encoding, *words)


def test_a_run_folder_needs_a_name_in_utf8(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / os.fsdecode(b"l\xe4uft")
    assert main(["train", "tiny-deepcluster", "--data", str(photos), "--out", str(out)]) == 2
    assert r"l\xe4uft, is not in UTF-8" in capsys.readouterr().err and not out.exists()


def test_a_table_made_in_python_takes_any_name(tmp_path: Path) -> None:
    table = Assignment([*NAMES, BROKEN], np.zeros(6, np.int64), np.zeros(6, np.float32))
    assert pyarrow.parquet.read_table(table.save(tmp_path / "a.parquet"))["path"][0].as_py() == r"caf\xe9/1.png"
    assert r"caf\xe9/1.png" in table.save(tmp_path / "a.csv").read_text(encoding="utf-8")


def test_help_and_presets_speak_to_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["--help"], ["presets"], ["presets", "tiny-deepcluster"], *([name, "--help"] for name in COMMANDS)):
        said(monkeypatch, "ascii", *words)


def test_warnings_are_sentences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    main(["--version"])
    assert warnings.formatwarning("three files are left out →", UserWarning, "x.py", 3) == (
        "warning: three files are left out →\n"
    )


def test_what_is_found_twice_is_said_once(tmp_path: Path) -> None:
    """A command opens its images more than once; another command in the same process says it again."""
    (tmp_path / "kind").mkdir()
    for number in range(12):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8))
        picture.save(tmp_path / ("" if number % 2 else "kind") / f"{number}.png")
    for out in ("one", "two"):
        words = ["cluster", str(tmp_path), "--out", str(tmp_path.parent / f"{tmp_path.name}-{out}"), "--k", "2"]
        with pytest.warns(DeepClusterWarning) as given:
            assert main([*words, "--backbone", "patches"]) == 0
        assert sum("Some images lie in folders" in str(each.message) for each in given) == 1


@pytest.mark.slow
def test_a_whole_process_in_the_locale_of_old_servers(photos: Path, tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    words = ["train", "tiny-deepcluster", "--data", str(photos), "--out", str(tmp_path / "r"), "--epochs", "1"]
    words += ["--method.k", "4", "--batch-size", "16"]
    done = subprocess.run([sys.executable, "-m", "deepcluster", *words], capture_output=True, env=os.environ | plain)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert r"caf\xe9/br\xf6ken.png" in (tmp_path / "r" / "bad_images.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_process_without_streams_works_and_writes_into_no_file(photos: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m deepcluster train tiny-deepcluster --data {photos} --out {tmp_path}/run"
    done = subprocess.run(f"{command} --epochs 1 --method.k 3 <&- >&- 2>&-", shell=True)
    assert done.returncode == 0 and len(load_run(tmp_path / "run").assignment) == 41


def test_numbers_of_things() -> None:
    said = [counted(*each) for each in ((1, "image"), (2_000, "epoch"), (0, "class"), (3, "query"), (2, "batch"))]
    assert said == ["1 image", "2,000 epochs", "0 classes", "3 queries", "2 batches"]
    assert clusters_of(1, 7, 7) == "1 cluster of 7" and clusters_of(12, 3, 4_000) == "12 clusters of 3-4,000"


def test_one_of_a_thing_is_said_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What commands say about one image, one cluster, one shard, one epoch and one bad file."""
    photos, one = tmp_path / "photos", tmp_path / "one"
    for folder, count in ((photos, 30), (one, 1)):
        folder.mkdir()
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"{number:02}.png")
    (photos / "bad.png").write_bytes(b"no image")
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        archive.add(one / "00.png", "00.png")
    run, table, small = tmp_path / "run", tmp_path / "f.npy", "--batch-size 32 --method.whiten 4 --image-size 12"
    for status, words in (
        (0, f"train tiny-deepcluster --data {photos} --out {run} --epochs 1 --method.k 1 {small}"),
        (0, f"assign {run} --data {one} --out {tmp_path}/a.csv"),
        (0, f"features {run} --data {photos} --out {table}"),
        (0, f"cluster {table} --k 1 --whiten 4 --out {tmp_path}/c.csv"),
        (0, f"cluster {photos} --k 1 --backbone {run} --out {tmp_path}/groups"),
        (0, f"curate {table} --size 1 --clusters 3 --out {tmp_path}/list.txt"),
        (0, f"index {tmp_path}/one.tar --out {tmp_path}/m.json"),
        (0, f"report {run}"),
        (0, f"explore {run} --export {tmp_path}/e.csv"),
        (2, f"train tiny-deepcluster --data {one} --out {tmp_path}/r --epochs 1 {small}"),
        (2, f"cluster {one} --k 2 --backbone {run} --out {tmp_path}/r"),
    ):
        assert main(words.split()) == status, words
        out = "".join(capsys.readouterr())
        plural = re.search(
            r"(?<![\d.,/-])1 (?:\w+ )?(?:image|cluster|file|row|epoch|step|shard|machine|process)e?s\b", out
        )
        assert out and plural is None and "(s)" not in out, out
    page = re.sub(r"<[^>]+>", "", (run / "report.html").read_text())
    assert re.search(r"(?<![\d.,/-])1 (?:images|clusters|epochs|files)\b", page) is None

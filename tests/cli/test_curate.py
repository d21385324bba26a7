"""`deepcluster curate` of feature tables and of images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.cli.main import main
from deepcluster.data.open import open_images

KIND = np.repeat(np.arange(4), [120, 50, 20, 10])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two hundred rows of four kinds, the last 30 of which equal the first, and two rows that are NaN."""
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=(4, 24)))[KIND] + rng.normal(size=(200, 24))
    x = np.concatenate([x, x[:30]])
    x[[3, 40]] = np.nan
    np.save(tmp_path / "f.npy", x.astype(np.float32))
    return tmp_path / "f.npy"


def sample(out: Path, words: list[str]) -> tuple[list[int], dict[str, Any]]:
    assert main(["curate", *words, "--out", str(out)]) == 0
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    return [int(row[0]) for row in rows], json.loads(out.with_name(f"{out.stem}.report.json").read_text())


def test_a_table(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, line = table.with_name("s.csv"), [str(table), "--size", "40", "--clusters", "15", "4"]
    index, report = sample(out, line)
    assert len(set(index)) == 40 and not {3, 40} & set(index) and {i for i in index if i >= 200} <= {203}
    assert (report["images"], report["bad"], report["duplicates"], report["taken"]) == (230, 2, 29, 40)
    assert "40 of 230 images; left out before: 2 that cannot be decoded, 29 near-duplicates" in capsys.readouterr().out
    assert np.bincount(KIND[[i % 200 for i in index]]).tolist() == [10, 10, 10, 10]
    high, low = report["levels"]
    assert high["clusters"] == 4 and high["after"] == {"min": 10, "median": 10, "max": 10}
    assert high["before"]["max"] == 119 and low["before"]["max"] < 119
    assert sample(out, line)[0] == index == sample(out, [*line, "--seed", "0"])[0]
    assert sample(out, [*line, "--seed", "1"])[0] != index
    assert set(index) < set(sample(out, [*line[:2], "60", *line[3:]])[0])
    assert sample(out, [*line, "--duplicates", "1.1"])[1]["duplicates"] == 0
    assert sample(out, [*line[:2], "9", *line[3:], "--duplicates", "0.5"])[1]["duplicates"] > 29
    assert sample(out, [*line, "--resamplings", "0"])[1]["levels"] != report["levels"]
    assert main(["curate", *line, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "231"], "231 images cannot be taken of 230: give --size 1 to 230"),
        (["--size", "0"], "give --size 1 to 230"),
        (["--size", "200"], "(2 cannot be decoded and 29 are near-duplicates): give --size 1 to 199"),
        (["--size", "5", "--clusters", "5", "5"], "--clusters 5 5 are no levels of 228 images"),
        (["--size", "5", "--duplicates", "0"], "--duplicates is 0.0: give a cosine above 0"),
        (["--size", "5", "--resamplings", "-1"], "--resamplings is -1: give 0"),
        (["--size", "5", "--backbone", "patches"], "--backbone is for images"),
        (["--size", "5", "--overwrite"], "--overwrite is for images"),
        (["--size", "5", "--out", "list.txt"], "give --out a .csv file"),
    ],
)
def test_mistakes(table: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["curate", str(table), "--out", str(table.with_name("s.csv")), *words]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert said.startswith("deepcluster: ") and said.count("\n") == 1 and sentence in said
    assert [path.name for path in table.parent.iterdir()] == ["f.npy"]


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """64 of them, of which two equal another and one is damaged."""
    monkeypatch.setattr("deepcluster.engine.patches.PATCHES", 2_000)  # for speed
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(61):
        image = rng.integers(0, 80, (16, 16, 3), np.uint8)
        image[:, :, 0 if number < 50 else 1] += 150
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:02}.png")
    for name in ("70", "71"):
        shutil.copy(tmp_path / "photos" / "05.png", tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "80.png").write_bytes(b"no image")
    out = tmp_path / "list.txt"
    line = ["curate", str(tmp_path / "photos"), "--out", str(out), "--backbone", "patches"]
    assert main([*line, "--size", "20"]) == 0
    assert "20 of 64 images; left out before: 1 that cannot be decoded, 2 near-duplicates" in capsys.readouterr().out
    first = out.read_text()
    assert len(open_images(str(out))) == 20 and not {"70", "71", "80"} & {Path(name).stem for name in first.split()}
    assert main([*line, "--size", "62"]) == 2
    assert "give --size 1 to 61" in capsys.readouterr().err and out.read_text() == first

    def stop(*_: Any, **__: Any) -> None:
        raise AssertionError("features are extracted again")

    with monkeypatch.context() as patch:
        patch.setattr("deepcluster.engine.model.Model.features", stop)
        assert main([*line, "--size", "20", "--seed", "1"]) == 0
        assert out.read_text() != first
        with pytest.raises(AssertionError, match="again"):
            main([*line, "--size", "20", "--overwrite"])
    (tmp_path / "photos" / "80.png").unlink()
    assert main([*line, "--size", "20"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*line, "--size", "61", "--overwrite"]) == 0 and len(open_images(str(out))) == 61

"""Thousands of damaged files of every kind: each is read, or refused in one sentence, within bounds of time and memory.

`DEEPCLUSTER_FIGURES=FILE pytest -m slow tests/trust` writes down what became of them.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
import samples
from mutate import MEMORY, Kind, read_all
from pictures import pictures

from deepcluster.data import storage
from deepcluster.data.archive import scan
from deepcluster.errors import DeepClusterError

FULL = pytest.mark.slow


def bear(kinds: list[Kind], count: int, folder: Path, name: str, seed: int = 0) -> None:
    """Reads that many damaged files, none of which may do harm."""
    found = read_all(kinds, count, seed, folder)
    assert (folder / "spoken").exists() and not (folder / "child.txt").exists()
    said = sum((figures.said for figures in found.values()), Counter())
    slowest, peak = (max(getattr(figures, what) for figures in found.values()) for what in ("slowest", "peak"))
    if file := os.environ.get("DEEPCLUSTER_FIGURES"):
        rows = {"files": said.total(), **said, "slowest_seconds": round(slowest, 2), "peak_mb": peak >> 20}
        with open(file, "a") as figures_file:
            figures_file.write(json.dumps({name: rows}) + "\n")
            figures_file.writelines(json.dumps({kind: vars(each)}) + "\n" for kind, each in found.items())
    wrong = [line for figures in found.values() for line in figures.wrong]
    assert not wrong, "\n".join([f"{len(wrong)} of {said.total()}:", *wrong[:20]])
    assert said["refused"] and said["equal"] and said.total() > 0.9 * count and peak < MEMORY


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=FULL)])
def test_damaged_images(count: int, tmp_path: Path) -> None:
    bear(pictures(), count, tmp_path, "images")


@pytest.mark.parametrize("count", [0, pytest.param(55, marks=FULL)])
def test_damaged_archives_lists_tables_and_runs(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`count` of each kind; 0 = a few of those that are read at once."""
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "FRESH", 0.0)  # what was written just now is kept in the cache, too
    kinds = samples.files(tmp_path)
    if not count:
        kinds = [kind for kind in kinds if not kind.slow]
    bear(kinds, (count or 6) * len(kinds), tmp_path, "files")


def test_a_sentence_has_one_line_and_an_end(tmp_path: Path) -> None:
    text = str(DeepClusterError(f"{tmp_path} is of version a\nb, {'9' * 4000}: write it again."))
    assert "\n" not in text and len(text) < 700 and text.endswith("999: write it again.")


def test_what_a_listing_lost_is_told(tmp_path: Path) -> None:
    """A name in a zip file's list that no longer ends as an image's, a list cut short, a tar file's second half."""
    whole = {kind.file: kind.whole for kind in samples.archives()}
    file = tmp_path / "a.zip"
    data = whole["stored.zip"]
    at = data.rindex(b"a/2.png")
    end = data.rindex(b"PK\x05\x06")
    for changed in (data[: at + 6] + b"'" + data[at + 7 :], data[: end + 10] + b"\x07" + data[end + 11 :]):
        file.write_bytes(changed)
        assert scan(str(file)).trouble
    file = tmp_path / "a.tar"
    half = len(whole["twice.tar"]) // 2 - 1000  # among the zeros between the two
    file.write_bytes(whole["twice.tar"][:half] + b"x" + whole["twice.tar"][half:])
    found = scan(str(file))
    assert len(found.names) == 6 and "damaged header at byte 19,456" in found.trouble
    for zeros in (1 << 20, 1 << 23):  # a download for which room was taken, and which did not end
        file.write_bytes(whole["form1.tar"][:9000] + bytes(zeros))
        assert ("zeros behind its last member" in scan(str(file)).trouble) is (zeros > 1 << 20)


def test_libraries_say_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Pillow's log has no handler of its own, and would go to the screen."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded")
    assert capfd.readouterr() == ("", "")

"""Exports: what is in them, safe names, and that images stay as they were."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from deepcluster.cli.main import main
from deepcluster.data.arrays import open_array
from deepcluster.errors import DeepClusterError
from deepcluster.explore import exports
from deepcluster.explore.explorer import Explorer


def edited(explorer: Explorer) -> Explorer:
    first, second, third = (row["id"] for row in explorer.catalog.rows(part=slice(3))["rows"])
    explorer.edit({"op": "rename", "cluster": first, "name": '../../<b>"x"/\N{FOX FACE}'})
    explorer.edit({"op": "merge", "clusters": [first, second], "into": first})
    explorer.edit({"op": "hide", "clusters": [third], "hidden": True})
    explorer.edit({"op": "select", "cluster": first, "on": True})
    return explorer


def test_table(explorer: Explorer, tmp_path: Path) -> None:
    groups = edited(explorer).groups
    what, rows = exports.write(tmp_path / "labels.csv", groups, explorer.source)
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as handle:
        read = list(csv.DictReader(handle))
    shown = [i for i in range(len(groups)) if groups.group[i] not in groups.hidden]
    assert what == "table" and rows == len(read) == len(shown)
    for row, index in zip(read, shown, strict=True):
        assert int(row["index"]) == index and row["path"] == explorer.source.path(index)
        assert int(row["cluster"]) == groups.group[index] and int(row["selected"]) == groups.selected[index]
        assert row["name"] == (groups.name(int(groups.group[index])) if groups.group[index] >= 0 else "")


def test_links_lead_to_the_images_and_stay_in_the_folder(explorer: Explorer, photos: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in photos.rglob("*")}
    groups = edited(explorer).groups
    out = tmp_path / "deep" / "links"
    _, count = exports.write(out, groups, explorer.source)
    links = [path for path in out.rglob("*") if path.is_symlink()]
    assert (
        len(links)
        == count
        == int((np.isin(groups.group, list(groups.hidden), invert=True) & (groups.group >= 0)).sum())
    )
    for link in links:
        assert link.parent.parent == out and not os.path.isabs(os.readlink(link))
        index = int(link.name.split("-")[0])
        assert os.path.samefile(link, photos / explorer.source.path(index))
        assert int(link.parent.name[:5]) == groups.group[index]
        assert not set(link.name) & set("<>\"'/\\\n:*?|")
    assert {file: file.stat().st_mtime_ns for file in photos.rglob("*")} == before
    with pytest.raises(DeepClusterError, match="is not empty"):
        exports.write(out, groups, explorer.source)
    with pytest.raises(DeepClusterError, match="among the images"):
        exports.write(photos / "inside", groups, explorer.source)
    assert not (photos / "inside").exists()


def test_coco(explorer: Explorer, tmp_path: Path) -> None:
    groups = edited(explorer).groups
    exports.write(tmp_path / "coco.json", groups, explorer.source)
    found = json.loads((tmp_path / "coco.json").read_text())
    names = {one["id"]: one["name"] for one in found["categories"]}
    assert len(found["images"]) == len(found["annotations"]) == len({one["id"] for one in found["annotations"]})
    for image, note in zip(found["images"], found["annotations"], strict=True):
        assert note["image_id"] == image["id"] and note["bbox"] == [0, 0, 16, 16] and note["area"] == 256
        assert names[note["category_id"]] == groups.name(int(groups.group[image["id"]]))
        assert image["file_name"] == explorer.source.path(image["id"])
    assert (groups.group[[one["id"] for one in found["images"]]] >= 0).all()


def test_images_that_are_no_files_have_no_links(explorer: Explorer, tmp_path: Path) -> None:
    source = open_array(np.zeros((len(explorer.groups), 8, 10, 3), np.uint8))
    with pytest.raises(DeepClusterError, match="not files of their own"):
        exports.write(tmp_path / "links", explorer.groups, source)
    assert exports.size_of(source, 0) == (8, 10)
    with pytest.raises(DeepClusterError, match=r"not as labels\.parquet"):
        exports.write(tmp_path / "labels.parquet", explorer.groups, source)


def test_names_are_safe_on_any_system() -> None:
    assert exports.safe("../../etc/passwd") == "_.._etc_passwd"
    assert exports.safe("a\nb<c>.png") == "a_b_c_.png"
    long = exports.safe("é" * 300 + ".jpeg")
    assert len(long.encode()) <= 80 and long.endswith(".jpeg")
    assert exports.safe("\udcff.png") and exports.safe("...") == ""


def test_from_the_command_line(explorer: Explorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(explorer)
    run = str(explorer.run.folder)
    for out, what in (("l.csv", "table"), ("c.json", "COCO labels"), ("f", "folder of links")):
        assert main(["explore", run, "--export", str(tmp_path / out), "--device", "cpu"]) == 0
        assert what in capsys.readouterr().out and (tmp_path / out).exists()
    assert "FOX" not in (tmp_path / "l.csv").read_text() and "\N{FOX FACE}" in (tmp_path / "l.csv").read_text()
    assert main(["explore", run, "--export", str(tmp_path / "x.txt")]) == 2
    assert "are exported as .csv" in capsys.readouterr().err

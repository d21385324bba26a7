"""The table for Embedding Atlas: rows, neighbors by their positions, pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from deepcluster.cli.main import main
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.explore import atlas
from deepcluster.explore.explorer import Explorer


def test_columns_are_of_the_images(explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "ROWS", 32)  # several groups of rows, as many images have
    hidden, named = (row["id"] for row in explorer.catalog.rows(part=slice(2))["rows"])
    explorer.edit({"op": "hide", "clusters": [hidden], "hidden": True})
    explorer.edit({"op": "rename", "cluster": named, "name": "dogs"})
    file = tmp_path / "new" / "atlas.parquet"
    count = atlas.write_atlas(file, explorer, Screen(quiet=True))
    rows = pyarrow.parquet.read_table(file).to_pylist()
    vectors, source, groups = explorer.vectors(), explorer.source, explorer.groups
    shown = [i for i in range(len(groups)) if groups.group[i] != hidden and i not in vectors.bad]
    assert count == len(rows) == len(shown) > 40 and [row["index"] for row in rows] == shown
    unit = vectors.rows[shown]
    apart = 1 - unit @ unit.T
    np.fill_diagonal(apart, np.inf)
    for place, row in enumerate(rows):
        index = row["index"]
        assert row["path"] == source.path(index) and row["cluster"] == groups.group[index]
        assert source.labels is not None and row["label"] == source.classes[source.labels[index]]
        assert row["distance"] == explorer.catalog.own[index]
        assert (row["name"] == "dogs") == (row["cluster"] == named)
        ids = row["neighbors"]["ids"]
        assert len(ids) == atlas.NEIGHBORS and place not in ids
        np.testing.assert_allclose(row["neighbors"]["distances"], np.sort(apart[place])[: len(ids)], atol=1e-5)
        np.testing.assert_allclose(row["neighbors"]["distances"], apart[place, ids], atol=1e-5)
        picture = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        np.testing.assert_array_equal(picture, source.read(index))
    places = np.array([(row["projection_x"], row["projection_y"]) for row in rows])
    np.testing.assert_allclose(places, explorer.need("map neighborhoods")[shown] / atlas.UNIT)


def test_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run.folder), "--format", "embedding-atlas", "--json", "--out"]
    assert main([*words, str(tmp_path / "a.parquet")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == pyarrow.parquet.read_metadata(tmp_path / "a.parquet").num_rows == len(run.assignment) - 1
    assert main(["explore", str(run.folder), "--export", str(tmp_path / "b.parquet")]) == 0
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()
    assert main([*words, str(tmp_path / "a.csv")]) == 2
    assert "Embedding Atlas reads .parquet, not 'a.csv': change --out." in capsys.readouterr().err

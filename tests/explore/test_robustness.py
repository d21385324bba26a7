"""Unusual inputs: images swapped under a run, names of no encoding, links through links, equal images, failing jobs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run, load_run
from deepcluster.errors import DeepClusterError
from deepcluster.explore import exports, layout
from deepcluster.explore.explorer import Explorer, open_explorer
from deepcluster.explore.jobs import Job
from deepcluster.explore.vectors import Vectors, unit_rows
from deepcluster.visualize.clusters import draw_clusters
from explore.browse import served
from explore.conftest import write_images
from restarts import settings


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and the images it was trained on, one of which has a name of no encoding."""
    folder = tmp_path_factory.mktemp("own")
    write_images(folder / "photos", each=6)
    os.rename(folder / "photos/green/005.png", os.fsencode(folder) + b"/photos/green/\xff\xfe.png")
    train.train(settings(epochs=1, k=3), str(folder / "photos"), folder / "run", screen=Screen(quiet=True))
    return folder


def test_images_that_were_exchanged_are_refused(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "own")
    run = load_run(tmp_path / "own/run", device="cpu")
    run.config["data"] = str(tmp_path / "own/photos")
    os.rename(tmp_path / "own/photos/blue/001.png", tmp_path / "own/photos/blue/zzz.png")
    explorer = Explorer(run)
    with pytest.raises(DeepClusterError, match="no longer holds the images"):
        explorer.jobs["images"].wait(60)
    with pytest.raises(DeepClusterError, match="no longer holds the images"):
        explorer.export("csv", False)
    with pytest.raises(DeepClusterError, match="no longer holds the images"):
        draw_clusters(run)
    explorer.close()
    other = open_explorer(run, str(tmp_path / "own/photos"))  # assigned anew
    other.jobs["images"].wait(60)
    other.close()


def test_names_of_no_encoding_are_shown(own: Path) -> None:
    explorer = Explorer(load_run(own / "run", device="cpu"))
    explorer.jobs["images"].wait(60)
    index = next(i for i in range(len(explorer.source)) if "\\xff" in explorer.source.path(i))
    cluster = int(explorer.groups.group[index])
    with served(explorer) as site:
        paths = [one["path"] for one in site.get(f"/api/clusters/{cluster}/members?limit=500")["images"]]
        assert any(r"\xff\xfe.png" in path for path in paths)
        assert r"\xff" in site.get(f"/api/images/{index}")["path"]
    explorer.close()


def test_exported_links_are_valid_through_linked_folders(own: Path, tmp_path: Path) -> None:
    (tmp_path / "deep/er/disk").mkdir(parents=True)
    (tmp_path / "short").symlink_to(tmp_path / "deep/er/disk")
    explorer = Explorer(load_run(own / "run", device="cpu"))
    explorer.jobs["images"].wait(60)
    _, count = exports.write(tmp_path / "short/out", explorer.groups, explorer.source)
    links = [path for path in (tmp_path / "deep/er/disk/out").rglob("*") if path.is_symlink()]
    assert len(links) == count > 0 and all(link.exists() for link in links)
    explorer.close()


@pytest.mark.parametrize("name", list(layout.LAYOUTS))
@pytest.mark.parametrize("images", [1, 2, 30])
def test_equal_images_share_one_position(name: str, images: int) -> None:
    rows = unit_rows(np.ones((images, 6), np.float32))
    place = layout.LAYOUTS[name](Vectors(rows, np.zeros(0, np.int64)))
    assert place.shape == (images, 2) and np.abs(place).max() < 1000


def test_a_job_that_fails_reports_the_error_and_can_be_retried() -> None:
    tries: list[int] = []

    def work(job: Job) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("lost")
        return "found"

    job = Job("looking", work).start()
    with pytest.raises(DeepClusterError, match="KeyError: 'lost'"):
        job.wait(10)
    assert job.start().state == "failed"  # by itself it is not tried again
    job.reset()
    assert job.start().wait(10) == "found"


def test_edited_clusters_have_their_own_distances_after_a_restart(run: Run) -> None:
    first = Explorer(run)
    first.jobs["images"].wait(60)
    first.jobs["vectors"].start().wait(60)
    big, small = (row["id"] for row in first.catalog.rows(part=slice(2))["rows"])
    first.edit({"op": "merge", "clusters": [big, small], "into": big})
    told = first.catalog.row(big)["distance"]
    first.close()
    again = Explorer(run)
    again.jobs["images"].wait(60)
    again.jobs["vectors"].wait(60)
    assert again.catalog.row(big)["distance"] == pytest.approx(told)
    again.close()

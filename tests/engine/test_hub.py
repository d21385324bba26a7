"""A run is shared as a folder and on the hub, and opened from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.errors import DeepClusterError
from deepcluster.models.hugging_face import write_folder
from deepcluster.models.zoo import build_backbone
from hub import Hub, serving
from restarts import images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dc.Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    return dc.train("tiny-deepcluster", images(), out, k=5, whiten=8, epochs=1, image_size=12, quiet=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def test_a_folder_there_and_back(run: dc.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = run.save_pretrained(tmp_path / "shared")
    opened = dc.from_pretrained(shared, device="cpu")
    np.testing.assert_array_equal(opened.assign(images()).cluster, run.assignment)
    np.testing.assert_array_equal(opened.features(images()), run.features(images()))
    assert torch.equal(opened.centroids, run.centroids) and opened.image_size == 12
    np.save(tmp_path / "images.npy", images())
    data = ["--data", f"{tmp_path}/images.npy"]
    assert main(["assign", str(shared), *data, "--out", f"{tmp_path}/a.csv"]) == 0
    rows = (tmp_path / "a.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[2]) for row in rows] == run.assignment.tolist()
    assert main(["features", str(shared), *data, "--out", f"{tmp_path}/f.npy"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), run.features(images()))
    tuned = dc.train("tiny-deepcluster", images(), tmp_path / "on", from_=shared, k=4, whiten=8, epochs=1, quiet=True)
    assert tuned.backbone.config == run.backbone.config
    with pytest.raises(DeepClusterError, match="is not empty: choose a new folder"):
        run.save_pretrained(shared)
    with pytest.raises(DeepClusterError, match="A revision is of a repository's plain name"):
        dc.from_pretrained(shared, revision="main")
    assert main(["features", str(shared), *data, "--out", f"{tmp_path}/f.npy", "--image-size", "16"]) == 2
    assert "knows the size of its images" in capsys.readouterr().err
    assert dc.from_pretrained(run.folder).assign(images()).cluster.tolist() == run.assignment.tolist()


def test_the_hub_there_and_back(run: dc.Run, hub: Hub, tmp_path: Path) -> None:
    assert run.push_to_hub("we/photos", private=True, token="hf_secret") == f"{hub.address}/we/photos"
    made, commit = hub.said
    assert (made["organization"], made["name"]) == ("we", "photos") and "private" in str(made)
    assert commit["summary"] == "Run of deepcluster" and set(hub.tokens) == {"Bearer hf_secret"}
    there = hub["models/we/photos"]["main"]
    folder = run.save_pretrained(tmp_path / "same")
    assert there == {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("we/photos", "hf:we/photos"):
        opened = dc.from_pretrained(name)
        np.testing.assert_array_equal(opened.assign(images()).cluster, run.assignment)
    np.save(tmp_path / "images.npy", images())
    words = ["assign", "hf:we/photos", "--data", f"{tmp_path}/images.npy", "--out", f"{tmp_path}/a.csv"]
    assert main(words) == 0
    again = dc.cluster(images(), tmp_path / "again", backbone="hf:we/photos", k=3, quiet=True)
    assert again.backbone.config == run.backbone.config
    hub["models/we/photos"]["v1"] = there
    del hub["models/we/photos"]["main"]
    assert len(dc.from_pretrained("we/photos", revision="v1").centroids) == 5


def test_a_network_of_timm_has_features_and_no_clusters(hub: Hub, tmp_path: Path) -> None:
    backbone = build_backbone("timm:test_vit", image_size=32).eval()
    (tmp_path / "vit").mkdir()
    write_folder(backbone, tmp_path / "vit")
    hub["models/we/vit"]["main"] = {file.name: file for file in (tmp_path / "vit").iterdir()}
    opened = dc.from_pretrained("we/vit", device="cpu")
    assert opened.features(images(4)).shape == (4, backbone.dim)
    with pytest.raises(DeepClusterError, match=r"hf:we/vit is a network without clusters: .* --backbone hf:we/vit"):
        opened.assign(images(4))


def test_mistakes_are_one_sentence(run: dc.Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeepClusterError, match=r"^hf:we/none could not be fetched \("):
        dc.from_pretrained("we/none")
    with pytest.raises(DeepClusterError, match="hf:we/photos has no option 'split': it takes revision"):
        dc.from_pretrained("hf:we/photos?split=train")
    with pytest.raises(DeepClusterError, match="could not be put on the hub as a/b/c"):
        run.push_to_hub("a/b/c", token="x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DeepClusterError, match="hf:we/photos could not be fetched"):
        dc.from_pretrained("we/photos")

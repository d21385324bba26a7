"""`cluster_images`: a run folder of groups by the features of a network that is not trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deepcluster as dc
from deepcluster.clustering import HierarchicalKMeans, KMeans, Whitening
from deepcluster.clustering.neighbor_start import neighbor_start
from deepcluster.data.arrays import open_digits
from deepcluster.engine import cluster, patches
from deepcluster.engine.cluster import cluster_images
from deepcluster.engine.describe import FEATURES, fitting_size
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.engine.occupy import ASIDE
from deepcluster.engine.run import load_run, load_subject
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.models.zoo import build_backbone
from deepcluster.visualize.report_text import command

QUIET = Screen(quiet=True)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16, widths=(8, 16)).eval()
    Model(backbone, torch.zeros(0, backbone.dim)).save(tmp_path / "net.safetensors")
    return str(tmp_path / "net.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """600 digits in a folder of odd sizes, one of them cut short."""
    digits = open_digits()
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(600):
        image = Image.fromarray(digits.read(index)).resize((16 + index % 5, 18 + index % 3))
        image.save(folder / f"{index:04d}.png")
    (folder / "0300.png").write_bytes((folder / "0300.png").read_bytes()[:60])
    return str(folder)


def test_clusters_are_those_of_k_means_on_reduced_unit_rows(weights: str, photos: str, tmp_path: Path) -> None:
    run = cluster_images(photos, tmp_path / "run", backbone=weights, k=7, seed=3, screen=QUIET)
    features = load_subject(weights).features(photos)
    good = np.isfinite(features).all(1)
    z = Whitening(64, whiten=False).fit_transform(features[good])
    assert run.assignment[300] == -1 and not good[300]
    by_angle = KMeans(7, init=neighbor_start(z, 7, random_state=3), spherical=True)
    np.testing.assert_array_equal(run.assignment[good], by_angle.fit_predict(z))
    assert "0300.png" in (run.folder / "bad_images.csv").read_text()
    fresh = run.untrained().backbone.state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in run.backbone.state_dict().items())
    assert f"--backbone {weights} --algorithm kmeans --seed 3" in command(run.config, run.folder)
    assert "--image-size" not in command(run.config, run.folder)
    assert run.config["finished"] and run.config["bad_images"] == 1 and run.params.trains is False
    assigned = load_run(run.folder).assign(photos)
    np.testing.assert_array_equal(assigned.cluster, run.assignment)
    assert run.distance is not None
    np.testing.assert_allclose(assigned.distance, run.distance, rtol=1e-3, atol=1e-4)


def test_an_interrupted_run_goes_on_with_the_parts_it_has(weights: str, photos: str, tmp_path: Path) -> None:
    whole = cluster_images(photos, tmp_path / "whole", backbone=weights, k=5, screen=QUIET, part=256)

    class Stops(Screen):
        def bar(self, what: str, total: int, unit: str = "images"):  # type: ignore[no-untyped-def]
            raise Interrupted

    parts = sorted((whole.folder / FEATURES).glob("part-*.npy"))
    assert len(parts) == 3
    begun = tmp_path / "begun"
    with pytest.raises(Interrupted):
        cluster_images(photos, begun, backbone=weights, k=5, screen=Stops(quiet=True), part=256)
    shutil.copytree(whole.folder / FEATURES, begun / FEATURES)
    last = begun / FEATURES / parts[-1].name
    last.unlink()
    kept = (begun / FEATURES / parts[1].name).stat().st_mtime_ns
    run = cluster_images(photos, begun, backbone=weights, k=5, screen=QUIET, part=256)
    assert (begun / FEATURES / parts[1].name).stat().st_mtime_ns == kept and last.exists()
    assert "0300.png" in (begun / "bad_images.csv").read_text()  # a part that was there before holds it
    np.testing.assert_array_equal(run.assignment, whole.assignment)
    assert torch.equal(run.centroids, whole.centroids)
    with pytest.raises(DeepClusterError, match="already holds this run"):
        cluster_images(photos, begun, backbone=weights, k=5, screen=QUIET, part=256)
    again = cluster_images(
        photos, begun, backbone=weights, k=5, screen=QUIET, part=256, again=True
    )  # its report was cut
    np.testing.assert_array_equal(again.assignment, whole.assignment)


def test_overwrite_keeps_features_of_the_same_images_only(weights: str, photos: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert len(cluster_images(photos, out, backbone=weights, k=5, screen=QUIET).centroids) == 5
    part = next((out / FEATURES).glob("part-*.npy"))
    made = part.stat().st_mtime_ns
    (out / "pictures").mkdir()
    second = cluster_images(photos, out, backbone=weights, k=9, overwrite=True, screen=QUIET)
    assert part.stat().st_mtime_ns == made and not (out / "pictures").exists()
    assert len(second.centroids) == 9
    (Path(photos) / "0001.png").unlink()
    third = cluster_images(photos, out, backbone=weights, k=9, overwrite=True, screen=QUIET)
    assert len(third.assignment) == 599 and (third.assignment >= 0).sum() == 598


def test_a_grouping_that_fails_or_stops_leaves_the_earlier_run(
    weights: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    cluster_images(photos, out, backbone=weights, k=5, screen=QUIET)
    (out / "notes.txt").write_text("mine")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    few = np.zeros((4, 20, 20, 3), np.uint8)
    for data, k in ((photos, 700), (few, 5)):
        with pytest.raises(DeepClusterError):
            cluster_images(data, out, backbone=weights, k=k, overwrite=True, screen=QUIET)
        assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before

    def stops(*arguments: object, **options: object) -> None:
        raise Interrupted

    monkeypatch.setattr(cluster, "cluster_features", stops)
    part = next((out / FEATURES).glob("part-*.npy"))
    made = part.stat().st_mtime_ns
    with pytest.raises(Interrupted):
        cluster_images(photos, out, backbone=weights, k=6, overwrite=True, screen=QUIET)
    assert (out / ASIDE / "model.safetensors").exists()
    monkeypatch.undo()
    assert len(cluster_images(photos, out, backbone=weights, k=6, screen=QUIET).centroids) == 6  # goes on
    assert not (out / ASIDE).exists() and (out / "notes.txt").exists() and part.stat().st_mtime_ns == made

    monkeypatch.setattr(cluster, "cluster_features", stops)
    with pytest.raises(Interrupted):
        cluster_images(photos, out, backbone=weights, k=7, overwrite=True, screen=QUIET)
    monkeypatch.undo()
    with pytest.raises(DeepClusterError, match="already holds another run"):  # other images: the earlier run is back
        cluster_images(few, out, backbone=weights, k=2, screen=QUIET)
    assert len(load_run(out).centroids) == 6 and part.stat().st_mtime_ns == made


def test_every_algorithm_leaves_a_run_that_assigns(weights: str, photos: str, tmp_path: Path) -> None:
    tree = cluster_images(photos, tmp_path / "tree", backbone=weights, k=8, algorithm="hierarchical", screen=QUIET)
    z = Whitening(64, whiten=False).fit_transform(np.delete(load_subject(weights).features(photos), 300, 0))
    expected = HierarchicalKMeans(8, random_state=0).fit_predict(z)
    np.testing.assert_array_equal(np.delete(tree.assignment, 300), expected)
    np.testing.assert_array_equal(tree.assign(photos).cluster, tree.assignment)
    pic = cluster_images(photos, tmp_path / "pic", backbone=weights, algorithm="pic", screen=QUIET)
    assert len(pic.centroids) == pic.assignment.max() + 1 == pic.config["settings"]["method"]["k"] > 1
    white = cluster_images(photos, tmp_path / "white", backbone=weights, k=4, whiten=8, screen=QUIET)
    assert white.whitening.whiten and white.centroids.shape == (4, 8)


def test_k_is_chosen_where_none_is_given(weights: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (3, 1, 1, 3))
    images = np.clip(colors[np.arange(90) % 3] + rng.normal(0, 3, (90, 16, 16, 3)), 0, 255).astype(np.uint8)
    run = cluster_images(images, tmp_path / "run", backbone=weights, screen=QUIET)
    assert run.config["k_auto"]["k"] == len(run.centroids) == 3
    assert len({tuple(run.assignment[kind::3]) for kind in range(3)}) == 3
    assert json.loads((run.folder / "run.json").read_text())["k_auto"]["sentence"]


def test_mistakes_are_sentences(weights: str, photos: str, tmp_path: Path) -> None:
    for values, words in (
        ({"k": 700}, "600 images cannot form 700 clusters"),
        ({"k": 600}, "599 rows cannot make 600 clusters"),
        ({"k": 3, "algorithm": "pic"}, "--k is not an option of pic"),
        ({"k": 3, "image_size": 64}, "knows the size of its images"),
    ):
        with pytest.raises(DeepClusterError, match=words):
            cluster_images(photos, tmp_path / "run", backbone=weights, screen=QUIET, **values)
    assert len(cluster_images(photos, tmp_path / "run", backbone=weights, k=3, screen=QUIET).centroids) == 3
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(DeepClusterError, match="other files"):
        cluster_images(photos, other, backbone=weights, k=3, screen=QUIET)
    with pytest.raises(DeepClusterError, match="own pictures would"):
        cluster_images(photos, Path(photos) / "run", backbone=weights, k=3, screen=QUIET)


@pytest.mark.parametrize(
    ("side", "name", "expected"),
    [(8, "timm:resnet18", 96), (100, "timm:resnet18", 128), (900, "timm:resnet18", 224),
     (8, "timm:vit_small_patch14_dinov2", 98), (900, "timm:vit_small_patch14_dinov2", 224)],
)  # fmt: skip
def test_images_are_seen_at_about_their_own_size(side: int, name: str, expected: int) -> None:
    from deepcluster.data.open import open_images

    assert fitting_size(open_images(np.zeros((3, side, side + 40, 3), np.uint8)), name) == expected


def test_python_function_is_the_same(weights: str, tmp_path: Path) -> None:
    import deepcluster as dc

    run = dc.cluster("digits", tmp_path / "run", quiet=True, backbone=weights, k=10)
    assert len(run.assignment) == 1797 and len(np.unique(run.assignment)) == 10


def test_patches_are_fitted_to_the_images_and_gone_on_from(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "PATCHES", 2_000)  # for speed
    run = cluster_images(photos, tmp_path / "run", backbone="patches", k=7, screen=QUIET)
    assert run.image_size == 18, "the images' own, within bounds"
    assert run.backbone.config["name"] == "patches" and run.assignment[300] == -1
    np.testing.assert_array_equal(load_run(run.folder).assign(photos).cluster, run.assignment)
    assert "--backbone patches" in command(run.config, run.folder)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "cluster_table", _interrupt)
        with pytest.raises(Interrupted):
            cluster_images(photos, tmp_path / "begun", backbone="patches", k=7, screen=QUIET)
    again = cluster_images(photos, tmp_path / "begun", backbone="patches", k=7, screen=QUIET)
    np.testing.assert_array_equal(again.assignment, run.assignment)
    values: dict[str, Any] = {"epochs": 1, "k": 7, "batch_size": 64, "data.view_size": 0}
    trained = dc.train("deepcluster-convnet", data=photos, out=tmp_path / "on", from_=run.folder, quiet=True, **values)
    assert trained.backbone.config["name"] == "patches" and np.isfinite(trained.metrics[-1]["loss"])


def _interrupt(*args: object, **options: object) -> None:
    raise Interrupted

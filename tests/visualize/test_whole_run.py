"""A run that the engine made, scored and drawn: the parts fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.config import override
from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run
from deepcluster.evaluate.clusters import clusters
from deepcluster.evaluate.knn import knn
from deepcluster.presets import find_preset
from deepcluster.visualize.contact_sheets import clusters_of, distances
from deepcluster.visualize.history import history_of
from deepcluster.visualize.report import write_report
from deepcluster.visualize.sizes import sizes_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    shapes = np.random.default_rng(0).integers(0, 200, (3, 12, 12, 3))
    noise = np.random.default_rng(1).integers(0, 55, (48, 12, 12, 3))
    for number, image in enumerate((shapes[np.arange(48) % 3] + noise).astype(np.uint8)):
        path = folder / "photos" / "abc"[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "photos" / "a" / "torn.png").write_bytes(b"")
    values = {"epochs": 2, "k": 4, "whiten": 8, "batch_size": 16, "image_size": 12}
    settings = override(find_preset("tiny-deepcluster").run, values)
    return train.train(settings, folder / "photos", folder / "run", screen=Screen(quiet=True))


def test_scores(trained: Run) -> None:
    near = knn(trained, k=(1, 5), baseline=True)
    assert near.settings["images_data"] == 48  # the torn file is left out
    assert near.scores["knn1_top1"] > 0.9 and "untrained_knn5_majority_top1" in near.scores
    own, new = clusters(trained, k="classes"), clusters(trained, trained.source())
    assert own.settings["images"] == 49 and own.settings["images_scored"] == 48
    members = [trained.source().labels[trained.assignment == cluster] for cluster in range(4)]
    assert own.scores["purity"] == pytest.approx(sum(np.bincount(labels).max() for labels in members) / 48)
    assert new.scores["nmi"] == pytest.approx(own.scores["nmi"])  # the last clustering is of the saved model
    assert json.loads(own.save(trained.folder).read_text())["scores"] == own.scores


def test_the_untrained_network_is_another_and_leaves_the_run_alone(trained: Run) -> None:
    before = trained.features(trained.source())
    other = trained.untrained()
    assert np.nanmax(np.abs(other.features(trained.source()) - before)) > 1e-3
    np.testing.assert_array_equal(trained.features(trained.source()), before)


def test_distances_are_those_of_assign(trained: Run) -> None:
    found = distances(trained, trained.source(), np.arange(4))
    assert found is not None
    np.testing.assert_allclose(found, trained.assign(trained.source()).distance, atol=1e-4)


def test_pictures_and_page(trained: Run) -> None:
    for path in (history_of(trained), sizes_of(trained), *clusters_of(trained, images=4)):
        assert path.parent == trained.folder / "pictures"
        with Image.open(path) as picture:
            picture.verify()
    text = write_report(trained).read_text()
    assert "48 images in 4 clusters, after 2 epochs" in text
    assert text.count("data:image/png;base64,") == 48 and "torn.png" in text
    assert not list(Path(trained.folder).glob("**/.*.part"))

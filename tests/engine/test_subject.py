"""What can be evaluated: runs, files of weights, backbones by name; and several processes that share the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.distributed import ProcessGroup
from deepcluster.engine.model import Model
from deepcluster.engine.run import load_subject
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.features.table import open_table, write_parts, write_table
from deepcluster.models.zoo import build_backbone
from processes import together


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def subject() -> Subject:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=16, widths=[4, 8], pools=[1]).eval()
    return Subject("convnet", Model(backbone, torch.zeros(0, backbone.dim)), "cpu", Path("nowhere"))


def described(group: ProcessGroup, count: int, tap: str | None) -> np.ndarray:
    shared = subject()
    shared.group = group
    return shared.features(images(count), tap=tap)


@pytest.mark.parametrize(("count", "tap"), [(2500, None), (100, "conv1")])
def test_processes_share_the_describing_of_images(count: int, tap: str | None) -> None:
    (alone,) = together(described, 1, count, tap)
    for table in together(described, 2, count, tap):
        np.testing.assert_array_equal(table, alone)


def parts(group: ProcessGroup, folder: Path) -> tuple[int, list[int]]:
    pixels = load_pixels(open_images(images(1500)), short_side=None, cache_gb=1)
    network = subject()

    def extract(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return network.model.features(pixels, rows)

    about = {"model": "m", "data": "d", "source_fingerprint": "f", "tap": None, "weights": "w", "image_size": 16}
    return write_parts(extract, len(pixels), folder, about, parts=3, group=group)


def test_processes_share_the_parts_of_a_table(tmp_path: Path) -> None:
    assert together(parts, 1, tmp_path / "one") == [(8, [])]
    assert together(parts, 2, tmp_path / "two") == [(8, [])] * 2
    one, two = (open_table(tmp_path / name)[0] for name in ("one", "two"))
    whole = tmp_path / "whole.npy"
    pixels = load_pixels(open_images(images(1500)), short_side=None, cache_gb=1)
    write_table(lambda rows: subject().model.features(pixels, rows), np.arange(len(pixels)), whole)
    np.testing.assert_array_equal(np.asarray(one[:]), np.load(whole))
    np.testing.assert_array_equal(np.asarray(two[:]), np.load(whole))
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(
        file.name for file in (tmp_path / "two").iterdir()
    )


def test_a_backbone_by_name_and_the_same_drawn_anew() -> None:
    one, same, other = (load_subject("timm:resnet10t", image_size=32, untrained=True, seed=seed) for seed in (0, 0, 1))
    pictures = images(4)
    np.testing.assert_array_equal(one.features(pictures), same.features(pictures))
    assert np.abs(one.features(pictures) - other.features(pictures)).max() > 1e-3
    assert one.results == Path("evaluations/timm-resnet10t/untrained") and not one.clustered
    with pytest.raises(DeepClusterError, match="give --data"):
        one.source()
    with pytest.raises(DeepClusterError, match="has no whitening"):
        _ = one.whitening


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/run", "There is no run folder or file nowhere/run"),
        ("timm:resnet18x", "did you mean 'timm:resnet18'"),
        ("alexnet", "No weights are published under the name alexnet"),
    ],
)
def test_what_cannot_be_opened_is_a_sentence(name: str, said: str) -> None:
    with pytest.raises(DeepClusterError, match=said):
        load_subject(name)


def test_a_file_knows_its_size(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    network = subject().model
    network.embedding = [Whitening(4).fit(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))]
    network.save(file)
    opened = load_subject(file)
    np.testing.assert_array_equal(opened.features(images(5)), subject().features(images(5)))
    assert np.abs(opened.untrained(3).features(images(5)) - opened.features(images(5))).max() > 1e-3
    with pytest.raises(DeepClusterError, match="knows the size of its images"):
        load_subject(file, image_size=32)

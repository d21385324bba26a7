"""The whole protocol with small networks: against descriptors made apart, with boxes, damage, kills and options."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.cli.main import main
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.open import open_images
from deepcluster.engine.log import Bar, Screen
from deepcluster.engine.run import load_subject
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.retrieval.descriptors import (
    PooledMaps,
    RunningCovariance,
    compute_descriptors,
    last_map,
    learn_whitening,
    load_descriptor,
    load_whitening,
)
from deepcluster.evaluate.retrieval.ground_truth import GroundTruth
from deepcluster.evaluate.retrieval.images import ImageSubset
from deepcluster.evaluate.retrieval.protocol import Features, retrieval
from deepcluster.evaluate.retrieval.ranking import score_rankings
from deepcluster.evaluate.retrieval.rmac import aggregate, pooled
from deepcluster.models.taps import read_taps
from deepcluster.models.zoo import build_backbone
from deepcluster.resume import ResumeFile

from .test_ground_truth import write_mat

SIZES = [(40, 60), (60, 40), (50, 50), (80, 30)]


def write_images(folder: Path, groups: int, each: int, seed: int = 0, ending: str = "png") -> Path:
    """Things of one coarse pattern each, seen with noise, in pictures of several shapes."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for group in range(groups):
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        for number in range(each):
            size = SIZES[(group + number) % len(SIZES)]
            picture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)).astype(float)
            picture += random.normal(0, 12, picture.shape)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"thing{group}_{number}.{ending}")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 5, 4)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return write_images(tmp_path / "others", 6, 3, seed=1)


def network(folder: Path, name: str = "convnet", size: int = 32) -> Subject:
    return load_subject(name, untrained=True, image_size=size, device="cpu", results=folder)


GROUP = r"(thing\d+)_"
SMALL: dict[str, Any] = {"features": "rmac", "whiten_on": "none", "long_side": 64}


def look(subject: Subject, picture: Image.Image) -> torch.Tensor:
    """The last map of one picture, the slow way."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(subject.backbone.mean)[:, None, None]) / torch.tensor(subject.backbone.std)[:, None, None]
    with torch.no_grad(), read_taps(subject.backbone, "conv5") as seen:
        subject.backbone(x)
    return seen["conv5"]


def resized(file: Path, long_side: int) -> Image.Image:
    image = Image.open(file).convert("RGB")
    scale = long_side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)


def test_rmac_of_a_folder_matches_one_picture_at_a_time(images: Path, others: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    recipe: dict[str, Any] = {"features": "rmac", "whiten_on": others, "long_side": 64, "dims": 24, "whiten_images": 10}
    result = retrieval(subject, images, group=GROUP, **recipe)
    seen = RunningCovariance()
    for file in sorted(others.iterdir())[:10]:
        seen.add(pooled(look(subject, resized(file, 64)), "rmac")[0])
    white = seen.whitening(24)
    files = sorted(images.iterdir())
    expected = torch.cat([aggregate(pooled(look(subject, resized(file, 64)), "rmac"), white) for file in files])
    table = np.load(tmp_path / "out" / "retrieval.npy")
    np.testing.assert_allclose(table, expected, atol=2e-4)
    similarity = expected.numpy() @ expected.numpy().T
    aps = []
    for query in range(20):
        order = [other for other in np.argsort(-similarity[query]) if other != query]
        right = [place for place, other in enumerate(order, 1) if other // 4 == query // 4]
        aps.append(np.mean([found / place for found, place in enumerate(right, 1)]))
    assert result.scores["map"] == pytest.approx(np.mean(aps), abs=1e-6)
    assert [one["ap"] for one in result.draws] == pytest.approx(aps, abs=1e-6)
    assert result.settings["queries"] == 20 and "first 10 images" in result.settings["whitening"]
    assert 0.3 < result.scores["map"] <= 1 and set(result.scores) == {"map", "mp1", "mp5", "mp10"}
    json.loads(result.json())


def test_pool_matches_the_features_command(images: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    result = retrieval(subject, images, group=GROUP)
    table = subject.features(str(images))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "retrieval.npy"), table, atol=1e-6)
    assert result.settings["features"].startswith("pool")
    tapped = retrieval(subject, images, group=GROUP, tap="conv2")
    assert tapped.settings["dim"] == 32 and tapped.scores != result.scores


@pytest.mark.parametrize("features", ["mac", "spoc", "gem"])
def test_other_pools_of_maps(features: Features, images: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    retrieval(subject, images, group=GROUP, features=features, long_side=48)
    table = np.load(tmp_path / "out" / "retrieval.npy")
    for row, file in zip(table, sorted(images.iterdir()), strict=True):
        np.testing.assert_allclose(row, pooled(look(subject, resized(file, 48)), features)[0, 0], atol=1e-5)


def with_boxes(tmp_path: Path) -> Path:
    names = [f"thing{group}_{number}" for group in range(5) for number in range(4)]
    own = [[4 * group + number + 1 for number in range(4)] for group in range(5)]
    boxes: list[list[float]] = [
        [3, 2, 25, 33],
        [0, 0, 24, 24],
        [5.4, 5.6, 30, 22],
        [0, 0, 30, 30],
        [10, 10, 1000, 1000],
    ]
    file = tmp_path / "gnd_toy.mat"
    queries = [0, 4, 8, 12, 16]
    return write_mat(file, names=names, queries=queries, ok=own, junk=[[5], [], [], [], []], bbx=boxes)


def test_queries_are_cropped_as_asked(images: Path, tmp_path: Path) -> None:
    subject, file = network(tmp_path / "out"), with_boxes(tmp_path)
    box = np.array([3, 2, 25, 33])  # of thing0_0, which is 40 wide and 60 high
    first = images / "thing0_0.png"
    large = resized(first, 64)
    scaled = [round(edge * 64 / 60) for edge in box]
    cut = Image.open(first).convert("RGB").crop(tuple(box))
    ways = {
        "resize-then-crop": large.crop(tuple(scaled)),
        "crop-then-resize": cut.resize((round(22 * 64 / 31), 64), Image.Resampling.BILINEAR),
    }
    scores = {}
    for way, picture in ways.items():
        recipe: dict[str, Any] = {"whiten_on": "none", "long_side": 64, "crop_queries": way}
        result = retrieval(subject, images, ground_truth=file, **recipe)
        queries = np.load(tmp_path / "out" / "retrieval-queries.npy")
        np.testing.assert_allclose(queries[0], aggregate(pooled(look(subject, picture), "rmac"), None)[0], atol=1e-5)
        assert result.settings["queries_cropped"].endswith(way)
        scores[way] = result.scores["map"]
    whole = retrieval(subject, images, ground_truth=file, whiten_on="none", long_side=64, crop_queries="no")
    assert whole.draws[0]["ap"] >= 0.25 and len({*scores.values(), whole.scores["map"]}) == 3
    usual = retrieval(subject, images, ground_truth=file, whiten_on="none", long_side=64)
    assert usual.scores["map"] == scores["resize-then-crop"]
    pool = retrieval(subject, images, ground_truth=file, features="pool")
    # a picture of another size beside it: lists of one size are resampled together, which rounds otherwise
    table = subject.features([np.array(cut), np.array(large)])
    queries = np.load(tmp_path / "out" / "retrieval-queries.npy")
    np.testing.assert_allclose(queries[0], table[0] / np.linalg.norm(table[0]), atol=1e-5)
    assert pool.settings["queries_cropped"] == "boxes: crop-then-resize"


def test_missing_and_damaged_images_are_reported_and_left_out(images: Path, tmp_path: Path) -> None:
    file, subject = with_boxes(tmp_path), network(tmp_path / "out")
    (images / "thing0_1.png").unlink()
    (images / "thing1_2.png").write_bytes(b"no picture")
    result = retrieval(subject, images, ground_truth=file, **SMALL)
    assert (result.settings["images"], result.settings["images_missing"], result.settings["images_damaged"]) == (
        18,
        1,
        1,
    )
    assert "1 image of the ground truth is missing and 1 cannot be used (thing1_2)" in result.settings["left_out"]
    assert [one["right"] for one in result.draws] == [3, 3, 4, 4, 4]
    (images / "thing2_0.png").write_bytes(b"no picture")
    with pytest.raises(DeepClusterError, match="1 query of toy cannot be used, the first being thing2_0"):
        retrieval(subject, images, ground_truth=file, **SMALL)
    (images / "thing2_0.png").unlink()
    with pytest.raises(DeepClusterError, match="1 of 5 queries of toy is not in"):
        retrieval(subject, images, ground_truth=file, **SMALL)
    grouped = retrieval(subject, images, group=GROUP, **SMALL)
    assert grouped.settings["queries"] == 17 and grouped.settings["images_damaged"] == 1


class Killed(Exception):
    """What a signal would do."""


class KillingBar(Bar):
    """Ends the process after so many images."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, images: int = 1) -> None:
        self.left -= images
        if self.left < 0:
            raise Killed


class KillingScreen(Screen):
    """All its progress bars together end the process after so many images."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.only_bar = KillingBar(after)

    @contextlib.contextmanager
    def bar(self, what: str, total: int, unit: str = "images") -> Iterator[Bar]:
        yield self.only_bar


class Counted(PooledMaps):
    """Counts the pictures that go through the network."""

    pictures = 0

    def pooled_maps(self, pictures: np.ndarray) -> torch.Tensor | None:
        self.pictures += len(pictures)
        return super().pooled_maps(pictures)


def test_killed_descriptors_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    source = open_images(write_images(tmp_path / "a", 9, 4))
    images = ImageSubset(source, np.arange(len(source)))
    extractor = Counted(network(tmp_path / "out"), "rmac", long_side=48, block=8)

    def whitening(resume: ResumeFile, advance: Callable[[int], None] = lambda images: None) -> dict[str, torch.Tensor]:
        work = partial(learn_whitening, extractor, images, 16, resume=resume, advance=advance)
        return resume.run("whitening", work)

    def table(resume: ResumeFile, advance: Callable[[int], None] = lambda images: None) -> torch.Tensor:
        white = Whitening().load_state_dict(whitening(resume))
        work = partial(compute_descriptors, extractor, images, white, resume=resume, advance=advance)
        return resume.run("database", work)

    expected = table(ResumeFile(tmp_path / "whole.state", "same"))
    extractor.pictures = 0
    file = tmp_path / "killed.state"
    with pytest.raises(Killed):
        whitening(ResumeFile(file, "same", save_seconds=0), KillingBar(19))
    with pytest.raises(Killed):
        table(ResumeFile(file, "same", save_seconds=0), KillingBar(19))
    resumed = ResumeFile(file, "same", save_seconds=0)
    assert torch.equal(table(resumed), expected)
    assert extractor.pictures <= 2 * (36 + 8)  # finished blocks were not computed again
    resumed.remove()
    assert not file.exists()


def test_killed_evaluation_is_resumed_and_its_descriptors_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, others = write_images(tmp_path / "a", 9, 4), write_images(tmp_path / "b", 10, 3, seed=1)
    recipe: dict[str, Any] = {"features": "rmac", "whiten_on": others, "long_side": 48, "dims": 16}
    whole = retrieval(network(tmp_path / "whole"), images, group=GROUP, **recipe)
    looked: list[int] = []
    pooled_maps = PooledMaps.pooled_maps

    def counted(self: PooledMaps, pictures: np.ndarray) -> torch.Tensor | None:
        looked.append(len(pictures))
        return pooled_maps(self, pictures)

    monkeypatch.setattr(PooledMaps, "pooled_maps", counted)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):  # after the whitening, within the database
        retrieval(network(folder), images, group=GROUP, screen=KillingScreen(30 + 20), **recipe)
    before = sum(looked)
    assert retrieval(network(folder), images, group=GROUP, **recipe) == whole
    assert sum(looked) - before == 36  # the whitening was not learned again
    assert (folder / "retrieval.npy").read_bytes() == (tmp_path / "whole" / "retrieval.npy").read_bytes()
    for name in ("components_", "mean_"):
        found, known = (load_whitening(where / "retrieval.safetensors")[0] for where in (folder, tmp_path / "whole"))
        assert np.array_equal(getattr(found, name), getattr(known, name))
    assert {path.name for path in folder.iterdir()} == {
        "retrieval.npy",
        "retrieval.npy.digest",
        "retrieval.safetensors",
    }
    looked.clear()
    retrieval(network(folder), images, group=GROUP, query_expansion=1, **recipe)
    assert not looked  # the same descriptors again
    (folder / "retrieval.npy").write_bytes(b"damaged")
    assert retrieval(network(folder), images, group=GROUP, **recipe) == whole
    assert sum(looked) == 36
    looked.clear()
    retrieval(network(folder), images, group=GROUP, features="rmac", whiten_on="none", long_side=48)
    assert sum(looked) == 36  # other ones are computed


def test_whitening_is_never_learned_on_what_is_searched_unless_asked(images: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    with pytest.raises(DeepClusterError, match="the very images that are searched"):
        retrieval(subject, images, group=GROUP, features="rmac", whiten_on=str(images))
    result = retrieval(subject, images, group=GROUP, whiten_on="same", long_side=48)
    assert "the images that are searched" in result.settings["whitening"]
    assert result.settings["features"].startswith("rmac of conv5")


def test_saved_whitening_describes_other_pictures(images: Path, others: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    picture = np.array(Image.open(images / "thing1_0.png"))
    recipes: list[dict[str, Any]] = [
        {"whiten_on": others, "long_side": 48, "levels": 2},
        {"features": "pool", "whiten_on": others, "dims": 8},
    ]
    for recipe in recipes:
        retrieval(subject, images, group=GROUP, **recipe)
        describe = load_descriptor(subject, tmp_path / "out" / "retrieval.safetensors")
        np.testing.assert_allclose(describe([picture])[0], np.load(tmp_path / "out" / "retrieval.npy")[4], atol=1e-5)
    with pytest.raises(DeepClusterError, match="another network"):
        load_descriptor(
            load_subject("convnet", untrained=True, image_size=32, seed=3), tmp_path / "out" / "retrieval.safetensors"
        )
    with pytest.raises(DeepClusterError, match="as a retrieval"):
        load_whitening(tmp_path / "out" / "retrieval.npy")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"features": "rmac"}, "give --whiten-on another set"),
        ({"features": "pool", "long_side": 64}, "--long-side is an option of features of maps"),
        ({"features": "mac", "levels": 2}, "--levels is an option of rmac"),
        ({"features": "mac", "power": 2.0}, "--power is an option of gem"),
        ({"features": "mac", "dims": 2}, "--dims is an option of whitened"),
        ({"features": "mac", "whiten_on": "none", "whiten_images": 2}, "--whiten-images is an option of whitened"),
        ({"features": "mac", "crop_queries": "no"}, "--crop-queries is an option of ground truth with boxes"),
        ({"features": "mac", "long_side": 0}, "--long-side 0 is too few"),
        ({"features": "vlad"}, "--features 'vlad' does not exist"),
        ({"features": "mac", "tap": "pool"}, "has in pool no layer that gives maps"),
        ({"features": "mac", "tap": "conv9"}, "no tap 'conv9'"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], says: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match=says):
        retrieval(network(tmp_path / "out"), images, group=GROUP, **options)


def test_every_option_has_an_effect(images: Path, others: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    base: dict[str, Any] = {
        "features": "rmac",
        "whiten_on": str(others),
        "long_side": 48,
        "dims": 16,
        "whiten_images": 9,
        "levels": 3,
    }
    changes: list[dict[str, Any]] = [
        {},
        {"long_side": 64},
        {"dims": 8},
        {"whiten_images": 18},
        {"levels": 2},
        {"tap": "conv4"},
    ]
    tables = []
    for change in changes:
        retrieval(subject, images, group=GROUP, **(base | change))
        tables.append(np.load(tmp_path / "out" / "retrieval.npy").tobytes())
    assert len(set(tables)) == len(changes)
    power = [
        retrieval(subject, images, group=GROUP, features="gem", long_side=48, power=power).draws for power in (1.0, 5.0)
    ]
    assert power[0] != power[1]


def test_baseline_is_the_untrained_network(images: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    result = retrieval(subject, images, group=GROUP, baseline=True, seed=4)
    other = load_subject("convnet", untrained=True, image_size=32, seed=4, device="cpu", results=tmp_path / "b")
    assert result.scores["untrained_map"] == retrieval(other, images, group=GROUP).scores["map"]
    assert result.scores["map"] == retrieval(subject, images, group=GROUP).scores["map"]
    with pytest.raises(DeepClusterError, match="give one of them"):
        retrieval(subject, images, group=GROUP, ground_truth="holidays")
    with pytest.raises(DeepClusterError, match="--query-expansion -1 is too few"):
        retrieval(subject, images, group=GROUP, query_expansion=-1)


def test_revisited_scores_from_end_to_end(images: Path, tmp_path: Path) -> None:
    subject = network(tmp_path / "out")
    names = sorted(path.stem for path in images.iterdir())
    rows = np.arange(20)
    easy, hard, junk = (tuple(np.array([4 * g + n]) for g in range(5)) for n in (1, 2, 3))
    database = tuple(name for name in names if not name.endswith("_0"))
    place = {name: row for row, name in enumerate(database)}
    sets = {
        grade: tuple(np.array([place[names[int(row)]] for row in found]) for found in members)
        for grade, members in (("easy", easy), ("hard", hard), ("junk", junk))
    }
    truth = GroundTruth("toy", "revisited", database, tuple(names[row] for row in rows[::4]), None, sets)
    result = retrieval(subject, images, ground_truth=truth, **SMALL)
    table = np.load(tmp_path / "out" / "retrieval.npy")
    queries = np.load(tmp_path / "out" / "retrieval-queries.npy")
    assert table.shape[0] == 15 and queries.shape[0] == 5
    assert result.scores == score_rankings(truth, table, queries)[0]
    kinds = ("map", "mp1", "mp5", "mp10")
    assert set(result.scores) == {f"{kind}_{level}" for kind in kinds for level in ("easy", "medium", "hard")}


@pytest.mark.parametrize(
    ("name", "size", "tap"),
    [("convnet", 32, "conv5"), ("resnet18", 32, "layer4"), ("vgg16", 32, "conv13"), ("alexnet", 64, "conv5")],
)
def test_last_map_of_each_backbone(name: str, size: int, tap: str) -> None:
    assert last_map(build_backbone(name, image_size=size)) == tap


@pytest.mark.slow
def test_networks_of_timm(images: Path, tmp_path: Path) -> None:
    found = retrieval(network(tmp_path / "out", "timm:test_resnet", 32), images, group=GROUP, **SMALL)
    assert 0 < found.scores["map"] <= 1
    with pytest.raises(DeepClusterError, match="use --features pool"):
        retrieval(network(tmp_path / "vit", "timm:test_vit", 32), images, group=GROUP, **SMALL)
    assert retrieval(network(tmp_path / "vit", "timm:test_vit", 32), images, group=GROUP).scores["map"] > 0


def test_pictures_too_thin_for_the_network_are_left_out(images: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 90, 3), np.uint8)).save(images / "thing0_9.png")
    result = retrieval(network(tmp_path / "out"), images, group=GROUP, **SMALL)
    assert result.settings["images_damaged"] == 1 and "thing0_9" in result.settings["left_out"]


def test_command_line(images: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "convnet", "retrieval", "--untrained", "--image-size", "32", "--device", "cpu", "--json"]
    words += ["--data", str(images), "--group", GROUP, "--out", str(tmp_path / "out")]
    options = ["--features", "rmac", "--whiten-on", str(others), "--long-side", "48", "--dims", "16"]
    assert main([*words, *options, "--query-expansion", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert found["protocol"] == "retrieval" and 0 < found["scores"]["map"] <= 1 and len(found["draws"]) == 20
    assert found["settings"]["query_expansion"].startswith("the first 2")
    assert main([*words, "--whiten-on", str(tmp_path / "gone")]) == 2
    assert main([*[word for word in words if word != "--untrained"], "--seed", "3"]) == 2


@pytest.mark.slow
def test_coil_objects(shared_data: Path, tmp_path: Path) -> None:
    """592 real pictures of 99 objects: far above chance even for random filters, and each a query."""
    coil = str(shared_data / "retrieval" / "coil100-60deg.tar")
    pool = retrieval(network(tmp_path / "pool"), coil, group=r"obj(\d+)__")
    rmac = retrieval(network(tmp_path / "rmac"), coil, group=r"obj(\d+)__", whiten_on="same", long_side=128)
    for result in (pool, rmac):
        assert result.settings["queries"] == 592 and result.scores["map"] > 0.5
    assert rmac.scores["map"] > pool.scores["map"]

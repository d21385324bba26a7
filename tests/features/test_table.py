"""Feature tables in parts: the same bits as in one file, read as one table, and not made twice after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster.cli.main import main
from deepcluster.clustering import KMeans, Whitening
from deepcluster.clustering.tables import cluster_table
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.errors import DeepClusterError
from deepcluster.features.block_reader import Rows
from deepcluster.features.table import Extractor, open_parts, open_table, write_blocks, write_parts, write_table
from deepcluster.features.table_in_parts import TableInParts
from deepcluster.models.export import export_backbone
from deepcluster.models.zoo import build_backbone

N = 700


def split(folder: Path, x: np.ndarray, ends: list[int]) -> TableInParts:
    """`x` as a finished table in parts."""
    folder.mkdir()
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        np.save(folder / f"part-{start:012d}-{stop:012d}.npy", x[start:stop])
    about = {"format": "deepcluster table", "version": 1, "rows": len(x), "finished": True}
    (folder / "table.json").write_text(json.dumps(about))
    table, _ = open_table(folder)
    assert isinstance(table, TableInParts)
    return table


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(5, 12))[np.arange(N) % 5] + 0.3 * rng.normal(size=(N, 12))).astype(np.float32)


def test_a_table_in_parts_is_indexed_like_an_array(x: np.ndarray, tmp_path: Path) -> None:
    table = split(tmp_path / "t", x, [1, 300, 301, N])
    assert table.shape == x.shape and table.dtype == x.dtype and len(table) == N and table.ndim == 2
    for rows in (
        slice(None), slice(0, 1), slice(5, 5), slice(299, 302), slice(-3, None), slice(600, 9999), slice(None, None, 7),
        slice(500, 2, -3), [0, 1, 300, 300, 2], np.array([[4, 699], [-1, 301]]), np.array([], int), 17, -1,
        np.arange(N) % 3 == 0,
    ):  # fmt: skip
        np.testing.assert_array_equal(table[rows], x[rows], strict=True)
    np.testing.assert_array_equal(np.asarray(table), x)
    for wrong in ([N], [-N - 1], [0.5], np.ones(3, bool)):
        with pytest.raises(IndexError):
            table[wrong]


def test_clusterers_give_the_same_for_parts_and_for_an_array(x: np.ndarray, tmp_path: Path) -> None:
    table = split(tmp_path / "t", x, [1, 300, 301, N])
    rows = Rows(table)
    assert rows._read is not None
    for step in (7, 64, N):
        np.testing.assert_array_equal(np.concatenate([block.numpy().copy() for _, block in rows.blocks(step)]), x)
    index = torch.tensor([699, 0, 300, 301, 0])
    np.testing.assert_array_equal(rows.take(index), x[index])
    one, parted = (KMeans(5, random_state=0).fit(each) for each in (x, table))
    np.testing.assert_array_equal(one.labels_, parted.labels_)
    np.testing.assert_array_equal(Whitening(4).fit_transform(x), Whitening(4).fit_transform(table))
    for whiten, bad in ((0, None), (4, None), (4, [3, 300])):
        first, second = (
            cluster_table(
                each,
                lambda rows: KMeans(5, random_state=0),
                embedding=Whitening(whiten) if whiten else None,
                scratch=tmp_path,
                bad=bad,
            )
            for each in (x, table)
        )
        np.testing.assert_array_equal(first.assignment, second.assignment)
        np.testing.assert_array_equal(first.distance, second.distance)


def test_parts_of_another_dtype(x: np.ndarray, tmp_path: Path) -> None:
    table = split(tmp_path / "t", x.astype(np.float16), [100, N])
    np.testing.assert_array_equal(Rows(table).block(90, 110), x[90:110].astype(np.float16).astype(np.float32))


def test_vectors_made_elsewhere_become_a_table(x: np.ndarray, tmp_path: Path) -> None:
    x[[4, 650]] = np.nan
    table = write_blocks(
        (block for block in (x[:300].tolist(), x[:0], x[300:301], x[301:].astype(np.float64))), tmp_path / "t"
    )
    np.testing.assert_array_equal(table[:], x)
    again, about = open_table(tmp_path / "t")
    assert [len(part) for part in table._parts] == [300, 1, 399] and again.shape == x.shape
    assert about["bad"] == [4, 650] and about["finished"] is True
    assert main(["cluster", str(tmp_path / "t"), "--k", "5", "--out", str(tmp_path / "c.csv")]) == 0
    for blocks, folder, sentence in (
        ([x[:3], x[3:6, :5]], "u", "The rows from 3 on are of shape .3, 5., which is no part of a table .12 columns."),
        ([x[0]], "u", "The rows from 0 on are of shape .12,., which is no part of a table .n, D."),
        ([x[:0]], "u", "There are no vectors for"),
        ([x], "t", "exists and is not empty: choose a new folder"),
    ):
        with pytest.raises(DeepClusterError, match=sentence):
            write_blocks(blocks, tmp_path / folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.csv", "t"]


def _cut(folder: Path) -> None:
    os.truncate(sorted(folder.glob("*.npy"))[1], 200)


def _lose(folder: Path) -> None:
    sorted(folder.glob("*.npy"))[1].unlink()


def _shape(folder: Path) -> None:
    np.save(sorted(folder.glob("*.npy"))[1], np.zeros((400, 3), np.float32))


def _about(folder: Path) -> None:
    (folder / "table.json").write_text("{")


def _unfinished(folder: Path) -> None:
    about = json.loads((folder / "table.json").read_text())
    (folder / "table.json").write_text(json.dumps(about | {"finished": False}))


def _nothing(folder: Path) -> None:
    (folder / "table.json").unlink()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_cut, "cannot be read"),
        (_lose, "300 of its 700 rows|has 300"),
        (_shape, "parts of several kinds"),
        (_about, "table.json cannot be read"),
        (_unfinished, "is not finished: the `deepcluster features` command that began it goes on"),
        (_nothing, "holds no feature table"),
    ],
)
def test_damaged_tables_are_errors_of_one_sentence(
    harm: Callable[[Path], None], sentence: str, x: np.ndarray, tmp_path: Path
) -> None:
    split(tmp_path / "t", x, [300, N])
    harm(tmp_path / "t")
    with pytest.raises(DeepClusterError, match=sentence) as caught:
        open_table(tmp_path / "t")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- from images to parts


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 700 small pictures, of which three, and the whole of rows 256 to 511, cannot be decoded."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(N):
        file = folder / f"{k:04d}.png"
        if k in (3, 255, 699) or 256 <= k < 512:
            file.write_text("words")
        else:
            Image.fromarray(rng.integers(0, 256, (14, 12, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=12).eval()
    return export_backbone(backbone, "safetensors", tmp_path_factory.mktemp("network") / "b.safetensors", {})


def words(network: Path, images: Path, *more: object) -> list[str]:
    return [str(word) for word in ("features", network, "--data", images, "--device", "cpu", *more)]


@pytest.mark.parametrize("tap", [None, "conv1"])
@pytest.mark.parametrize("streamed", [False, True])
def test_parts_equal_the_one_file_bit_for_bit(
    tap: str | None,
    streamed: bool,
    network: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deepcluster.engine.model import backbone_from, bare_model

    pixels = load_pixels(open_images(images), short_side=None, cache_gb=0 if streamed else 1, workers=1)
    describe = partial(bare_model(backbone_from(network)).features, pixels, tap=tap)
    bad = [3, 255, *range(256, 512), 699]
    assert write_table(describe, np.arange(N), tmp_path / "f.npy")[1] == bad
    width, found = write_parts(describe, N, tmp_path / "parts", {}, parts=3)
    table, about = open_parts(tmp_path / "parts")
    assert found == about["bad"] == bad and about["width"] == width == table.shape[1]
    assert [file.name for file in table.files] == [
        "part-000000000000-000000000256.npy", "part-000000000256-000000000512.npy", "part-000000000512-000000000700.npy"
    ]  # fmt: skip
    whole = np.load(tmp_path / "f.npy")
    np.testing.assert_array_equal(table[:], whole)
    assert np.isnan(whole[bad]).all() and np.isfinite(np.delete(whole, bad, 0)).all()


class Stop(Exception):
    pass


def stopping(describe: Extractor, after: int) -> Extractor:
    """Describes so many times, then stops in the midst of a part."""
    calls = []

    def work(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(images)
        if len(calls) > after:
            raise Stop
        return describe(images)

    return work


def random_features(seed: int) -> Extractor:
    rng = np.random.default_rng(seed)
    return lambda images: (images, rng.normal(size=(len(images), 3)).astype(np.float32))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_finished_parts_are_not_written_again(tmp_path: Path) -> None:
    folder, about = tmp_path / "t", {"weights": "a", "tap": None, "image_size": 2, "source_fingerprint": "s"}
    with pytest.raises(Stop):
        write_parts(stopping(random_features(0), 2), 1000, folder, about, parts=4)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 3 + [".npy"] * 2
    with pytest.raises(DeepClusterError, match="is not finished"):
        open_table(folder)
    first = {file.name: np.load(file) for file in folder.glob("*.npy")}
    (folder / ".part-000000000512-000000000768.npy.abc.part").write_bytes(b"left by a kill")
    skipped: list[int] = []
    write_parts(random_features(1), 1000, folder, {**about, "model": "moved"}, parts=4, skipped=skipped.append)
    table, _ = open_parts(folder)
    assert skipped == [256, 256] and len(table) == 1000 and not list(folder.glob(".*"))
    for name, rows in first.items():
        np.testing.assert_array_equal(np.load(folder / name), rows)
    before = table[:]
    harms: list[Callable[[Path], None]] = [lambda file: os.truncate(file, 300), _flip]
    for seed, harm in enumerate(harms, 2):  # a damaged part is made again, and it alone
        harm(table.files[2])
        write_parts(random_features(seed), 1000, folder, about, parts=4)
        after = open_parts(folder)[0][:]
        changed = (before != after).any(1)
        assert changed[512:768].all() and not changed[:512].any() and not changed[768:].any()
        before = after
    for name, value in {"weights": "b", "tap": "conv1", "image_size": 3, "source_fingerprint": "t"}.items():
        with pytest.raises(DeepClusterError, match=f"was begun with {name.replace('_', ' ')} .*--overwrite"):
            write_parts(random_features(3), 1000, folder, {**about, name: value}, parts=4)
    with pytest.raises(DeepClusterError, match="part rows 256, and now it is 512"):
        write_parts(random_features(3), 1000, folder, about, parts=2)
    np.testing.assert_array_equal(open_parts(folder)[0][:], after)
    write_parts(random_features(3), 1000, folder, {**about, "weights": "b"}, parts=2, overwrite=True)
    table, said = open_parts(folder)
    assert [len(np.load(file)) for file in table.files] == [512, 488] and said["weights"] == "b"


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    for name in ("part-000000000000-000000000010.npy", "notes.txt"):
        (tmp_path / name).write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(DeepClusterError, match="holds other files, such as"):
                write_parts(random_features(0), 10, tmp_path, {}, overwrite=overwrite)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "f").touch()
    with pytest.raises(DeepClusterError, match="is a file"):
        write_parts(random_features(0), 10, tmp_path / "f", {})


def test_the_features_command(network: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(network, images, "--out", tmp_path / "f.npy")) == 0
    assert main(words(network, images, "--out", tmp_path / "t", "--parts", 2, "--json")) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    table, about = open_table(tmp_path / "t")
    assert told["rows"] == len(table) == N and told["width"] == table.shape[1] and told["bad"] == about["bad"]
    np.testing.assert_array_equal(table[:], np.load(tmp_path / "f.npy"))
    for features in ("f.npy", "t"):
        line = ["cluster", tmp_path / features, "--k", 4, "--whiten", 4, "--out", tmp_path / f"{features}.csv"]
        assert main([str(word) for word in line]) == 0
    assert (tmp_path / "f.npy.csv").read_text() == (tmp_path / "t.csv").read_text()
    assert "0000.png" in (tmp_path / "t.csv").read_text()
    capsys.readouterr()
    for more, sentence in {
        ("--out", tmp_path / "t", "--parts", 2, "--tap", "conv1"): "begun with tap None, and now it is conv1",
        ("--out", tmp_path / "g.npy", "--parts", 2): "--parts is for a table in a folder",
        ("--out", tmp_path / "g.npy", "--overwrite"): "--overwrite is for a table in a folder",
        ("--out", tmp_path / "g.csv"): "not as 'g.csv'",
        ("--out", tmp_path / "u", "--parts", 0): "--parts is 0: give 1",
    }.items():
        assert main(words(network, images, *more)) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    assert main(words(network, images, "--out", tmp_path / "t", "--parts", 2, "--tap", "conv1", "--overwrite")) == 0
    assert open_table(tmp_path / "t")[1]["tap"] == "conv1"


@pytest.mark.slow
def test_a_killed_command_resumes(network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (40_000, 12, 12, 3), dtype=np.uint8))
    line = words(network, tmp_path / "x.npy", "--out", tmp_path / "t", "--parts", 150)
    process = subprocess.Popen([sys.executable, "-m", "deepcluster.cli.main", *line])
    while len(list((tmp_path / "t").glob("part*.npy"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "t").glob("part*.npy")}
    assert 3 <= len(done) < 150
    assert main(line) == 0
    table, _ = open_table(tmp_path / "t")
    assert {name: (tmp_path / "t" / name).stat().st_mtime_ns for name in done} == done
    assert main(words(network, tmp_path / "x.npy", "--out", tmp_path / "f.npy")) == 0
    np.testing.assert_array_equal(table[:], np.load(tmp_path / "f.npy"))

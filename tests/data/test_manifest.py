"""Manifests: the same images as the shards themselves, opened without opening one, made in parts and kept honest."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_shards import make_tar, make_zip, png, shards_of

from deepcluster.cli.main import main
from deepcluster.data.cache import StreamedPixels, load_pixels
from deepcluster.data.indexing import index_shards, named
from deepcluster.data.loader import Loader
from deepcluster.data.manifest import CHECKED, VERSION, read_manifest, table_digest
from deepcluster.data.open import open_images
from deepcluster.data.shards import Shards
from deepcluster.data.source import ImageSource
from deepcluster.data.storage import cache_folder
from deepcluster.data.transforms import CenterCrop
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.io import write_array


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Three shards in two folders, with 6 images in them."""
    (tmp_path / "more").mkdir()
    make_tar(tmp_path / "a-2.tar", {"cat/1.png": png(1), "dog/2.png": png(2), "notes.txt": b"words"})
    make_zip(tmp_path / "a-10.zip", {"cat/3.png": png(3), "ant/4.png": png(4)})
    make_tar(tmp_path / "more" / "b.tar", {"./dog/5.png": png(5), "cat/6.png": png(6)})
    return [str(tmp_path / name) for name in ("a-2.tar", "a-10.zip", "more/b.tar")]


def index(found: list[str], out: Path, **options: object) -> Shards:
    index_shards(found, out, **{"workers": 1, **options})  # type: ignore[arg-type]
    return shards_of(open_images(out))


def test_manifest_equals_its_shards(shards: list[str], tmp_path: Path) -> None:
    source = index(shards, tmp_path / "m.json")
    plain = open_images(str(tmp_path / "{a-2.tar,a-10.zip,more/b.tar}"))
    assert len(source) == len(plain) == 6
    for k in range(6):
        assert source.raw(k) == shards_of(plain).raw(k) == png(k + 1)
        np.testing.assert_array_equal(source.read(k, 5), plain.read(k, 5))
        assert source.path(k).rpartition("/")[2] == plain.path(k).rpartition("/")[2] == f"{k + 1}.png"
    assert source.path(3) == "a-10.zip/ant/4.png" and source.path(4) == "more/b.tar/dog/5.png"
    np.testing.assert_array_equal(source.labels, plain.labels)
    assert source.classes == plain.classes == ("ant", "cat", "dog")
    assert source.table.itemsize == 8 and isinstance(source.table, np.memmap)
    again = pickle.loads(pickle.dumps(source))  # the table is opened anew and not sent
    assert isinstance(again.table, np.memmap) and again.raw(2) == png(3) and len(pickle.dumps(source)) < 1000


def test_manifest_opens_without_its_shards_and_can_be_moved(shards: list[str], tmp_path: Path) -> None:
    first = index(shards, tmp_path / "m.json")
    shutil.copytree(tmp_path, tmp_path.with_name("elsewhere"))
    for shard in shards:
        os.unlink(shard)
    without = open_images(tmp_path / "m.json")
    moved = shards_of(open_images(tmp_path.with_name("elsewhere") / "m.json"))
    assert len(without) == 6 and moved.raw(4) == png(5)
    assert without.fingerprint() == moved.fingerprint() == first.fingerprint()
    with pytest.warns(UserWarning, match=r"a-10.zip is missing; its 2 images"):
        assert without.path(3) == "a-10.zip/#1"


def test_fingerprint_follows_order_contents_and_labels(shards: list[str], tmp_path: Path) -> None:
    first = index(shards, tmp_path / "m.json").fingerprint()
    assert index(shards, tmp_path / "n.json").fingerprint() == first
    turned = index(shards[::-1], tmp_path / "n.json")
    assert turned.fingerprint() != first and turned.raw(0) == png(5)
    assert index(shards, tmp_path / "k.json", labels=False).labels is None
    make_tar(Path(shards[0]), {"cat/1.png": png(1), "dog/2.png": png(9)})
    assert index(shards, tmp_path / "m.json").fingerprint() != first


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_read_from_the_shards(form: int, tmp_path: Path) -> None:
    names = ["a/1.png", "./b/2.png", f"{'d' * 90}/{'e' * 90}.png"]
    if form != tarfile.USTAR_FORMAT:
        names += ["deep/" * 100 + "x.png", "ü" * 120 + ".png", "y" * 3000 + "/z.png", "last.png"]
    make_tar(tmp_path / "a.tar", {name: png(k) for k, name in enumerate(names)}, form)
    make_zip(tmp_path / "b.zip", {name: png(k) for k, name in enumerate([*names, "cp437-é.png"])})
    source = index([str(tmp_path / "a.tar"), str(tmp_path / "b.zip")], tmp_path / "m.json")
    plain = open_images(str(tmp_path / "{a.tar,b.zip}"))
    assert [source.path(k) for k in range(len(source))] == [plain.path(k) for k in range(len(plain))]


def test_shards_can_be_reordered_and_removed_by_hand(shards: list[str], tmp_path: Path) -> None:
    index(shards, tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    content["shards"] = [content["shards"][2], content["shards"][0]]
    (tmp_path / "m.json").write_text(json.dumps(content))
    source = shards_of(open_images(tmp_path / "m.json"))
    assert [source.raw(k) for k in range(4)] == [png(5), png(6), png(1), png(2)]
    assert np.array(source.classes)[source.labels].tolist() == ["dog", "cat", "cat", "dog"]


def doctored(shard: str) -> None:
    """Other bytes under the same size and time: whoever reads the shard again cannot miss it."""
    state = os.stat(shard)
    Path(shard).write_bytes(b"x" * state.st_size)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_unchanged_shards_are_not_read_again(shards: list[str], tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    index(shards[:2], out)
    for shard in shards[:2]:
        doctored(shard)
    source = index(["", *shards][1:], out)
    assert len(source) == 6 and source.raw(4) == png(5) and source.classes == ("ant", "cat", "dog")
    assert np.array(source.classes)[source.labels].tolist() == ["cat", "dog", "cat", "ant", "dog", "cat"]
    make_tar(Path(shards[0]), {"bee/7.png": png(7)})
    source = index(shards, out)
    assert len(source) == 5 and source.raw(0) == png(7) and source.classes == ("ant", "bee", "cat", "dog")
    assert sorted(path.name for path in tmp_path.glob("m.*")) == sorted(
        ["m.json", read_manifest(out).index, str(read_manifest(out).labels)]
    )


class Stop(Exception):
    pass


def test_interrupted_index_continues(shards: list[str], tmp_path: Path) -> None:
    done = []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise Stop

    with pytest.raises(Stop):
        index(shards, tmp_path / "m.json", progress=stop)
    assert not (tmp_path / "m.json").exists()
    for shard in shards[:2]:
        doctored(shard)
    source = index(shards, tmp_path / "m.json")
    assert len(source) == 6 and source.raw(5) == png(6)
    assert np.array(source.classes)[source.labels].tolist() == ["cat", "dog", "cat", "ant", "dog", "cat"]


def test_several_processes_index_as_one_does(shards: list[str], tmp_path: Path) -> None:
    for k in range(12):
        shards.append(str(make_tar(tmp_path / f"c{k}.tar", {f"c{k % 3}/{j}.png": png(j) for j in range(k)})))
    one, three = index(shards, tmp_path / "m.json"), index(shards, tmp_path / "n.json", workers=3)
    assert one.fingerprint() == three.fingerprint() and len(one) == 6 + 66
    np.testing.assert_array_equal(one.labels, three.labels)
    script = tmp_path / "main.py"  # processes begin as on Linux from Python 3.14 on
    script.write_text("""if __name__ == "__main__":
    import multiprocessing, sys
    from deepcluster.cli.main import main
    multiprocessing.set_start_method("forkserver")
    sys.exit(main(sys.argv[1:]))
""")
    words = ["index", *shards, "--out", str(tmp_path / "o.json"), "--workers", "2"]
    cold = os.environ | {"DEEPCLUSTER_CACHE": str(tmp_path / "cold")}
    subprocess.run([sys.executable, script, *words], check=True, env=cold)
    assert open_images(tmp_path / "o.json").fingerprint() == one.fingerprint()


def test_missing_and_broken_shards(shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(shards[2], 1200)
    (tmp_path / "d.zip").write_bytes(b"words")
    (tmp_path / "all.txt").write_text("# shards\na-2.tar\nmissing.tar\na-10.zip\nmore/*.tar\nd.zip\n")
    out = tmp_path / "m.json"
    assert main(["index", str(tmp_path / "all.txt"), "--out", str(out), "--workers", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shards"], told["images"]) == (5, 5)
    assert [(one["shard"], one["images"]) for one in told["broken"]] == [
        ("missing.tar", 0),
        ("more/b.tar", 1),
        ("d.zip", 0),
    ]
    source = shards_of(open_images(out))
    assert [source.raw(k) for k in range(5)] == [png(k) for k in (1, 2, 3, 4, 5)]
    make_tar(tmp_path / "missing.tar", {"cat/0.png": png(0)})
    assert main(["index", str(tmp_path / "all.txt"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "6 images in 5 shards, 2 of them missing or broken, 3 class folders" in said.out + said.err
    assert shards_of(open_images(out)).raw(2) == png(0)


def test_changed_shard_is_reported_once_and_its_images_are_bad(shards: list[str], tmp_path: Path) -> None:
    source = index(shards, tmp_path / "m.json")
    with open(shards[0], "ab") as file:
        file.write(b"more")
    with pytest.warns(
        UserWarning, match=r"a-2.tar has .* bytes and not .*: cut short, or changed; its 2 images"
    ) as told:
        for k in (0, 1, 0):
            with pytest.raises(BadImage, match="cut short, or changed"):
                source.read(k)
    assert len(told) == 1
    assert source.raw(2) == png(3)


def damaged(out: Path, what: str) -> None:
    content = json.loads(out.read_text())
    table = out.with_name(content["index"])
    if what == "table gone":
        table.unlink()
    elif what == "table cut":
        os.truncate(table, 140)
    elif what == "short table":
        np.save(table, np.load(table)[:3])
    elif what == "wrong table":
        np.save(table, np.zeros(6))
    elif what == "another table":  # of as many rows, and whole
        rows = np.load(table)
        rows["offset"][0] += 1
        write_array(table, rows)
    elif what == "labels gone":
        out.with_name(content["labels"]).unlink()
    elif what == "no JSON":
        out.write_text(out.read_text()[:-20])
    else:
        change = {
            "other JSON": {"format": "geo"},
            "newer": {"version": VERSION + 1},
            "no count": {"shards": [{"path": "a.tar"}]},
            "negative": {"shards": [content["shards"][0] | {"row": -1}]},
            "no shard": {"shards": [content["shards"][0] | {"path": "a.jpg"}]},
            "no images": {"shards": []},
            "elsewhere": {"index": "../../x.npy"},
        }
        out.write_text(json.dumps(content | change[what]))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("table gone", "is missing: .*copy it there"),
        ("table cut", "cannot be read"),
        ("short table", "needs 6 rows"),
        ("wrong table", "does not fit"),
        ("another table", "does not fit .* the tables that were written with it"),
        ("labels gone", "labels.npy.*is missing"),
        ("no JSON", "cannot be read .*write a manifest"),
        ("other JSON", "is no manifest of shards"),
        ("newer", f"version {VERSION + 1} and this program reads {VERSION}"),
        ("no count", "cannot be read"),
        ("negative", "no numbers of images"),
        ("no shard", "no path of a .tar or .zip"),
        ("no images", "names no image"),
        ("elsewhere", "no .npy file beside"),
    ],
)
def test_damage_gets_one_sentence(what: str, sentence: str, shards: list[str], tmp_path: Path) -> None:
    index(shards, tmp_path / "m.json")
    damaged(tmp_path / "m.json", what)
    with pytest.raises(DeepClusterError, match=sentence) as caught:
        open_images(tmp_path / "m.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a-2.tar", "--out", "m.csv"], "A manifest is a .json file"),
        (["a-2.tar", "a-*.tar", "--out", "m.json"], "is named twice"),
        (["x-*.tar", "--out", "m.json"], "no file matches"),
        (["picture.jpg", "--out", "m.json"], "is no .tar or .zip file"),
        (["x.tar", "--out", "m.json"], "no image in 1 shard; the first, x.tar, is missing"),
        (["none.txt", "--out", "m.json"], "none.txt is missing"),
        (["--out", "m.json"], "No shards are given"),
        (["a-2.tar", "--out", "m.json", "--workers", "-1"], "--workers is -1: give 0"),
        (["a-2.tar", "--out", "other.json"], "is no manifest of shards"),
    ],
)
def test_mistakes(
    words: list[str],
    sentence: str,
    shards: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    before = sorted(os.listdir())
    assert main(["index", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(sentence, said), said
    assert sorted(name for name in os.listdir() if not name.endswith(".parts")) == before


def test_remote_shards_in_a_manifest(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    make_tar(tmp_path / "a.tar", {"x/1.png": png(1), "x/2.png": png(2)})
    store.pipe("/manifest/a.tar", (tmp_path / "a.tar").read_bytes())
    try:
        out = tmp_path / "m.json"
        source = index(named(["memory://manifest/a.tar", str(tmp_path / "a.tar")]), out)
        assert [source.raw(k) for k in range(4)] == [png(1), png(2)] * 2
        assert [source.path(k) for k in (1, 3)] == ["memory://manifest/a.tar/x/2.png", "a.tar/x/2.png"]
    finally:
        store.rm("/manifest", recursive=True)
    gone = shards_of(open_images(out))
    with pytest.warns(UserWarning, match=r"memory://manifest/a.tar is missing"), pytest.raises(BadImage):
        gone.raw(0)
    assert gone.raw(2) == png(1)


def simulate(folder: Path, shards: int, each: int) -> Path:
    """A manifest of shards * each images whose table is a hole in the disk, but for the first shard, which exists."""
    real = make_tar(folder / "shard-000000.tar", {f"{k}.png": png(k) for k in range(8)})
    source = index([str(real)], folder / "one.json")
    table = np.lib.format.open_memmap(folder / "m.index.npy", "w+", source.table.dtype, (shards * each,))
    table[:8] = source.table
    table.flush()
    content = json.loads((folder / "one.json").read_text())
    first = content["shards"][0]
    content |= {"index": "m.index.npy", "digest": table_digest(table, None) if len(table) <= CHECKED else "unknown"}
    content["shards"] = [first | {"path": f"shard-{k:06d}.tar", "images": each, "row": k * each} for k in range(shards)]
    (folder / "m.json").write_text(json.dumps(content))
    return folder / "m.json"


def test_a_large_manifest_makes_no_object_per_image(tmp_path: Path) -> None:
    import tracemalloc

    file = simulate(tmp_path, 1000, 10_000)
    open_images(file)  # the interpreter's table of names may grow now, which is not measured
    tracemalloc.start()
    source = open_images(file)
    source.fingerprint()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 10_000_000 and peak < 16 << 20  # a kilobyte a shard, and a piece to digest
    assert shards_of(source).raw(5) == png(5)
    with (
        pytest.raises(DeepClusterError, match="none of 48 images from all over the 10,000,000"),
        pytest.warns(UserWarning) as told,
    ):
        (tmp_path / "shard-000000.tar").unlink()
        load_pixels(source, short_side=None, cache_gb=1)
    assert len(told) == 20 and "not reported one by one" in str(told[-1].message)


@pytest.mark.slow
def test_a_hundred_million_images_open_in_seconds(tmp_path: Path) -> None:
    file = simulate(tmp_path, 100_000, 1000)
    begun = time.perf_counter()
    source = open_images(file)
    source.fingerprint()
    took = time.perf_counter() - begun
    assert len(source) == 100_000_000 and took < 20  # far above what it takes, far below reading anything per image
    assert len(StreamedPixels(source, None, 1).good) == len(source)
    index = np.random.default_rng(0).integers(0, 8, 64)
    for batch in Loader(StreamedPixels(source, None, 1), index, batch_size=32, transform=CenterCrop(8)):
        assert len(batch.index) == 32


@pytest.mark.slow
def test_killed_index_continues(tmp_path: Path) -> None:
    members = {f"c/{k}.png": png(k % 7) for k in range(3000)}
    found = [str(make_tar(tmp_path / f"s{k:02d}.tar", members)) for k in range(24)]
    out = tmp_path / "m.json"
    words = [sys.executable, "-m", "deepcluster.cli.main", "index", str(tmp_path / "s*.tar"), "--out", str(out)]
    process = subprocess.Popen([*words, "--workers", "2"])
    kept = cache_folder() / "shard-index"
    before = set(kept.glob("*.npz"))
    while len(set(kept.glob("*.npz")) - before) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    time.sleep(2.5)  # the processes that read shards notice
    finished = {
        file: file.stat().st_ino for file in set(kept.glob("[!.]*.npz")) - before
    }  # what is read again is touched
    assert 5 <= len(finished) < 24
    index_shards(found, out, workers=2)
    assert len(open_images(out)) == 72_000 and not list(tmp_path.glob(".*"))
    assert all(file.stat().st_ino == number for file, number in finished.items())


def test_classes_are_found_over_all_shards_as_over_one_folder(tmp_path: Path) -> None:
    """Each shard alone has another rule: one holds splits, one a single folder, one folders of equal names."""
    contents = [
        {"train/cat/images/1.png": png(1), "train/dog/images/2.png": png(2)},
        {"val/cat/images/3.png": png(3)},
        {"val/owl/images/4.png": png(4), "val/owl/more/5.png": png(5)},
    ]
    found = [str(tmp_path / f"{k}.tar") for k in range(3)]
    for place, members in zip(found, contents, strict=True):
        make_tar(Path(place), members)
        for name, content in members.items():
            (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "all" / name).write_bytes(content)

    def classes(source: ImageSource) -> list[str]:
        assert source.labels is not None
        return [source.classes[k] for k in source.labels]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = open_images(tmp_path / "all")
        wanted = dict(zip((Path(p).stem for p in map(folder.path, range(5))), classes(folder), strict=True))
        plain = open_images(str(tmp_path / "{0,1,2}.tar"))
        assert classes(plain) == classes(index(found, tmp_path / "m.json")) == [wanted[str(k)] for k in range(1, 6)]
        first = index(found[:2], tmp_path / "n.json")
        assert classes(first) == classes(open_images(str(tmp_path / "{0,1}.tar")))
        for place in found[:2]:
            doctored(place)  # what is known of them is enough
        more = index(found, tmp_path / "n.json")
        assert classes(more) == classes(plain) and more.classes == plain.classes
        make_tar(tmp_path / "3.tar", {"6.png": png(6)})  # an image without a folder: no classes, until it goes
        assert index([*found, str(tmp_path / "3.tar")], tmp_path / "n.json").labels is None
        assert classes(index(found, tmp_path / "n.json")) == classes(plain)
    assert sorted(path.name for path in tmp_path.glob("n.*")) == sorted(
        ["n.json", *read_manifest(tmp_path / "n.json").tables]
    )


def test_a_renamed_manifest_keeps_its_tables(shards: list[str], tmp_path: Path) -> None:
    one = index(shards, tmp_path / "m.json")
    (tmp_path / "m.json").rename(tmp_path / "n.json")
    index(shards[:1], tmp_path / "m.json")
    index(shards[:2], tmp_path / "m.json")  # the tables of the one before go
    assert shards_of(open_images(tmp_path / "n.json")).fingerprint() == one.fingerprint()
    assert len(list(tmp_path.glob("m.*.index.npy"))) == 2


def test_tables_of_a_killed_index_go_with_the_next(shards: list[str], tmp_path: Path) -> None:
    """Killed between its tables and its manifest, and then others are indexed."""
    out, other = tmp_path / "m.json", tmp_path / "m.x.json"
    index(shards[:1], out)
    index(shards[:1], other)
    out.unlink()
    mine = tmp_path / "m.notes.index.npy"
    mine.write_bytes(b"somebody's")
    index(shards[1:], out)
    manifest = read_manifest(out)
    assert {file.name for file in tmp_path.glob("m.*.npy")} == {
        mine.name, *manifest.tables, *read_manifest(other).tables
    }  # fmt: skip
    assert len(open_images(out)) == 4 and len(open_images(other)) == 2


def test_a_copy_of_a_manifest_shares_its_tables_until_it_is_written_anew(shards: list[str], tmp_path: Path) -> None:
    index(shards, tmp_path / "m.json")
    shutil.copy(tmp_path / "m.json", tmp_path / "copy.json")
    index(shards[:1], tmp_path / "copy.json")
    assert len(open_images(tmp_path / "copy.json")) < len(open_images(tmp_path / "m.json"))

"""Every source of the contract: counts, order, labels, fingerprints, and one sentence where it cannot be opened."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data import storage
from deepcluster.data.naming import natural_key
from deepcluster.data.open import open_images
from deepcluster.data.shards import Shards
from deepcluster.data.source import ImageSource
from deepcluster.data.storage import expand_braces
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.voc.files import open_files


def picture(seed: int, size: tuple[int, int] = (10, 12)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, seed: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)
    return picture(seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for k, name in enumerate(
        ["b/img10.png", "b/img2.png", "a/deep/x.PNG", "a/.hidden.png", ".git/y.png", "a/notes.txt"]
    ):
        if name.endswith("txt"):
            (root / name).write_text("words")
        else:
            save(root / name.lower() if "PNG" in name else root / name, k)
    return root


def make_tar(file: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(file, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(seed)).save(stream, "PNG")
    return stream.getvalue()


def test_digits() -> None:
    from sklearn.datasets import load_digits

    source = open_images("digits")
    digits = load_digits()
    assert len(source) == 1797 and source.classes == tuple("0123456789")
    np.testing.assert_array_equal(source.labels, digits.target)
    np.testing.assert_allclose(source.read(7)[..., 1], digits.images[7] * 255 / 16, atol=0.51)
    assert source.path(7) == "digits/0007" and isinstance(source, ImageSource)
    assert open_images(source) is source


def test_folder_in_natural_order_with_labels(folder: Path) -> None:
    source = open_images(folder)
    assert [source.path(k) for k in range(len(source))] == ["a/deep/x.png", "b/img2.png", "b/img10.png"]
    assert source.classes == ("b", "deep")
    np.testing.assert_array_equal(source.labels, [1, 0, 0])
    np.testing.assert_array_equal(source.read(1), picture(1))
    assert source.name == str(folder)


def test_folder_without_class_folders_has_no_labels(folder: Path) -> None:
    save(folder / "loose.png", 9)
    source = open_images(str(folder))
    assert len(source) == 4 and source.labels is None and source.classes == ()


def test_folder_with_a_circular_link(folder: Path) -> None:
    os.symlink(folder, folder / "a" / "again")
    assert len(open_images(folder)) == 3


def test_fingerprint_follows_list_and_bytes(folder: Path) -> None:
    first = open_images(folder).fingerprint()
    assert open_images(folder).fingerprint() == first
    state = (folder / "b/img2.png").stat()
    (folder / "b/img2.png").write_bytes((folder / "b/img10.png").read_bytes())
    changed = open_images(folder).fingerprint()
    assert changed != first
    os.utime(folder / "b/img2.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert open_images(folder).fingerprint() != first
    save(folder / "c/new.png", 3)
    assert storage.mark(str(folder / "c/new.png")) == 0  # a second change could have the same time
    assert open_images(folder).fingerprint() not in (first, changed)


@pytest.mark.parametrize("form", ["folder", "list", "tar", "npy", "torchvision", "voc"])
def test_a_fingerprint_is_of_what_is_in_the_files(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FRESH", 0.0)

    def fingerprint(place: Path) -> str:
        if form == "voc":
            return open_files(place).fingerprint([f"JPEGImages/{name}" for name in "0123"])
        sources = {"folder": "x", "list": "list.txt", "tar": "a.tar", "npy": "a.npy"}
        if form == "torchvision":
            return open_images(f"torchvision:ImageFolder?root={place}/x").fingerprint()
        return open_images(str(place / sources[form])).fingerprint()

    place = tmp_path / "one"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    (place / "x/c").mkdir(parents=True)
    (place / "JPEGImages").mkdir()
    (place / "ImageSets").mkdir()
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(place / f"x/c/{k}.bmp")
        shutil.copy(place / f"x/c/{k}.bmp", place / f"JPEGImages/{k}")
    (place / "list.txt").write_text("".join(f"x/c/{k}.bmp\n" for k in range(4)))
    np.save(place / "a.npy", pixels)
    with tarfile.open(place / "a.tar", "w") as archive:
        archive.add(place / "x", "x")
    first = fingerprint(place)
    shutil.copytree(place, tmp_path / "two", copy_function=shutil.copyfile)  # with new dates
    assert fingerprint(tmp_path / "two") == first
    for file in (path for path in place.rglob("*") if path.is_file() and path.suffix != ".txt"):  # as `rsync -t` may
        state, content = file.stat(), bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(place) != first == fingerprint(tmp_path / "two")
    monkeypatch.setattr(storage, "HASHED", 1)  # of a large source dates count, too
    storage._contents.clear()
    first = fingerprint(tmp_path / "two")
    for file in tmp_path.joinpath("two").rglob("*"):
        os.utime(file, (1e9, 1e9))
    assert fingerprint(tmp_path / "two") != first


def test_damaged_files_keep_their_index(folder: Path) -> None:
    (folder / "a" / "bad.jpg").write_text("not a picture")
    (folder / "a" / "zero.jpg").touch()
    source = open_images(folder)
    assert [source.path(k) for k in range(3)] == ["a/bad.jpg", "a/deep/x.png", "a/zero.jpg"]
    with pytest.raises(BadImage, match="not an image"):
        source.read(0)
    with pytest.raises(BadImage, match="empty file"):
        source.read(2)


@pytest.mark.parametrize("form", ["txt", "csv", "csv with labels", "csv with some labels"])
def test_list_files(folder: Path, form: str) -> None:
    names = ["photos/b/img10.png", str(folder / "b/img2.png"), "photos/gone.png"]
    labels = {"csv with labels": ["dog", "cat", "dog"], "csv with some labels": ["dog", "", "cat"]}.get(form)
    file = folder.parent / f"list.{form[:3]}"
    if form == "txt":
        file.write_text("\n".join(names) + "\n\n")
    elif labels is None:
        file.write_text("\n".join(["path", *names]))
    else:
        file.write_text("\n".join(["label,path", *(f"{a},{b}" for a, b in zip(labels, names, strict=True))]))
    source = open_images(file)
    assert [source.path(k) for k in range(3)] == names
    np.testing.assert_array_equal(source.read(0), picture(0))
    with pytest.raises(BadImage, match="No such file"):
        source.read(2)
    expected = {"csv with labels": [1, 0, 1], "csv with some labels": [1, -1, 0]}.get(form)
    assert (source.labels is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(source.labels, expected)
        assert source.classes == ("cat", "dog")


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 1), (5, 8, 9, 3), (5, 8, 9, 4)])
def test_arrays_and_npy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    np.save(tmp_path / "set.npy", array)
    gray = array[..., None] if array.ndim == 3 else array
    expected = np.repeat(gray, 3, 3) if gray.shape[3] == 1 else gray[..., :3]
    for source in (open_images(tmp_path / "set.npy"), open_images(array), open_images(list(array))):
        assert len(source) == 5 and source.labels is None
        for k in range(5):
            np.testing.assert_array_equal(source.read(k), expected[k])
    assert open_images(array).fingerprint() == open_images(array.copy()).fingerprint()
    other = array.copy()
    other[3, 0, 0] ^= 1
    assert open_images(array).fingerprint() != open_images(other).fingerprint()


def test_arrays_of_other_types() -> None:
    unit = np.random.default_rng(0).random((3, 4, 5))
    np.testing.assert_allclose(open_images(unit).read(0)[..., 0], unit[0] * 255, atol=0.51)
    assert open_images(unit > 0.5).read(0).max() == 255
    assert open_images([Image.fromarray(picture(1)), picture(2, (3, 4))]).read(1).shape == (3, 4, 3)


def test_list_of_paths_and_single_file(folder: Path) -> None:
    source = open_images([folder / "b/img2.png", str(folder / "b/img10.png")])
    np.testing.assert_array_equal(source.read(1), picture(0))
    one = open_images(str(folder / "b/img2.png"))
    assert len(one) == 1 and one.read(0).shape == (10, 12, 3)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_by_offset_equals_tarfile(tmp_path: Path, form: int) -> None:
    long = "train/" + "very-" * 30 + "long/img.png" if form != tarfile.USTAR_FORMAT else "train/long/img.png"
    members = {
        "./train/cat/1.png": png(1),
        "train/dog/2.png": png(2),
        "train/dog/2.json": b"{}",
        "train/.x.png": png(5),
    }
    make_tar(tmp_path / "s-000.tar", members, format=form)
    make_tar(tmp_path / "s-001.tar", {long: png(3), "train/cat/ünï.png": png(4)}, format=form)
    for repeat in range(2):  # scanned, then from the stored index
        source = open_images(str(tmp_path / "s-{000..001}.tar"))
        assert isinstance(source, Shards), repeat
        assert [source.path(k) for k in range(4)] == [
            "s-000.tar/train/cat/1.png",
            "s-000.tar/train/dog/2.png",
            f"s-001.tar/{long}",
            "s-001.tar/train/cat/ünï.png",
        ]
        for k, seed in enumerate([1, 2, 3, 4]):
            assert source.raw(k) == png(seed)
            np.testing.assert_array_equal(source.read(k), picture(seed))
        np.testing.assert_array_equal(np.array(source.classes)[source.labels][[0, 1, 3]], ["cat", "dog", "cat"])
    assert open_images(str(tmp_path / "s-*.tar")).fingerprint() == source.fingerprint()
    make_tar(tmp_path / "s-001.tar", {"train/cat/other.png": png(7)})
    changed = open_images(str(tmp_path / "s-*.tar"))
    assert len(changed) == 3 and changed.fingerprint() != source.fingerprint()


def test_tar_cut_off_after_it_was_indexed(tmp_path: Path) -> None:
    file = make_tar(tmp_path / "a.tar", {"x/1.png": png(1), "x/2.png": png(2)})
    source = open_images(file)
    os.truncate(file, 600)
    with (
        pytest.warns(UserWarning, match="a.tar has 600 bytes and not .* its 2 images"),
        pytest.raises(BadImage, match="cut short"),
    ):
        source.read(1)


def test_braces() -> None:
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{x,y}-{1..2}") == ["x-1", "x-2", "y-1", "y-2"]
    assert sorted(["img10", "img2", "Img3"], key=natural_key) == ["img2", "Img3", "img10"]


def test_torchvision_sets() -> None:
    source = open_images("torchvision:FakeData?size=5&image_size=3,8,9&num_classes=3")
    assert len(source) == 5 and source.read(2).shape == (8, 9, 3)
    assert (
        source.fingerprint() == open_images("torchvision:FakeData?size=5&image_size=3,8,9&num_classes=3").fingerprint()
    )
    assert source.fingerprint() != open_images("torchvision:FakeData?size=6&image_size=3,8,9").fingerprint()


def test_torchvision_targets_are_labels(tmp_path: Path) -> None:
    import pickle

    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    (base / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 0, 9]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.MonkeyPatch.context() as patch:  # a tiny CIFAR-10 has not the sums of the real one
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        source = open_images(f"torchvision:CIFAR10?root={tmp_path}&train=false")
    np.testing.assert_array_equal(source.labels, [3, 1, 0, 9])
    assert source.classes[3] == "cat" and source.path(1) == "CIFAR10/00001"
    np.testing.assert_array_equal(source.read(1), pixels[1].reshape(3, 32, 32).transpose(1, 2, 0))


Given = Callable[[Path], object]


def empty(path: Path) -> str:
    (path / "empty").mkdir()
    return str(path / "empty")


def words(path: Path) -> str:
    (path / "words").mkdir()
    (path / "words" / "a.txt").write_text("x")
    return str(path / "words")


def only_tars(path: Path) -> str:
    make_tar(path / "a.tar", {"x.png": png(0)})
    return str(path)


def written(name: str, content: str | np.ndarray) -> Given:
    def give(path: Path) -> str:
        if isinstance(content, np.ndarray):
            np.save(path / name, content)
        else:
            (path / name).write_text(content)
        return str(path / name)

    return give


MISTAKES: dict[str, tuple[Given, str]] = {
    "missing folder": (lambda path: str(path / "photoz"), "no file or folder .*photoz"),
    "near name": (lambda path: "digit", "did you mean digits"),
    "empty folder": (empty, "is empty"),
    "no images": (words, "of 1 file in"),
    "folder of shards": (only_tars, r"name them as '.*\*\.tar'"),
    "no match": (lambda path: str(path / "x-*.tar"), "no file matches"),
    "missing shard": (lambda path: str(path / "x-{0..1}.tar"), "x-0.tar.* does not exist"),
    "tar without images": (lambda path: str(make_tar(path / "a.tar", {"a.txt": b""})), "no image in the tar"),
    "broken tar": (written("a.tar", "words" * 200), "cannot be read as an uncompressed tar"),
    "compressed tar": (written("a.tar.gz", "words"), "compressed"),
    "empty list": (written("a.txt", "\n"), "names no image"),
    "list of missing": (written("a.txt", "a.png\nb.png"), "of 2 files listed"),
    "csv without path": (written("a.csv", "name,label\nx,1"), "no column `path`"),
    "float npy": (written("a.npy", np.zeros((3, 4, 4))), "float64"),
    "flat npy": (written("a.npy", np.zeros((3, 4), np.uint8)), r"shape \(3, 4\)"),
    "channels first": (written("a.npy", np.zeros((9, 3, 8, 8), np.uint8)), "channels first"),
    "one image as array": (lambda path: np.zeros((8, 8, 3), np.uint8), "single image"),
    "no npy": (written("a.npy", "words"), "it is no .npy file.*numpy.save"),
    "pickled npy": (written("a.npy", np.array([{}], object)), "it holds object.*numpy.save"),
    "text as image": (written("a.jpg", "words"), "cannot be read as an image"),
    "unknown set": (lambda path: "torchvision:CIFAR11", "did you mean torchvision:CIFAR10"),
    "unknown option": (lambda path: "torchvision:CIFAR10?split=x", "no option 'split'"),
    "not downloaded": (lambda path: f"torchvision:CIFAR10?root={path}", "download=true"),
    "empty Python list": (lambda path: [], "empty"),
    "mixed list": (lambda path: [np.zeros((4, 4), np.uint8), "a.png"], "item 1"),
    "number": (lambda path: 3, "cannot read images from a int"),
    "large floats": (lambda path: np.full((2, 4, 4), 16.0), r"scale images to \[0, 1\]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_sentence(mistake: str, tmp_path: Path) -> None:
    give, sentence = MISTAKES[mistake]
    with pytest.raises(DeepClusterError, match=sentence) as caught:
        open_images(give(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.data
def test_real_shards(shared_data: Path) -> None:
    source = open_images(str(shared_data / "cifar10" / "test.tar"))
    assert len(source) == 10_000 and np.bincount(np.asarray(source.labels)).tolist() == [1000] * 10
    assert source.classes[3] == "cat" and source.read(0).shape == (32, 32, 3)
    source = open_images(str(shared_data / "imagenette112" / "train-*.tar"))
    assert isinstance(source, Shards)
    assert len(source) == 9_469 and len(source.classes) == 10
    with tarfile.open(shared_data / "imagenette112" / "train-001.tar") as archive:
        member = next(m for m in archive if m.isreg())
        index = [source.path(k) for k in range(len(source))].index(f"train-001.tar/{member.name}")
        content = archive.extractfile(member)
        assert content is not None and source.raw(index) == content.read()


@pytest.mark.parametrize(
    "name",
    [None, "digits", "torchvision:CIFAR10", "http://localhost/{000..003}.tar", "https://localhost/a.tar", "no/*.tar"],
)
def test_must_exist_accepts_what_only_opening_can_check(name: str | None) -> None:
    from deepcluster.data.open import must_exist

    must_exist(name)


def test_must_exist_refuses_what_opening_refuses(tmp_path: Path) -> None:
    from deepcluster.data.open import must_exist

    for name in ("nowhere", str(tmp_path / "a.tar"), "digit"):
        with pytest.raises(DeepClusterError) as quick:
            must_exist(name)
        with pytest.raises(DeepClusterError) as opened:
            open_images(name)
        assert str(quick.value) == str(opened.value)

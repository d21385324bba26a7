"""Which folder is the class, and which column the label."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data.naming import labels_from_parents
from deepcluster.data.open import open_images
from deepcluster.data.source import known_labels
from deepcluster.errors import DeepClusterWarning
from deepcluster.visualize.clustered_images import ClusteredImages
from deepcluster.visualize.clusters import contact


@pytest.mark.parametrize(
    ("paths", "classes", "told"),
    [
        (["cat/1.png", "dog/2.png"], ("cat", "dog"), False),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/2.png"], ("cat", "dog"), False),
        (["n01/images/1.png", "n02/images/1.png", "n03/images/1.png"], ("n01", "n02", "n03"), True),
        (["cat/2019/1.png", "cat/2020/1.png", "dog/2019/1.png", "dog/2020/1.png"], ("cat", "dog"), True),
        (["a/other/1.png", "a/oak/1.png", "a/elm/1.png", "b/other/1.png", "b/owl/1.png"],
         ("a/other", "b/other", "elm", "oak", "owl"), False),
        (["train/cat/1.png", "train/dog/1.png", "test/1.png"], ("cat", "dog"), True),
        (["train/1.png", "val/2.png", "test/3.png"], (), False),
        (["images/train2017/1.png", "images/val2017/2.png"], (), False),
        (["cat/1.png", "dog/1.png", "test/1.png"], ("cat", "dog", "test"), False),
        (["JPEGImages/1.png", "JPEGImages/2.png"], (), False),
        (["1.png", "cat/2.png"], (), True),
        (["1.png", "2.png"], (), False),
    ],
)  # fmt: skip
def test_class_folder(paths: list[str], classes: tuple[str, ...], told: bool) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        labels, names = labels_from_parents(paths)
    assert names == classes and (labels is None) == (not classes)
    assert bool(found) == told


def put(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / path)


@pytest.mark.parametrize("part", ["", "train", "val"])
def test_the_layout_of_tinyimagenet(tmp_path: Path, part: str) -> None:
    put(tmp_path, *(f"train/n{kind}/images/n{kind}_{number}.jpeg" for kind in range(3) for number in range(2)))
    put(tmp_path, *(f"val/images/val_{number}.jpeg" for number in range(4)), "test/images/test_0.jpeg")
    for kind in range(3):
        (tmp_path / f"train/n{kind}/n{kind}_boxes.txt").write_text(f"n{kind}_0.jpeg\t0\t0\t7\t7\n")
    table = [f"val_{number}.jpeg\tn{number % 3}\t0\t0\t7\t7" for number in range(4)]
    (tmp_path / "val/val_annotations.txt").write_text("\n".join(table))
    with pytest.warns(DeepClusterWarning, match="folders above them" if part else "no label for 1 image outside"):
        source = open_images(tmp_path / part)
    assert source.classes == ("n0", "n1", "n2") and source.labels is not None
    kinds = {f"n{kind}_{number}": kind for kind in range(3) for number in range(2)}
    kinds |= {f"val_{number}": number % 3 for number in range(4)} | {"test_0": -1}
    assert source.labels.tolist() == [kinds[Path(source.path(index)).stem] for index in range(len(source))]


def test_the_layouts_of_coco_and_voc(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    put(tmp_path / "coco", "train2017/1.jpg", "val2017/2.jpg")
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/instances_val2017.json").write_text("{}")
    assert open_images(tmp_path / "coco").labels is None and not recwarn
    voc = [f"VOC2012/{folder}/{number}" for number in (1, 2) for folder in ("JPEGImages", "SegmentationClass")]
    put(tmp_path / "VOCdevkit", *(name + (".jpg" if "JPEG" in name else ".png") for name in voc))
    put(tmp_path / "VOCdevkit", "VOC2012/SegmentationObject/1.png")
    with pytest.warns(DeepClusterWarning, match="masks in SegmentationClass and SegmentationObject are no photos"):
        source = open_images(tmp_path / "VOCdevkit")
    with tarfile.open(tmp_path / "voc.tar", "w") as archive:
        archive.add(tmp_path / "VOCdevkit", "VOCdevkit")
    for each in (source, open_images(tmp_path / "voc.tar")):
        assert [Path(each.path(index)).name for index in range(len(each))] == ["1.jpg", "2.jpg"]
        assert each.labels is None


@pytest.mark.parametrize("head", ["path, label", "Path;Class", "file\tcategory", "image,width,Labels"])
def test_columns_in_any_case_and_by_their_usual_names(tmp_path: Path, head: str) -> None:
    mark = next(mark for mark in ";\t," if mark in head)
    rows = [head]
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(mark.join([f"{number}.png", *["5"] * (head.count(mark) - 1), "ab"[number % 2]]))
    (tmp_path / "l.csv").write_text("\n".join(rows))
    source = open_images(tmp_path / "l.csv")
    assert source.classes == ("a", "b") and source.labels is not None and source.labels.tolist() == [0, 1, 0, 1]


def test_columns_that_are_not_used_are_told(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "l.csv").write_text("path,species\n0.png,cat\n")
    with pytest.warns(DeepClusterWarning, match="no column `label`.*not used: species"):
        assert open_images(tmp_path / "l.csv").labels is None


def test_images_of_odd_names_are_read_and_other_pictures_told(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    for name in ("d41d8cd98f00", "x.png_large", "y.png?w=300"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "raw.NEF").write_bytes(b"a camera's own")
    with pytest.warns(DeepClusterWarning, match=r"not read here \(1 \.nef\)"):
        source = open_images(tmp_path)
    assert [source.path(k) for k in range(len(source))] == ["0.png", "d41d8cd98f00", "x.png_large", "y.png?w=300"]
    assert all(source.read(k).shape == (8, 8, 3) for k in range(4))


@pytest.mark.parametrize(("folders", "told"), [(("2019", "2019"), False), (("cat", "dog"), True)])
def test_one_class_alone_tells_no_images_apart(tmp_path: Path, folders: tuple[str, ...], told: bool) -> None:
    put(tmp_path, *(f"{folder}/{number}.png" for number, folder in enumerate(folders)))
    source = open_images(tmp_path)
    assert source.labels is not None and (known_labels(source) is not None) == told
    shown = ClusteredImages(source, np.zeros(2, np.int64), np.zeros(2, np.float32), 1)
    assert contact(shown, 0).label == (folders[0] if told else None)

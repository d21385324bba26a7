"""The reader of VOC sets: on sets made here, on blood cells, and on three images of VOC 2011."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data.cache import load_pixels
from deepcluster.data.source import ImageSource
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.voc.annotation import read_mask, voc_palette
from deepcluster.evaluate.voc.dataset import VOC_CLASSES, open_voc

from .make import annotation, as_tar, make_voc

ANNOTATIONS = {
    "a": annotation([("dog", (1, 2, 10, 20), False), ("cat", (5, 5, 40, 30), True)]),
    "b": annotation([("dog", (3, 3, 9, 9), True), ("dog", (4, 4, 30, 30), False)]),
    "c": annotation([("dog", (3, 3, 9, 9), True)]),
    "d": annotation([]),
}
SPLITS = {"train": ["a", "b"], "val": ["c", "d"]}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOCdevkit" / "VOC2007", SPLITS, ANNOTATIONS)


def test_boxes_count_from_zero_with_exclusive_ends(tiny: Path) -> None:
    first, second = open_voc(tiny, "train").objects
    assert first.boxes.tolist() == [[0, 1, 10, 20], [4, 4, 40, 30]]
    assert first.difficult.tolist() == [False, True] and second.difficult.tolist() == [True, False]
    assert first.labels.tolist() == [VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")]
    assert first.boxes.dtype == np.float32


def test_labels_are_unknown_where_every_object_is_difficult(tiny: Path) -> None:
    voc = open_voc(tiny, "trainval")  # no such list: train and val
    matrix = voc.labels_matrix()
    assert voc.ids == ("a", "b", "c", "d") and voc.classes == VOC_CLASSES
    dog, cat = VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")
    assert matrix[:, dog].tolist() == [1, 1, -1, 0]
    assert matrix[:, cat].tolist() == [-1, 0, 0, 0]
    assert np.abs(matrix).sum() == 4


def test_class_lists_agree_with_annotations_and_take_precedence(tiny: Path) -> None:
    lists = tiny / "ImageSets/Main"
    for split in ("train", "val"):
        voc = open_voc(tiny, split)
        truth = voc.labels_matrix()  # there are no lists of classes yet: from the annotations
        for column, name in enumerate(VOC_CLASSES):
            words = {1: " 1", 0: "-1", -1: " 0"}
            lines = [f"{image} {words[int(value)]}" for image, value in zip(voc.ids, truth[:, column], strict=True)]
            (lists / f"{name}_{split}.txt").write_text("\n".join(lines) + "\n")
        again = open_voc(tiny, split)
        assert again.ids == voc.ids  # dog_train.txt is no split
        assert (again.labels_matrix() == truth).all()
    (lists / "dog_train.txt").write_text("a -1\nb 1\nb what\n")
    changed = open_voc(tiny, "train")
    assert changed.labels_matrix()[:, VOC_CLASSES.index("dog")].tolist() == [0, 1]
    assert [problem.file for problem in changed.problems] == ["ImageSets/Main/dog_train.txt"]
    with pytest.raises(DeepClusterError, match="it has train, val, all"):
        open_voc(tiny, "test")


def test_folders_tar_and_zip_read_the_same(tiny: Path, tmp_path: Path) -> None:
    tar = as_tar(tiny, tmp_path / "set.tar", "VOCdevkit/VOC2007")
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path, "VOCdevkit")
    for place in (tiny, tiny.parent, tiny.parent.parent, tar, tmp_path / "s?t.tar", archive):
        voc = open_voc(place, "train")
        assert isinstance(voc.images, ImageSource)
        assert voc.ids == ("a", "b") and voc.images.path(1) == "JPEGImages/b.jpg"
        expected = np.asarray(Image.open(tiny / "JPEGImages/b.jpg"))
        assert (voc.images.read(1) == expected).all()
        assert voc.images.read(1, 15).shape == (15, 20, 3)
        assert [one.boxes.tolist() for one in voc.objects] == [
            o.boxes.tolist() for o in open_voc(tiny, "train").objects
        ]
    before = open_voc(tiny, "train").images.fingerprint()
    assert before == open_voc(tiny, "train").images.fingerprint() != open_voc(tiny, "val").images.fingerprint()
    (tiny / "JPEGImages/b.jpg").write_bytes(b"other")
    assert open_voc(tiny, "train").images.fingerprint() != before


def test_two_tar_files_are_one_set(tiny: Path, tmp_path: Path) -> None:
    test = make_voc(tmp_path / "other", {"test": ["e"]}, {"e": annotation([("cow", (1, 1, 5, 5), False)])})
    as_tar(tiny, tmp_path / "VOCtrainval.tar", "VOCdevkit/VOC2007")
    as_tar(test, tmp_path / "VOCtest.tar", "VOCdevkit/VOC2007")
    both = str(tmp_path / "VOC{trainval,test}.tar")
    assert open_voc(both, "test").ids == ("e",) and open_voc(both, "train").ids == ("a", "b")
    with pytest.raises(DeepClusterError, match="it has test, all"):
        open_voc(tmp_path / "VOCtest.tar", "train")


def test_broken_parts_are_reported_and_left_out(tmp_path: Path) -> None:
    texts = {
        "good": annotation([("dog", (1, 1, 9, 9), False)]),
        "flat": annotation([("cat", (5, 5, 5, 9), False), ("dog", (1, 1, 2, 2), False)]),
        "text": annotation([("cat", ("x", 5, 9, 9), False)]),
        "none": annotation([("cat", ("nan", 5, 9, 9), False)]),
        "out": annotation([("cat", (100, 100, 120, 120), False), ("dog", (20, 20, 70, 25), False)]),
        "nameless": annotation([("", (1, 1, 9, 9), False)]),
        "cut": "<annotation><object>",
        "entity": '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>',
        "other": "<svg/>",
        "stranger": annotation([("yeti", (1, 1, 9, 9), False)]),
    }
    names = [*texts, "lonely", "absent"]
    root = make_voc(tmp_path, {"train": names}, texts)
    shutil.copy(root / "JPEGImages/good.jpg", root / "JPEGImages/lonely.jpg")  # no annotation
    (root / "Annotations/absent.xml").write_text(texts["good"])  # no image
    (root / "JPEGImages/other.jpg").write_bytes(b"no picture")
    voc = open_voc(root, "train", classes=("cat", "dog"))
    assert [problem.file for problem in voc.problems] == ["JPEGImages/absent.jpg"]
    objects = dict(zip(names, voc.objects, strict=True))
    told = {problem.file.split("/")[1].split(".")[0]: problem.reason for problem in voc.problems[1:]}
    assert set(told) == {"flat", "text", "none", "out", "nameless", "cut", "entity", "other", "stranger", "lonely"}
    assert "without area" in told["flat"] and "not four numbers" in told["text"] and "not XML" in told["cut"]
    assert "entities" in told["entity"] and "yeti" in told["stranger"] and "not four numbers" in told["none"]
    assert objects["flat"].boxes.tolist() == [[0, 0, 2, 2]]  # the other object of that image stays
    assert objects["out"].boxes.tolist() == [[19, 19, 40, 25]]  # cut at the image's edge
    assert len([1 for problem in voc.problems if problem.file == "Annotations/out.xml"]) == 2
    labels = dict(zip(names, voc.labels_matrix().tolist(), strict=True))
    assert labels["flat"] == [1, 1]  # a broken box still says that there is a cat
    assert labels["cut"] == labels["lonely"] == [-1, -1] and labels["stranger"] == [0, 0]
    assert "and 11 more" in voc.summary()
    pixels = load_pixels(voc.images, short_side=None, cache_gb=1)
    assert sorted(pixels.bad) == [names.index("other"), names.index("absent")]


def test_refuses_what_is_not_a_set(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepClusterError, match="There is no VOC set"):
        open_voc(tmp_path / "nothing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeepClusterError, match="holds no VOC set"):
        open_voc(tmp_path / "empty", "train")
    shutil.copytree(tiny, tiny.parent / "VOC2012")
    with pytest.raises(DeepClusterError, match="several VOC sets \\(VOC2007, VOC2012\\)"):
        open_voc(tiny.parent, "train")
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" * 600)
    with pytest.raises(DeepClusterError, match=r"uncompressed tar"):
        open_voc(tmp_path / "x.tar", "train")
    with pytest.raises(DeepClusterError, match="no kind"):
        open_voc(tiny, "train", "faces")  # type: ignore[arg-type]
    shutil.rmtree(tiny / "JPEGImages")
    with pytest.raises(DeepClusterError, match="None of the 2 images"):
        open_voc(tiny, "train")


def test_truncated_tar_gives_what_it_has(tiny: Path, tmp_path: Path) -> None:
    whole = as_tar(tiny, tmp_path / "set.tar", "V")
    with tarfile.open(whole) as archive:
        last = archive.getmember("V/JPEGImages/b.jpg")
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: last.offset_data + 100])
    try:
        voc = open_voc(tmp_path / "cut.tar", "train")
    except DeepClusterError as error:  # the lists may lie behind the cut
        assert "train" in str(error)
    else:
        assert len(voc) == 2


def test_own_classes_are_sorted_and_the_same_for_every_split(tmp_path: Path) -> None:
    texts = {"a": annotation([("zebra", (1, 1, 9, 9), False)]), "b": annotation([("ant", (1, 1, 9, 9), False)])}
    root = make_voc(tmp_path, {"train": ["a"], "test": ["b"]}, texts)
    assert open_voc(root, "train").classes == open_voc(root, "test").classes == ("ant", "zebra")
    assert open_voc(root, "train", classes=("zebra",)).labels_matrix().tolist() == [[1]]


def test_masks_are_indices_and_colors_are_looked_up(tiny: Path) -> None:
    mask = np.array([[0, 1, 15], [20, 255, 0]], np.uint8)
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().reshape(-1).tolist())  # makes it a palette picture
    (tiny / "SegmentationClass").mkdir()
    (tiny / "ImageSets/Segmentation").mkdir()
    (tiny / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    picture.save(tiny / "SegmentationClass/a.png")
    voc = open_voc(tiny, "train", "segmentation")
    assert (voc.mask(0) == mask).all() and voc.mask(0).dtype == np.uint8
    with pytest.raises(BadImage, match="no mask"):
        voc.mask(1)
    colored = io.BytesIO()
    picture.convert("RGB").save(colored, "PNG")
    assert (read_mask(colored.getvalue()) == mask).all()
    Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(tiny / "SegmentationClass/b.png")
    with pytest.raises(BadImage, match="palette"):
        open_voc(tiny, "train", "segmentation").mask(1)
    assert voc_palette()[[1, 15, 255]].tolist() == [[128, 0, 0], [192, 128, 128], [224, 224, 192]]  # VOC's own


@pytest.mark.data
def test_blood_cells(shared_data: Path) -> None:
    tar = shared_data / "voc/bccd.tar"
    splits = ("train", "val", "trainval", "test", "all")
    sizes = {split: len(open_voc(tar, split, classes=("RBC",))) for split in splits}
    assert sizes == {"train": 205, "val": 87, "trainval": 292, "test": 72, "all": 364}
    voc = open_voc(tar, "all", "detection")
    assert voc.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(one.labels) for one in voc.objects) == 4888 - 2
    assert sorted(problem.file for problem in voc.problems) == [
        "Annotations/BloodImage_00338.xml",
        "Annotations/BloodImage_00343.xml",
    ]
    labels = voc.labels_matrix()
    assert labels.min() == 0 and labels.sum(0).tolist() == [sum(c in o.labels for o in voc.objects) for c in range(3)]
    assert voc.images.read(3).shape == (480, 640, 3)
    with pytest.raises(DeepClusterError, match="it has test, train, trainval, val"):
        open_voc(tar, "minival")
    with pytest.raises(DeepClusterError, match="Segmentation"):
        open_voc(tar, "train", "segmentation")


@pytest.mark.data
def test_three_images_of_voc_2011(shared_data: Path) -> None:
    tar = shared_data / "voc/voc2011-sample.tar"
    voc = open_voc(tar, "all", "segmentation")
    assert voc.classes == VOC_CLASSES and len(voc) == 3 and not voc.problems
    for index in range(3):
        mask, picture = voc.mask(index), voc.images.read(index)
        assert mask.shape == picture.shape[:2]
        seen = set(np.unique(mask).tolist())
        assert seen <= {*range(21), 255}
        assert {label + 1 for label in voc.objects[index].labels.tolist()} <= seen
    with pytest.raises(DeepClusterError, match="it has all"):
        open_voc(tar, "train")

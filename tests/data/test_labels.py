"""Which folder is the class, and which column the label."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data.naming import labels_from_parents
from deepcluster.data.open import open_images
from deepcluster.errors import DeepClusterWarning


@pytest.mark.parametrize(
    ("paths", "classes", "told"),
    [
        (["cat/1.png", "dog/2.png"], ("cat", "dog"), False),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/2.png"], ("cat", "dog"), False),
        (["n01/images/1.png", "n02/images/1.png", "n03/images/1.png"], ("n01", "n02", "n03"), True),
        (["cat/2019/1.png", "cat/2020/1.png", "dog/2019/1.png", "dog/2020/1.png"], ("cat", "dog"), True),
        (["a/other/1.png", "a/oak/1.png", "a/elm/1.png", "b/other/1.png", "b/owl/1.png"],
         ("a/other", "b/other", "elm", "oak", "owl"), False),
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

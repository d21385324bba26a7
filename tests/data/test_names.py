"""Names of images: their order, their text for people and files, and how a list's names are found on a disk."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.data.naming import find_on_disk, natural_key, printable
from deepcluster.data.open import open_images
from deepcluster.errors import DeepClusterError

LATIN = os.fsdecode(b"caf\xe9.png")


def test_order_of_numbers() -> None:
    names = ["img10", "img2", "Img3", "img" + "9" * 5000, "img007"]
    assert sorted(names, key=natural_key) == ["img2", "Img3", "img007", "img10", names[3]]


def test_text_of_a_name_goes_into_any_file() -> None:
    assert printable(LATIN) == r"caf\xe9.png" and printable("été 😀\n") == "été 😀\n"
    assert printable("\ud800x") == r"\ud800x"  # stands for no byte
    assert printable("été".encode().decode("ascii", "surrogateescape")) == "été"  # as disks are read under LANG=C


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (unicodedata.normalize("NFD", "été/é.png"), "été/é.png"),
        ("été/é.png", unicodedata.normalize("NFD", "été/é.png")),
        ("été/" + unicodedata.normalize("NFD", "é.png"), "été/é.png"),
        (LATIN, "café.png"),
        (LATIN, unicodedata.normalize("NFD", "café.png")),
        ("café.png", LATIN),
        (LATIN, printable(LATIN)),
        ("a/b é.png", "a\\b é.png"),
        ("a/b.png", r"a\b.png"),
    ],
)
def test_names_are_found_in_other_spellings(tmp_path: Path, there: str, asked: str) -> None:
    for file in (tmp_path / there, tmp_path / "other.png"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert find_on_disk(f"{tmp_path}/{asked}") == f"{tmp_path}/{there}"


def test_names_as_they_are_come_first(tmp_path: Path) -> None:
    both = [f"{tmp_path}/{unicodedata.normalize(form, 'é.png')}" for form in ("NFC", "NFD")]
    for file in [*both, f"{tmp_path}/{LATIN}", rf"{tmp_path}/a\b.png"]:
        Path(file).touch()
        assert find_on_disk(file) == file
    assert find_on_disk(f"{tmp_path}/gone-é.png") == f"{tmp_path}/gone-é.png"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("ending", ["txt", "csv"])
@pytest.mark.parametrize("there", ["NFC", "NFD", "latin-1"])
def test_lists_in_any_encoding_name_files_in_any(there: str, ending: str, encoding: str, tmp_path: Path) -> None:
    name = LATIN if there == "latin-1" else unicodedata.normalize("NFC" if there == "NFC" else "NFD", "café.png")
    for number, file in enumerate([name, "été\u2028x.png" if encoding.startswith("utf") else "b.png"]):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / file)
    lines = ["path,label", "café.png,1", f"{file},2"] if ending == "csv" else ["café.png", file]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / f"l.{ending}").write_bytes((mark + "\r\n".join(lines)).encode(encoding))
    source = open_images(tmp_path / f"l.{ending}")
    assert len(source) == 2 and [int(source.read(k)[0, 0, 0]) for k in range(2)] == [0, 1]
    assert source.path(0) == printable(name) and (ending == "txt" or source.classes == ("1", "2"))


@pytest.mark.parametrize("content", [b"\xff\xfea", b"\xff\xfe\0\0a\0\0\0", "a.png\nb.png".encode("utf-16-le")])
def test_other_encodings_of_lists_are_refused(content: bytes, tmp_path: Path) -> None:
    for ending in ("txt", "csv"):
        (tmp_path / f"l.{ending}").write_bytes(content)
        with pytest.raises(DeepClusterError, match=r"cannot be read \(.*give a text file"):
            open_images(tmp_path / f"l.{ending}")

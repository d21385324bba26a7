"""Names of images: their order, their text for people and files, and how a list's names are found on a disk."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from deepcluster.data.naming import find_on_disk, natural_key, printable

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

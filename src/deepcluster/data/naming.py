"""Names of images: their order, their text for people and files, and how a name in a list is found on a disk."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import PurePath, PurePosixPath

import numpy as np

from deepcluster.data.formats import PLAIN, format_of_head, has_image_ending
from deepcluster.errors import counted, warn


def natural_key(path: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key under which `img2` comes before `img10`; equal only for equal paths."""
    parts = re.split(r"([0-9]+)", path.casefold())
    parts[1::2] = (part.lstrip("0") for part in parts[1::2])
    # Digits and letters alternate, so that a position always compares like with like. Of two numbers the longer is the
    # larger; Python's own would end at 4,300 digits.
    return tuple((len(part) if k % 2 else 0, part) for k, part in enumerate(parts)), path


def printable(name: str) -> str:
    """A name as text that every file, terminal and JSON reader takes: a byte that is no UTF-8 becomes `\\xe9`.

    Names from disks and archives hold such bytes as lone surrogates (PEP 383). `find_on_disk` takes the text back.
    """
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte, from JSON or Windows
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def find_on_disk(path: str) -> str:
    """The path as the disk spells it; `path` itself where there is no such file under any spelling.

    A list made elsewhere may have a name in another Unicode form (NFC or NFD), in Latin-1, with backslashes, or as
    `printable` wrote it.
    """
    if (path.isascii() and "\\" not in path) or os.path.lexists(path):  # asks no disk for most names of a long list
        return path
    for spelled in dict.fromkeys([path, path.replace("\\", "/")]):
        found = "/" if spelled.startswith("/") else ""
        for part in filter(None, spelled.split("/")):
            there = os.path.join(found, part)
            if not os.path.lexists(there):
                there = os.path.join(found, _listed(found or ".").get(_spellings(part)[-1], part))
            found = there
        if os.path.lexists(found):
            return found
    return path


@lru_cache(maxsize=64)
def _listed(folder: str) -> dict[str, str]:
    """Each entry of a folder, under all its spellings."""
    try:
        return {spelled: entry for entry in os.listdir(folder) for spelled in _spellings(entry)}
    except OSError:
        return {}


def _spellings(name: str) -> list[str]:
    """How a name may be written elsewhere; the last one is what it says, where its bytes tell."""
    found = [printable(name)]
    if found[0] != name:
        with suppress(UnicodeEncodeError):
            found.append(name.encode("utf-8", "surrogateescape").decode("latin-1"))
    return [unicodedata.normalize("NFC", spelled) for spelled in found]


def is_image_name(name: str) -> bool:
    """Whether a file or archive member has an image's ending, is not hidden and no mask of VOC's."""
    return has_image_ending(name) and not _is_left_out(name)


def is_picture(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file or archive member is an image: by its ending, or, where that says nothing (`d41d8cd9`,
    `x.jpg_large`, `y.jpg?w=300`), by its first bytes, which `head` reads."""
    if is_image_name(name):
        return True
    if PurePosixPath(name).suffix.lower() in PLAIN or _is_left_out(name):
        return False
    try:
        return format_of_head(head()) is not None
    except (OSError, ValueError):
        return False


def is_hidden(part: str) -> bool:
    """Whether one step of a path is a hidden file or folder, or one that an operating system leaves behind."""
    return (part.startswith(".") and part not in (".", "..")) or part in ("__MACOSX", "@eaDir")


def _is_left_out(name: str) -> bool:
    return any(is_hidden(part) or part in MASKS for part in PurePosixPath(name).parts)


SPLIT = re.compile(
    r"(?:train|training|trainval|val|valid|validation|dev|test|testing|eval|unlabell?ed)(?:[-_]?\d{4})?", re.I
)
"""Folders that divide images by what they are for, not by what they show: `val`, COCO's `train2017`."""
BARE = frozenset(["images", "jpegimages"])
"""Folders that say only what lies in them, as VOC's JPEGImages."""
MASKS = frozenset(["SegmentationClass", "SegmentationObject"])
"""Folders of VOC whose PNG files say what each pixel shows, and are no photos."""


def labels_from_parents(paths: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels (N,) int64, -1 = none, and class names from each path's class folder; None where no path has one, or one
    has no folder at all.

    The class is the innermost folder, without those that only divide a set (`train`, `val2017`, ...). Where more than
    half of the innermost folders have the name of another one (`CLASS/images`, `CLASS/2019`), it is the folder above,
    which is told by a warning. Other folders of equal name are classes of their own, with the names of the folders
    above. Folders called `images` or `JPEGImages` are no classes.
    """
    parents = [path.rpartition("/")[0] for path in paths]
    folders = {parent: tuple(part for part in parent.split("/") if part not in ("", ".")) for parent in set(parents)}
    if not all(folders.values()):
        if any(folders.values()):
            warn("Some images lie in folders and others in none, so there are no labels: move those into folders, too")
        return None, ()
    if not folders:
        return None, ()
    alike = (len(set(parts)) == 1 for parts in zip(*folders.values(), strict=False))
    shared = sum(1 for _ in takewhile(bool, alike)) - (len(folders) == 1)
    if all(len(folder) > shared and SPLIT.fullmatch(folder[shared]) for folder in folders.values()):
        folders = {parent: folder[:shared] + folder[shared + 1 :] for parent, folder in folders.items()}
    repeated = ""
    while True:
        different = set(folders.values()) - {()}
        count = Counter(folder[-1] for folder in different)
        again = {folder for folder in different if count[folder[-1]] > 1}
        if 2 * len(again) <= len(different) or not any(len(folder) > 1 for folder in again):
            break
        repeated = repeated or min(again)[-1]
        folders = {at: folder[:-1] if folder in again and len(folder) > 1 else folder for at, folder in folders.items()}
    names = {at: "/".join(folder) if folder in again else folder[-1] for at, folder in folders.items() if folder}
    names = {at: "" if name.casefold() in BARE else name for at, name in names.items()}
    labels, classes = some_labels([names.get(parent) for parent in parents])
    if repeated and classes:
        some = ", ".join(map(repr, classes[:3])) + (" ..." if len(classes) > 3 else "")
        warn(
            f"Many innermost folders have the same names, such as {printable(repeated)!r}, so the folders above them"
            f" are taken as the {len(classes):,} classes: {some}"
        )
    if labels is not None and (labels < 0).any():
        without = next(parent for parent, label in zip(parents, labels, strict=True) if label < 0)
        warn(
            f"There is no label for {counted(int((labels < 0).sum()), 'image')} outside of class folders, such as"
            f" those in {printable(without)!r}"
        )
    return labels, classes


def labels_of_members(paths: Sequence[str], texts: Sequence[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels (N,) int64 and class names of images in archives: by the texts of WebDataset's .cls, or by folders."""
    if texts and None not in texts:
        return labels_from_names(texts)
    if any(text is not None for text in texts):
        warn("Some images have a .cls with their class beside them and others have none, so none of them is read")
    return labels_from_parents(paths)


def labels_from_names(names: Sequence[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels (N,) int64, classes in natural order; None for all when one image has no name."""
    if not names or any(name is None for name in names):
        return None, ()
    texts = {str(name): unicodedata.normalize("NFC", printable(str(name))) for name in names}
    classes = tuple(sorted(set(texts.values()), key=natural_key))
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[texts[str(name)]] for name in names], np.int64), classes


def some_labels(names: Sequence[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels where given, -1 where the field is empty; None when it is empty everywhere."""
    given = [(name or "").strip() for name in names]
    if not any(given):
        return None, ()
    known, classes = labels_from_names([name for name in given if name])
    labels = np.full(len(given), -1, np.int64)
    if known is not None:
        labels[[k for k, name in enumerate(given) if name]] = known
    return labels, classes


def short_name(name: str) -> str:
    """The last part of a path or glob; of `torchvision:CIFAR10?root=...` what stands before the options."""
    if re.match(r"\w{2,}:", name):
        return name.partition("?")[0]
    return PurePath(name).name or name

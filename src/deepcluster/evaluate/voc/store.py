"""The files of a PASCAL VOC set, in a folder or in tar files that are read in place.

This file knows the names of VOC's folders and nothing of what is in their files.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from deepcluster.data import storage
from deepcluster.data.tar import read_tar
from deepcluster.errors import BadImage, DeepClusterError

FOLDERS = ("Annotations", "ImageSets", "JPEGImages", "SegmentationClass", "SegmentationObject")
"""What makes a folder one of VOC's."""


class Store(Protocol):
    """Named files, as in one folder such as VOCdevkit/VOC2007."""

    name: str
    """As the user wrote it."""

    def listing(self, folder: str) -> list[str]:
        """Names of the files in a folder such as "ImageSets/Main", sorted; none where there is no such folder."""
        ...

    def read(self, path: str) -> bytes:
        """Content of a file such as "Annotations/000005.xml". Raises: BadImage."""
        ...

    def stamp(self, path: str) -> str:
        """Changes when the file does."""
        ...


class FolderStore:
    """Files below a folder."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root

    def listing(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DeepClusterError(
                f"{self.root / folder} cannot be read ({error.strerror or error}): make it readable."
            ) from error

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None

    def stamp(self, path: str) -> str:
        try:
            state = os.stat(self.root / path)
        except OSError:
            return "missing"
        return f"{state.st_size} {state.st_mtime_ns}"


class TarStore:
    """Files in one or several uncompressed tar files; each is one read of its bytes, nothing is unpacked.

    Args:
        name: as the user wrote it.
        found: path within VOC's folder -> tar file, byte offset, bytes.
    """

    def __init__(self, name: str, found: dict[str, tuple[str, int, int]]) -> None:
        self.name = name
        self.found = found
        self._listings: dict[str, list[str]] = {}
        for path in sorted(found):
            folder, _, file = path.rpartition("/")
            if not file.startswith("."):
                self._listings.setdefault(folder, []).append(file)
        self._stamps = {place: storage.look(place) for place in {place for place, _, _ in found.values()}}

    def listing(self, folder: str) -> list[str]:
        return list(self._listings.get(folder, []))

    def read(self, path: str) -> bytes:
        if path not in self.found:
            raise BadImage("No such file in the tar file")
        place, offset, length = self.found[path]
        try:
            return read_tar(partial(storage.read, place), offset, length)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None

    def stamp(self, path: str) -> str:
        if path not in self.found:
            return "missing"
        place, offset, length = self.found[path]
        return f"{self._stamps[place]} {offset} {length}"


def open_store(source: str | os.PathLike[str]) -> Store:
    """The VOC set in a folder (VOC2007 itself, or one above it), in a .tar, or in several as `VOC{trainval,test}.tar`.

    Raises:
        DeepClusterError: there is no such thing, it holds no VOC set, or more than one.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        roots = _folders(path)
        return FolderStore(name, path / _only(name, roots))
    if not path.exists() and not any(mark in name for mark in "*?[{") and not storage.is_url(name):
        raise DeepClusterError(f"There is no VOC set {name}: give the folder VOC2007 or a .tar that holds it.")
    members: dict[str, tuple[str, int, int]] = {}
    for place in storage.matching(name):
        members |= _scan(place)
    root = _only(name, _roots(members))
    inside = len(root) + 1 if root else 0
    return TarStore(name, {path[inside:]: at for path, at in members.items() if path.startswith(root)})


def _folders(path: Path) -> list[str]:
    """Where below `path`, itself or up to two levels down, VOC's folders are."""
    if _is_root({entry.name for entry in path.iterdir() if entry.is_dir()}):
        return [""]
    found: list[str] = []
    for pattern in ("*", "*/*"):
        for inner in sorted(path.glob(pattern)):
            if inner.is_dir() and _is_root({entry.name for entry in inner.iterdir() if entry.is_dir()}):
                found.append(inner.relative_to(path).as_posix())
        if found:
            return found
    return found


def _is_root(names: set[str]) -> bool:
    return bool(names & {"Annotations", "ImageSets"} or {"JPEGImages", "SegmentationClass"} <= names)


def _roots(members: dict[str, tuple[str, int, int]]) -> list[str]:
    folders: dict[str, set[str]] = {}
    for path in members:
        parts = PurePosixPath(path).parts
        for depth, part in enumerate(parts[:-1]):
            if part in FOLDERS:
                folders.setdefault("/".join(parts[:depth]), set()).add(part)
                break
    return sorted(root for root, names in folders.items() if _is_root(names))


def _only(name: str, roots: list[str]) -> str:
    if not roots:
        raise DeepClusterError(
            f"{name} holds no VOC set (a folder with Annotations, ImageSets and JPEGImages): give the folder VOC2007 or"
            " a .tar that holds it."
        )
    if len(roots) > 1:
        raise DeepClusterError(f"{name} holds several VOC sets ({', '.join(roots)}): give the folder of one of them.")
    return roots[0]


def _scan(place: str) -> dict[str, tuple[str, int, int]]:
    """Member -> tar file, byte offset and length, of every plain file in it."""
    found: dict[str, tuple[str, int, int]] = {}
    try:
        with storage.open_whole(place) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                if member.isreg() and not member.issparse():
                    found[member.name.removeprefix("./")] = (place, member.offset_data, member.size)
    except OSError as error:
        raise DeepClusterError(f"{place} cannot be read ({error.strerror or error}): check its name.") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        if not found:
            raise DeepClusterError(
                f"{place} is neither a folder nor an uncompressed tar file ({error}): unpack it, or repack it as a"
                " plain .tar."
            ) from error
        # cut short: what came before is read; images that are listed and missing are told one by one
    return found


def digest_of(store: Store, paths: list[str | None]) -> str:
    """Hex digest of the names and stamps of files; equal for the same files in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"{path}\0{store.stamp(path) if path else ''}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()

"""The files of a PASCAL VOC set, in a folder or inside uncompressed tar files, which are read in place.

This file knows the names of VOC's folders and nothing of what is in their files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from deepcluster.data import archive, storage
from deepcluster.digest import digest
from deepcluster.errors import BadImage, DeepClusterError

FOLDERS = ("Annotations", "ImageSets", "JPEGImages", "SegmentationClass")
"""The folders of a VOC set that are read."""


@dataclass(frozen=True)
class Entry:
    """`length` bytes: the file `location` or, with an offset, a member of the archive `location`."""

    location: str
    offset: int | None
    length: int
    stamp: str


class VOCFiles:
    """Named files of one set: where their content is, by paths below the set's own folder, such as
    "Annotations/000005.xml". Its `name` is the source as the user wrote it."""

    def __init__(self, name: str, entries: dict[str, Entry]) -> None:
        self.name = name
        self._entries = entries
        self._folders: dict[str, list[str]] = {}
        for path in sorted(entries):
            folder, _, file = path.rpartition("/")
            if not file.startswith("."):
                self._folders.setdefault(folder, []).append(file)

    def list_folder(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder such as "ImageSets/Main"; none where there is no such folder."""
        return self._folders.get(folder, [])

    def read(self, path: str) -> bytes:
        """Content of a file. Raises: BadImage: it is missing, unreadable or cut off."""
        entry = self._entries.get(path)
        if entry is None:
            raise BadImage("there is no such file")
        if entry.offset is not None:
            return archive.read_member(entry.location, entry.offset, entry.length)
        try:
            return storage.read_range(entry.location, 0, entry.length)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None

    def mark(self, path: str | None) -> int:
        """See `storage.mark`."""
        entry = self._entries.get(path) if path else None
        return storage.mark(entry.location, entry.stamp) if entry else 0

    def fingerprint(self, paths: Sequence[str | None]) -> str:
        """Digest of the names of files, their places in archives and what is in them, in this order."""
        entries = [self._entries.get(path or "") for path in paths]
        stamps = [one.stamp if one and storage.is_url(one.location) else "" for one in entries]
        here = list(dict.fromkeys(one.location for one in entries if one and not storage.is_url(one.location)))
        places = [(one.offset, one.length) if one else None for one in entries]
        return digest(paths, stamps, places, storage.content(here))


def open_files(source: str | os.PathLike[str]) -> VOCFiles:
    """The set in a folder (VOC2007 itself, or one above it), in a .tar, or in several as `VOC{trainval,test}.tar`;
    DeepClusterError where there is no such source, it holds no VOC set, or more than one."""
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        for above in ("", "*/", "*/*/"):
            roots = _roots(folder.relative_to(path) for own in FOLDERS for folder in path.glob(above + own))
            if roots:
                break
        return VOCFiles(name, _scan_folder(path / _only(name, roots)))
    if not path.exists() and not any(mark in name for mark in "*?[{") and not storage.is_url(name):
        raise DeepClusterError(f"There is no VOC set {name}: give the folder VOC2007 or a .tar that holds it.")
    members: dict[str, Entry] = {}
    for location in storage.expand(name):
        members |= _scan_archive(location)
    root = _only(name, _roots({PurePosixPath(member).parent for member in members}))
    prefix = f"{root}/" if root else ""
    return VOCFiles(name, {path[len(prefix) :]: at for path, at in members.items() if path.startswith(prefix)})


def _roots(folders: Iterable[PurePath]) -> list[str]:
    """The folders of VOC sets, by the folders that are there; images or masks alone are no set."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        own = next((part for part in folder.parts if part in FOLDERS), None)
        if own is not None:
            found.setdefault("/".join(folder.parts[: folder.parts.index(own)]), set()).add(own)
    return sorted(
        root
        for root, names in found.items()
        if names & {"Annotations", "ImageSets"} or {"JPEGImages", "SegmentationClass"} <= names
    )


def _only(name: str, roots: list[str]) -> str:
    if not roots:
        raise DeepClusterError(
            f"{name} holds no VOC set (a folder with Annotations, ImageSets and JPEGImages): give the folder VOC2007 or"
            " a .tar that holds it."
        )
    if len(roots) > 1:
        raise DeepClusterError(f"{name} holds several VOC sets ({', '.join(roots)}): give the folder of one of them.")
    return roots[0]


def _scan_folder(root: Path) -> dict[str, Entry]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise DeepClusterError(
                f"{error.filename} cannot be read ({error.strerror or error}): make it readable."
            ) from error

    locations = [entry.path for entry in os.scandir(root) if entry.is_file()]
    for folder in FOLDERS:
        for parent, _, files in os.walk(root / folder, onerror=refuse, followlinks=True):
            locations += [os.path.join(parent, file) for file in files]
    found: dict[str, Entry] = {}
    for location in locations:
        with contextlib.suppress(OSError):  # a broken link: its image is reported as missing
            size, stamp = storage.stat(location)
            found[Path(location).relative_to(root).as_posix()] = Entry(location, None, size, stamp)
    return found


def _scan_archive(location: str) -> dict[str, Entry]:
    """Every plain file of an archive; of one that is cut short, those before the cut."""
    advice = "unpack it, or repack it as a plain .tar"
    if archive.find_format(location) is None:
        raise DeepClusterError(f"{location} is neither a folder nor a .tar or .zip file: {advice}.")
    members = archive.scan(location, lambda name, head: True)
    if not members.names:
        raise DeepClusterError(f"{location} {members.trouble or 'is empty'}: {advice}.")
    stamp = str(storage.stat(location))
    locations = zip(members.names, members.offsets.tolist(), members.lengths.tolist(), strict=True)
    return {name: Entry(location, offset, length, stamp) for name, offset, length in locations}

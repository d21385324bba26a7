"""A PASCAL VOC set: images, boxes, labels and masks of one split, from a folder or in place from a .tar.

What is broken in it is left out, and kept in a list with its reason; nothing broken stops the reading.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deepcluster.data.decode import decode
from deepcluster.data.naming import is_image_name
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.voc.annotation import Annotation, Objects, objects_of, parse
from deepcluster.evaluate.voc.masks import VOID, read_mask
from deepcluster.evaluate.voc.store import Store, digest_of, open_store

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
KINDS = {"classification": "Main", "detection": "Main", "segmentation": "Segmentation"}
"""What is read -> the folder of ImageSets that lists it."""
EVERY = "all"
"""The split of every annotated image, for sets without lists."""


@dataclass(frozen=True)
class Problem:
    """Something broken. `file` is its path in the set; `reason` says what is wrong and what became of it."""

    file: str
    reason: str


class VOCImages:
    """An `ImageSource` of the images of a split; one that is missing or broken keeps its index."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __init__(self, name: str, store: Store, files: list[str | None], ids: Sequence[str]) -> None:
        self.name = name
        self._store = store
        self._files = files
        self._ids = tuple(ids)

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> str:
        return self._files[index] or f"JPEGImages/{self._ids[index]}.jpg"

    def read(self, index: int, short_side: int | None = None) -> np.ndarray:
        file = self._files[index]
        if file is None:
            raise BadImage("there is no such image")
        data = self._store.read(file)
        return decode(data, short_side)

    def fingerprint(self) -> str:
        return digest_of(self._store, self._files)


class VOC:
    """N images of a split with what is known of them.

    Attributes:
        name: as the user wrote the source.
        split: as asked for.
        kind: "classification", "detection" or "segmentation".
        ids: N names such as "000005".
        images: an `ImageSource`, for `load_pixels` and `Subject.pixels`.
        classes: C names: VOC's 20 in VOC's order where the set has no others, else the names found, sorted. A mask
            has 0 for the background and 1 + position for a class.
        problems: all that was found broken so far; annotations are read when they are first asked for.
    """

    def __init__(self, store: Store, split: str, kind: str, classes: Sequence[str] | None) -> None:
        self.name, self.split, self.kind = store.name, split, kind
        self._store = store
        self.problems: list[Problem] = []
        self._annotations = {os.path.splitext(file)[0] for file in store.listing("Annotations") if file[-4:] == ".xml"}
        self._masks = {os.path.splitext(file)[0] for file in store.listing("SegmentationClass") if file[-4:] == ".png"}
        self.ids = self._listed()
        files = _preferred(store.listing("JPEGImages"))
        paths = [f"JPEGImages/{files[name]}" if name in files else None for name in self.ids]
        for name, path in zip(self.ids, paths, strict=True):
            if path is None:
                self._tell(f"JPEGImages/{name}.jpg", "there is no such image; it is left out")
        if not any(paths):
            raise DeepClusterError(
                f"None of the {len(paths)} images of split {split} of {self.name} is in its JPEGImages: check that"
                " the set is whole."
            )
        self.images = VOCImages(f"{self.name} ({split})", store, paths, self.ids)
        self.classes = tuple(classes) if classes is not None else self._classes()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"VOC({self.name!r}, {self.split!r}, {len(self)} images, {len(self.classes)} classes)"

    @cached_property
    def objects(self) -> list[Objects]:
        """Objects of each of the N images; none where there is no readable annotation (see `annotated`)."""
        number = {name: position for position, name in enumerate(self.classes)}
        return [objects_of(one or _EMPTY, number) for one in self._read]

    @property
    def annotated(self) -> np.ndarray:
        """(N,) bool, images whose annotation could be read: only there no object means that there is none."""
        return np.array([one is not None for one in self._read], bool)

    def labels_matrix(self, origin: str = "auto") -> np.ndarray:
        """(N, C) int8: 1 = the image shows the class, 0 = not, -1 = not told, to be left out for that class.

        -1 stands where all objects of the class are difficult, as VOC defines it, and where an annotation is missing.

        Args:
            origin: "lists" = ImageSets/Main/CLASS_SPLIT.txt, "annotations" = Annotations; "auto" = the lists for
                the classes that have one, the annotations for all others.

        Raises:
            DeepClusterError: there are no such lists, or they cannot be read.
        """
        if origin not in ("auto", "lists", "annotations"):
            raise DeepClusterError(f"There is no origin {origin!r} of labels: use auto, lists or annotations.")
        listed = {} if origin == "annotations" else self._class_lists()
        missing = [name for name in self.classes if name not in listed]
        if origin == "lists" and missing:
            raise DeepClusterError(
                f"{self.name} has no ImageSets/Main/{missing[0]}_{self.split}.txt: use origin annotations."
            )
        matrix = np.full((len(self), len(self.classes)), -1, np.int8)
        for column, name in enumerate(self.classes):
            if name in listed:
                matrix[:, column] = [listed[name].get(image, -1) for image in self.ids]
        if missing:
            columns = [self.classes.index(name) for name in missing]
            matrix[:, columns] = self._from_annotations()[:, columns]
        return matrix

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8 classes of the pixels of image `index`: 0 background, 1 … C, 255 void.

        Raises:
            BadImage: there is no mask, or it is broken.
        """
        name = self.ids[index]
        if name not in self._masks:
            raise BadImage("there is no mask")
        mask = read_mask(self._store.read(f"SegmentationClass/{name}.png"))
        largest = int(mask[mask != VOID].max(initial=0))
        if largest > len(self.classes):
            raise BadImage(f"its mask has class {largest} of {len(self.classes)}")
        return mask

    def summary(self) -> str:
        """One line for the screen about what was broken; empty when nothing was."""
        if not self.problems:
            return ""
        first = self.problems[0]
        more = f" and {len(self.problems) - 1} more" if len(self.problems) > 1 else ""
        return f"{self.images.name}: {first.file}: {first.reason}{more}"

    def _tell(self, file: str, reason: str) -> None:
        self.problems.append(Problem(file, reason))

    @cached_property
    def _read(self) -> list[Annotation | None]:
        found: list[Annotation | None] = []
        known = set(self.classes)
        for name in self.ids:
            one = self._parsed(name)
            found.append(one)
            if one is not None:
                for stranger in sorted({part.name for part in one.found} - known):
                    self._tell(f"Annotations/{name}.xml", f"{stranger!r} is none of the classes; it is left out")
        return found

    def _parsed(self, name: str) -> Annotation | None:
        file = f"Annotations/{name}.xml"
        if name not in self._annotations:
            self._tell(file, "there is no such annotation; the image has no labels")
            return None
        try:
            one = parse(self._store.read(file))
        except BadImage as error:
            self._tell(file, f"{error}; the image has no labels")
            return None
        for reason in one.problems:
            self._tell(file, reason)
        return one

    def _from_annotations(self) -> np.ndarray:
        matrix = np.zeros((len(self), len(self.classes)), np.int8)
        number = {name: position for position, name in enumerate(self.classes)}
        for row, one in zip(matrix, self._read, strict=True):
            if one is None:
                row[:] = -1
                continue
            for part in one.found:
                if part.name in number:
                    column = number[part.name]
                    row[column] = 1 if not part.difficult else row[column] or -1  # a clear one outweighs difficult ones
        return matrix

    def _class_lists(self) -> dict[str, dict[str, int]]:
        """Class -> image -> 1, 0, -1, of the classes that have a list for this split."""
        there = set(self._store.listing("ImageSets/Main"))
        found = {}
        for name in self.classes:
            file = f"{name}_{self.split}.txt"
            if file in there:
                found[name] = self._class_list(f"ImageSets/Main/{file}")
        return found

    def _class_list(self, path: str) -> dict[str, int]:
        values = {"1": 1, "-1": 0, "0": -1}  # VOC's: present, absent, difficult
        found: dict[str, int] = {}
        for number, words in enumerate(_lines(self._store, path), start=1):
            if len(words) < 2 or words[1] not in values:
                self._tell(path, f"line {number} is not an image and 1, 0 or -1; it is left out")
                continue
            found[words[0]] = values[words[1]]
        return found

    def _listed(self) -> tuple[str, ...]:
        """The images of the split, each once."""
        folder = f"ImageSets/{KINDS[self.kind]}"
        lists = [file[:-4] for file in self._store.listing(folder) if file.endswith(".txt")]
        splits = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]
        if self.split in splits:
            wanted = [self.split]
        elif self.split == "trainval" and {"train", "val"} <= set(splits):
            wanted = ["train", "val"]
        elif self.split == EVERY:
            ids = tuple(sorted(self._masks if self.kind == "segmentation" else self._annotations))
            if not ids:
                raise DeepClusterError(f"{self.name} has nothing annotated for {self.kind}.")
            return ids
        else:
            raise DeepClusterError(
                f"{self.name} has no split {self.split!r} in {folder}: it has {', '.join([*splits, EVERY])} ({EVERY} ="
                " every annotated image)."
            )
        rows = [words[0] for name in wanted for words in _lines(self._store, f"{folder}/{name}.txt")]
        if not rows:
            raise DeepClusterError(f"{folder}/{self.split}.txt of {self.name} names no image: restore the list.")
        return tuple(dict.fromkeys(rows))

    def _classes(self) -> tuple[str, ...]:
        """VOC's where there are no others; all names of the set and not of the split alone, so that splits agree."""
        lists = [file[:-4] for file in self._store.listing("ImageSets/Main") if file.endswith(".txt")]
        named = {name.rpartition("_")[0] for name in lists if name.rpartition("_")[2] in lists} - {""}
        if not named and self.kind == "segmentation" and "class_names.txt" in self._store.listing(""):
            names = [" ".join(words) for words in _lines(self._store, "class_names.txt")]
            names = [name for name in names if name.strip("_").lower() not in ("background", "void")]
            plain = tuple("".join(filter(str.isalnum, name)) for name in names)
            return VOC_CLASSES if plain == VOC_CLASSES else tuple(names)  # some write "potted plant"
        if not named:
            for name in sorted(self._annotations):
                try:
                    named |= {part.name for part in parse(self._store.read(f"Annotations/{name}.xml")).found}
                except BadImage:
                    continue  # told when its image is read
        if named <= set(VOC_CLASSES) and (named or self.kind == "segmentation"):
            return VOC_CLASSES
        if not named:
            raise DeepClusterError(f"No annotation of {self.name} names an object: check its Annotations.")
        return tuple(sorted(named))


_EMPTY = Annotation((), (0, 0), ())


def open_voc(
    source: str | os.PathLike[str], split: str, kind: str = "classification", classes: Sequence[str] | None = None
) -> VOC:
    """Opens one split of a PASCAL VOC set.

    Args:
        source: a folder (VOCdevkit/VOC2007, or one that holds a single such folder), a plain .tar of it, or several
            as `VOC{trainval,test}_06-Nov-2007.tar`; tar files are read in place.
        split: train, val, trainval, test or another list in ImageSets; `all` = every annotated image. Where there
            is no trainval it is train and val.
        kind: "classification" and "detection" read ImageSets/Main, "segmentation" reads ImageSets/Segmentation.
        classes: use these, in this order, in place of those of the set; those of a training set for its test set.

    Raises:
        DeepClusterError: no VOC set, or no such split; the sentence names the splits that there are.
    """
    if kind not in KINDS:
        raise DeepClusterError(f"There is no kind {kind!r} of VOC set: use {', '.join(KINDS)}.")
    return VOC(open_store(source), split, kind, classes)


def _preferred(names: list[str]) -> dict[str, str]:
    """Name without its ending -> file; of several with one name, the .jpg."""
    found: dict[str, str] = {}
    for file in names:
        stem, ending = os.path.splitext(file)
        if is_image_name(file) and (stem not in found or ending.lower() == ".jpg"):
            found[stem] = file
    return found


def _lines(store: Store, path: str) -> list[list[str]]:
    """The words of each line that has some. Raises: DeepClusterError."""
    try:
        text = store.read(path).decode("utf-8-sig")
    except (BadImage, UnicodeDecodeError) as error:
        raise DeepClusterError(f"{path} of {store.name} cannot be read ({error}): restore the list.") from error
    return [words for words in map(str.split, text.splitlines()) if words]

"""A PASCAL VOC set: images, boxes, labels and masks of one split, from a folder or in place from .tar files.

What is broken is left out and listed with its reason; nothing broken stops the reading. torchvision's VOC readers are
not used because they need VOC's own folder names and splits, read no .tar, and stop at the first broken file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from deepcluster.data.naming import is_image_name
from deepcluster.data.source import Encoded
from deepcluster.errors import BadImage, DeepClusterError, counted
from deepcluster.evaluate.voc.annotation import VOID, Annotation, Objects, parse_annotation, read_mask
from deepcluster.evaluate.voc.files import VOCFiles, open_files

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
Kind = Literal["classification", "detection", "segmentation"]
ALL = "all"
"""The split of every annotated image, for sets without lists."""


@dataclass(frozen=True)
class Problem:
    """Something broken: `file` is its path in the set, `reason` says what is wrong and what became of it."""

    file: str
    reason: str


class VOCImages(Encoded):
    """An `ImageSource` of the images of a split; one that is missing or broken keeps its index."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __init__(self, name: str, files: VOCFiles, ids: Sequence[str]) -> None:
        self.name = name
        self._files, self._ids = files, tuple(ids)
        found: dict[str, str] = {}
        for file in files.list_folder("JPEGImages"):
            stem, ending = os.path.splitext(file)
            if is_image_name(file) and (stem not in found or ending.lower() == ".jpg"):
                found[stem] = f"JPEGImages/{file}"
        self.paths = [found.get(name) for name in ids]

    def __len__(self) -> int:
        return len(self._ids)

    def path(self, index: int) -> str:
        return self.paths[index] or f"JPEGImages/{self._ids[index]}.jpg"

    def raw(self, index: int) -> bytes:
        return self._files.read(self.path(index))

    def marks(self) -> np.ndarray:
        return np.fromiter((self._files.mark(path) for path in self.paths), np.uint64)

    def fingerprint(self) -> str:
        return self._files.fingerprint(self.paths)


class VOC:
    """N images of a split with what is known of them; `open_voc` makes it.

    Attributes:
        name: as the user wrote the source.
        split: as asked for.
        kind: "classification", "detection" or "segmentation".
        ids: N names such as "000005".
        images: an `ImageSource`, for `load_pixels` and `Subject.pixels`.
        classes: C names: VOC's 20 in VOC's order where the set has no others, else the names found, sorted. A mask
            has 0 for the background and 1 + position for a class.
        problems: all that was found broken so far; annotations are read when they are first needed.
    """

    def __init__(self, files: VOCFiles, split: str, kind: Kind, classes: Sequence[str] | None) -> None:
        self.name, self.split, self.kind = files.name, split, kind
        self._files = files
        self.problems: list[Problem] = []
        self._annotation_names = _stems(files.list_folder("Annotations"), ".xml")
        self._mask_names = set(_stems(files.list_folder("SegmentationClass"), ".png"))
        self.ids = self._listed()
        self.images = VOCImages(f"{self.name} ({split})", files, self.ids)
        for index, path in enumerate(self.images.paths):
            if path is None:
                self._report(self.images.path(index), "there is no such image; it is left out")
        if not any(self.images.paths):
            raise DeepClusterError(
                f"None of the {counted(len(self), 'image')} of split {split} of {self.name} is in its JPEGImages: check"
                " that the set is complete."
            )
        self.classes = tuple(classes) if classes is not None else self._own_classes()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def objects(self) -> list[Objects]:
        """Objects of each of the N images; none where there is no readable annotation."""
        none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
        return [none if one is None else one.objects(self.classes) for one in self._annotations]

    def labels_matrix(self) -> np.ndarray:
        """(N, C) int8: 1 = the image shows the class, 0 = not, -1 = unknown, to be left out for that class.

        They come from ImageSets/Main/CLASS_SPLIT.txt for the classes that have such a list, from the annotations for
        all others. -1 stands where all objects of the class are difficult, as VOC defines it, and where an annotation
        is missing.
        """
        matrix = np.full((len(self), len(self.classes)), -1, np.int8)
        lists = self._files.list_folder("ImageSets/Main")
        for column, name in enumerate(self.classes):
            if f"{name}_{self.split}.txt" in lists:
                values = self._class_list(f"ImageSets/Main/{name}_{self.split}.txt")
                matrix[:, column] = [values.get(image, -1) for image in self.ids]
                continue
            for row, annotation in enumerate(self._annotations):
                if annotation is not None:
                    difficult = annotation.difficult[[one == name for one in annotation.names]]
                    matrix[row, column] = 0 if not len(difficult) else -1 if difficult.all() else 1
        return matrix

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8 classes of the pixels of image `index`: 0 background, 1 ... C, 255 void; BadImage where there is
        no mask, or it is broken."""
        name = self.ids[index]
        if name not in self._mask_names:
            raise BadImage("there is no mask")
        mask = read_mask(self._files.read(f"SegmentationClass/{name}.png"))
        largest = int(mask[mask != VOID].max(initial=0))
        if largest > len(self.classes):
            raise BadImage(f"its mask has class {largest} of {len(self.classes)}")
        return mask

    def summary(self) -> str:
        """One line for the screen about what was broken; empty when nothing was."""
        if not self.problems:
            return ""
        first, *more = self.problems
        return f"{self.images.name}: {first.file}: {first.reason}" + (f" and {len(more)} more" if more else "")

    def _report(self, file: str, reason: str) -> None:
        self.problems.append(Problem(file, reason))

    @cached_property
    def _annotations(self) -> list[Annotation | None]:
        found: list[Annotation | None] = []
        for name in self.ids:
            file = f"Annotations/{name}.xml"
            try:
                annotation = parse_annotation(self._files.read(file))
            except BadImage as error:
                self._report(file, f"{error}; the image has no labels")
                found.append(None)
                continue
            unknown = sorted(set(annotation.names) - set(self.classes))
            for reason in annotation.problems + [f"{one!r} is none of the classes; it is left out" for one in unknown]:
                self._report(file, reason)
            found.append(annotation)
        return found

    def _class_list(self, path: str) -> dict[str, int]:
        """Image -> 1, 0 or -1."""
        values = {"1": 1, "-1": 0, "0": -1}  # VOC's: present, absent, difficult
        found: dict[str, int] = {}
        for number, words in enumerate(self._lines(path), start=1):
            if len(words) < 2 or words[1] not in values:
                self._report(path, f"line {number} is not an image and 1, 0 or -1; it is left out")
                continue
            found[words[0]] = values[words[1]]
        return found

    def _listed(self) -> tuple[str, ...]:
        """The images of the split, each once."""
        folder = "ImageSets/Segmentation" if self.kind == "segmentation" else "ImageSets/Main"
        lists = _stems(self._files.list_folder(folder), ".txt")
        splits = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]
        if self.split in splits:
            wanted = [self.split]
        elif self.split == "trainval" and {"train", "val"} <= set(splits):
            wanted = ["train", "val"]
        elif self.split == ALL:
            ids = tuple(sorted(self._mask_names if self.kind == "segmentation" else self._annotation_names))
            if not ids:
                raise DeepClusterError(f"{self.name} has nothing annotated for {self.kind}.")
            return ids
        else:
            raise DeepClusterError(
                f"{self.name} has no split {self.split!r} in {folder}: it has {', '.join([*splits, ALL])} ({ALL} ="
                " every annotated image)."
            )
        rows = [words[0] for name in wanted for words in self._lines(f"{folder}/{name}.txt")]
        if not rows:
            raise DeepClusterError(f"{folder}/{self.split}.txt of {self.name} names no image: restore the list.")
        return tuple(dict.fromkeys(rows))

    def _own_classes(self) -> tuple[str, ...]:
        """VOC's where there are no others; all names of the set, not of the split alone, so that splits agree."""
        lists = _stems(self._files.list_folder("ImageSets/Main"), ".txt")
        named = {name.rpartition("_")[0] for name in lists if name.rpartition("_")[2] in lists} - {""}
        if not named and self.kind == "segmentation" and "class_names.txt" in self._files.list_folder(""):
            names = [" ".join(words) for words in self._lines("class_names.txt")]
            names = [name for name in names if name.strip("_").lower() not in ("background", "void")]
            plain = tuple("".join(filter(str.isalnum, name)) for name in names)
            return VOC_CLASSES if plain == VOC_CLASSES else tuple(names)  # some write "potted plant"
        if not named:
            for name in self._annotation_names:
                try:
                    annotation = parse_annotation(self._files.read(f"Annotations/{name}.xml"))
                except BadImage:
                    continue  # reported when its image is read
                named |= set(annotation.names)
        if named <= set(VOC_CLASSES) and (named or self.kind == "segmentation"):
            return VOC_CLASSES
        if not named:
            raise DeepClusterError(f"No annotation of {self.name} names an object: check its Annotations.")
        return tuple(sorted(named))

    def _lines(self, path: str) -> list[list[str]]:
        """The words of each line that has some. Raises: DeepClusterError."""
        try:
            text = self._files.read(path).decode("utf-8-sig")
        except (BadImage, UnicodeDecodeError) as error:
            raise DeepClusterError(f"{path} of {self.name} cannot be read ({error}): restore the list.") from error
        return [words for words in map(str.split, text.splitlines()) if words]


def open_voc(
    source: str | os.PathLike[str], split: str, kind: Kind = "classification", classes: Sequence[str] | None = None
) -> VOC:
    """Opens one split of a PASCAL VOC set.

    Args:
        source: a folder (VOCdevkit/VOC2007, or one that holds a single such folder), a plain .tar or a .zip of it, or
            several as `VOC{trainval,test}_06-Nov-2007.tar`; archives are read in place.
        split: train, val, trainval, test or another list in ImageSets; `all` = every annotated image. Where there
            is no trainval it is train and val.
        kind: "classification" and "detection" read ImageSets/Main, "segmentation" reads ImageSets/Segmentation.
        classes: use these, in this order, in place of those of the set; those of a training set for its test set.

    Raises:
        DeepClusterError: no VOC set, or no such split; the sentence names the splits that there are.
    """
    if kind not in get_args(Kind):
        raise DeepClusterError(f"There is no kind {kind!r} of VOC set: use {', '.join(get_args(Kind))}.")
    return VOC(open_files(source), split, kind, classes)


def _stems(files: Iterable[str], ending: str) -> list[str]:
    return [file.removesuffix(ending) for file in files if file.endswith(ending)]

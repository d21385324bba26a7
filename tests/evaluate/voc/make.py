"""Makes tiny PASCAL VOC sets for the tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

Object = tuple[str, tuple[object, object, object, object], bool]
"""Class, xmin ymin xmax ymax as VOC writes them, difficult."""


def annotation(objects: list[Object], width: int = 40, height: int = 30) -> str:
    """The XML of one image."""
    parts = [f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    for name, box, difficult in objects:
        sides = "".join(
            f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        parts.append(
            f"<object><name>{name}</name><truncated>0</truncated><difficult>{int(difficult)}</difficult>"
            f"<bndbox>{sides}</bndbox></object>"
        )
    return "".join(parts) + "</annotation>"


def make_voc(
    root: Path,
    splits: dict[str, list[str]],
    annotations: dict[str, str],
    *,
    colors: dict[str, tuple[int, int, int]] | None = None,
    size: tuple[int, int] = (40, 30),
) -> Path:
    """Writes a set of JPEG pictures, each of one color with noise, and its lists; returns `root`."""
    random = np.random.default_rng(0)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in annotations.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        color = np.array((colors or {}).get(name, (90, 120, 150)))
        picture = color + random.normal(0, 12, (size[1], size[0], 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    for split, names in splits.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def as_tar(folder: Path, file: Path, inside: str) -> Path:
    """The set as a plain tar file, under the folder `inside`."""
    with tarfile.open(file, "w") as archive:
        archive.add(folder, inside)
        note = tarfile.TarInfo("LICENSE")
        note.size = 4
        archive.addfile(note, io.BytesIO(b"MIT\n"))
    return file


SIDE = 48
COLORS = {"dog": (250, 60, 40), "cat": (30, 80, 250)}


def make_shapes(root: Path) -> Path:
    """Squares of two colors on gray, with masks: red ones are dogs, blue ones are cats. One image is broken."""
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{number:03}" for number in range(24)]
    for number, name in enumerate(names):
        picture = random.normal(120, 8, (SIDE, SIDE, 3))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        kind = ("dog", "cat")[number % 2]
        side = int(random.integers(12, 20))
        x, y = (int(value) for value in random.integers(2, SIDE - side - 2, 2))
        picture[y : y + side, x : x + side] = COLORS[kind]
        mask[y - 1 : y + side + 1, x - 1 : x + side + 1] = 255
        mask[y : y + side, x : x + side] = {"cat": 8, "dog": 12}[kind]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / f"JPEGImages/{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
        box = (x + 1, y + 1, x + side, y + side)
        (root / f"Annotations/{name}.xml").write_text(annotation([(kind, box, False)], SIDE, SIDE))
    (root / "JPEGImages/003.jpg").write_bytes(b"broken")
    for folder in ("Main", "Segmentation"):
        (root / f"ImageSets/{folder}/train.txt").write_text("\n".join(names[:16]))
        (root / f"ImageSets/{folder}/val.txt").write_text("\n".join(names[16:]))
    return root

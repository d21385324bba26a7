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

"""The pictures that `deepcluster visualize` left in a run folder, made small enough to stand on one page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "filters": "First-layer filters",
    "activations": "Images made to excite {}",
    "top-images": "Images that excite filters of {} most",
    "neighbors": "Nearest neighbors, trained and untrained",
    "map": "The features on a plane ({})",
    "purity": "Size and purity of clusters",
    "confusion": "Clusters and classes",
    "compare": "Beside another run: {}",
}
"""Beginning of a file's name -> what it shows; what follows in the name stands for the braces."""
ALL_TOGETHER = 4_000_000
"""Bytes of all pictures together at most; as text they take a third more."""
LARGEST = 600_000
"""Bytes of one."""


@dataclass(frozen=True)
class Gathered:
    """A picture with what it shows, as a data URI."""

    title: str
    uri: str


def gather(folder: Path) -> list[Gathered]:
    """The pictures in `folder` that a page about a run shows, in the order of `KINDS`; none is no mistake.

    A picture larger than its share of `ALL_TOGETHER` becomes a JPEG, and smaller until it fits.
    """
    named = [
        (title.format(path.stem[len(kind) + 1 :]), path)
        for kind, title in KINDS.items()
        for path in sorted(folder.glob(f"{kind}*.png"))
        if path.stem == kind or ("{}" in title and path.stem.startswith(f"{kind}-"))
    ]
    share = min(LARGEST, ALL_TOGETHER // max(len(named), 1))
    found = [(title, embedded(path, share)) for title, path in named]
    return [Gathered(title, uri) for title, uri in found if uri is not None]


def embedded(path: Path, most: int) -> str | None:
    """A PNG file as a data URI of about `most` bytes before its encoding; None where it is no picture."""
    from PIL import Image

    try:
        content, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return None  # half a file, or someone else's
    while len(content) > most and min(picture.size) > 32:
        if kind == "jpeg":
            picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "jpeg", quality=86, optimize=True)
        content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""`deepcluster visualize RUN top-images`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from deepcluster.cli.pictures.common import OfNetwork, called, pixels_of

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class TopImages(OfNetwork):
    """The nine images that excite each filter most, whole and cropped to what it saw (paper's figures 4 and 5)."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to search; by default those the run was trained on."""
    taps: tuple[str, ...] = ()
    """Layers, such as conv1 conv3 conv5, all in one pass; by default the deepest one that has maps."""
    filters: tuple[int, ...] = ()
    """Numbers of filters of each layer; by default --count of them drawn at random."""
    count: int = 12
    """How many filters of each layer where none are named."""
    images: int = 9
    """Images of each filter."""
    score: Literal["mean", "max"] = "mean"
    """What ranks the images: the mean of the filter's map (the paper's), or its maximum."""
    beside: Literal["paper", "fourier"] | None = None
    """Also draw the image that excites the filter most, by this recipe of `activations`, at the left."""
    steps: int | None = None
    """Steps of that recipe; by default its own."""


def draw(subject: Subject, chosen: TopImages, screen: Screen) -> list[Path]:
    """Writes top-images-TAP.png for each layer."""
    import numpy as np

    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize import style
    from deepcluster.visualize.layers import chosen_filters, deepest
    from deepcluster.visualize.page import titled
    from deepcluster.visualize.receptive_fields import receptive_field
    from deepcluster.visualize.report_text import short
    from deepcluster.visualize.top_images import seen_pixels, top_images, top_sheet

    if chosen.steps is not None and chosen.beside is None:
        raise DeepClusterError("--steps belong to a recipe: name it by --beside paper or --beside fourier.")
    if chosen.images < 1:
        raise DeepClusterError(f"--images {chosen.images} is no number of images: ask for one or more.")
    backbone = subject.backbone.to(subject.device).eval()
    taps = chosen.taps or (deepest(backbone),)
    wanted = {tap: chosen_filters(backbone, tap, chosen.filters, chosen.count, chosen.seed) for tap in taps}
    pixels = pixels_of(subject, chosen.source)
    with screen.bar("images", len(pixels)) as bar:
        found = top_images(
            backbone, pixels, wanted, count=chosen.images, score=chosen.score, device=subject.device, check=bar
        )
    images = seen_pixels(backbone, pixels, np.concatenate([best.index.flatten().numpy() for best in found.values()]))
    files = []
    for tap, best in found.items():
        field = receptive_field(backbone, tap)
        small = field is not None and min(field.size) < backbone.image_size
        extra = _ascended(subject, chosen, tap, wanted[tap], screen) if chosen.beside else None
        columns = (2 if extra else 3) if small else (3 if extra else 4)
        sheet = top_sheet(
            best, wanted[tap], images, field if small else None, columns=columns, side=64 if small else 84, extra=extra
        )
        rule = "mean of the filter's map" if chosen.score == "mean" else "maximum of the filter's map"
        crop = (
            f" At the right, the {field.size[0]} x {field.size[1]} pixels that the strongest place of the map sees."
            if small and field is not None
            else " Each place of the map sees the whole image."
        )
        beside = " At the left, an image made to excite the filter." if extra else ""
        title = f"The {chosen.images} images that excite filters of {tap} most"
        searched = f"out of {len(pixels):,} images of {short(pixels.source.name)}"
        text = f"{called(subject)}, {searched}, by the {rule}.{beside}{crop}"
        file = chosen.folder(subject) / f"top-images-{tap.replace('/', '-')}.png"
        files.append(style.save(titled(sheet, title, text), file))
    return files


def _ascended(subject: Subject, chosen: TopImages, tap: str, numbers: list[int], screen: Screen) -> list:
    """An image for each filter, made by a recipe."""
    from deepcluster.cli.pictures.activations import Activations, ascend, filter_objective, images_of

    assert chosen.beside is not None
    how = Activations(
        model=chosen.model, what="activations", recipe=chosen.beside, steps=chosen.steps, seed=chosen.seed
    )
    objective = filter_objective(tap, chosen.beside)
    found = ascend(subject, objective, numbers, how, screen, size=subject.image_size)
    return images_of(subject, found, chosen.beside)

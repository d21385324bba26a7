"""`deepcluster visualize RUN activations`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepcluster.cli.pictures.common import OfNetwork, called

if TYPE_CHECKING:
    import numpy as np

    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.visualize.activation_maximization import Ascent
    from deepcluster.visualize.objectives import Objective

AT_ONCE = 32
"""Images changed together."""


@dataclass(frozen=True, kw_only=True)
class Activations(OfNetwork):
    """Images that excite filters, or clusters, as much as possible, by gradient ascent (paper's figure 4)."""

    tap: str | None = None
    """Layer, such as conv3; by default the deepest one that has maps."""
    filters: tuple[int, ...] = ()
    """Numbers of filters; by default --count of them drawn at random."""
    count: int = 16
    """How many filters where none are named."""
    clusters: tuple[int, ...] = ()
    """Numbers of a run's clusters, in place of filters."""
    by: Literal["centroid", "logit"] | None = None
    """For clusters: come near the centroid (default), or raise the answer of the last checkpoint's classifier."""
    recipe: Literal["paper", "fourier"] = "paper"
    """paper = bare pixels from noise, steps of one length, weight decay and blur; fourier = waves of decorrelated
    colors seen through random shifts, sizes and turns."""
    objective: Literal["contrast", "channel", "neuron"] | None = None
    """contrast = the filter's mean against all others of its layer (the paper's), channel = the filter's mean (the
    default of fourier), neuron = the middle of its map."""
    steps: int | None = None
    """Steps; by default 1000 (paper; its authors advise 30000 for the first layer, 3000 for the last) or 256."""
    lr: float | None = None
    """Length of a step: 3 (paper; 30 for the last layer), or Adam's rate, 0.05 (fourier)."""
    decay: float | None = None
    """Weight of the squared length of the image that is taken off; by default 1e-5 (paper) or 0."""
    smooth: float = 0.0
    """Weight of the mean difference of neighboring pixels that is taken off."""
    size: int | None = None
    """Side of the images in pixels; by default what the network sees."""


def draw(subject: Subject, chosen: Activations, screen: Screen) -> list[Path]:
    """Writes activations-TAP.png or activations-clusters.png."""
    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize import style
    from deepcluster.visualize.grid import grid
    from deepcluster.visualize.layers import chosen_filters, deepest, takes
    from deepcluster.visualize.page import below, line, titled

    if chosen.clusters and (chosen.filters or chosen.tap or chosen.objective):
        raise DeepClusterError("--clusters stand in place of filters: leave out --tap, --filters and --objective.")
    if chosen.by and not chosen.clusters:
        raise DeepClusterError("--by says how clusters are approached: name some by --clusters.")
    objective: Callable[[Sequence[int]], Objective]
    if chosen.clusters:
        numbers, tap, word = list(chosen.clusters), "clusters", "cluster"
        objective = _clusters(subject, numbers, chosen.by or "centroid")
    else:
        tap, word = chosen.tap or deepest(subject.backbone), "filter"
        numbers = chosen_filters(subject.backbone, tap, chosen.filters, chosen.count, chosen.seed)
        objective = filter_objective(tap, chosen.recipe, chosen.objective)
    size = subject.image_size if chosen.size is None else chosen.size
    takes(subject.backbone, size)
    found = ascend(subject, objective, numbers, chosen, screen, size=size)
    pictures = images_of(subject, found, chosen.recipe)
    scale = max(1, round(112 / size))
    tiles = [
        below([line(f"{word} {number}", size * scale, size=13), picture.repeat(scale, 0).repeat(scale, 1)], gap=0)
        for number, picture in zip(numbers, pictures, strict=True)
    ]
    columns = next(c for c in (8, 7, 6, 5, 4, 3, 2, 1) if c * size * scale <= 1100 or c == 1)
    where = "clusters" if chosen.clusters else tap
    page = titled(
        grid(tiles, min(columns, len(tiles)), gap=6),
        f"What excites {where} of {called(subject)}",
        said(subject, chosen),
    )
    return [style.save(page, chosen.folder(subject) / f"activations-{tap.replace('/', '-')}.png")]


def said(subject: Subject, chosen: Activations) -> str:
    """How the images were found, in a sentence or two."""
    gray = " They are shown in gray: behind Sobel the network sees no colors." if blind(subject) else ""
    if chosen.recipe == "paper":
        steps = chosen.steps or 1000
        return (
            f"Images found by {steps:,} steps of gradient ascent from noise, with weight decay and a faint blur; each"
            f" is brought to mean 0.5 and deviation 0.1.{gray}"
        )
    steps = chosen.steps or 256
    return (
        f"Images found by {steps:,} steps of Adam on waves of decorrelated colors, seen through random shifts, sizes"
        f" and turns.{gray}"
    )


def filter_objective(tap: str, recipe: str, name: str | None = None) -> Callable[[Sequence[int]], Objective]:
    """Makes the objective of some filters of a layer."""
    from deepcluster.visualize.objectives import against_others, channel, neuron

    made = {"contrast": against_others, "channel": channel, "neuron": neuron}
    which = made[name or {"paper": "contrast", "fourier": "channel"}[recipe]]
    return lambda filters: which(tap, filters)


def ascend(
    subject: Subject,
    objective: Callable[[Sequence[int]], Objective],
    numbers: Sequence[int],
    chosen: Any,
    screen: Screen,
    *,
    size: int,
) -> list[Ascent]:
    """Images for some filters or clusters, a few dozen at once."""
    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize.activation_maximization import DECAY, ascend_pixels, ascend_waves
    from deepcluster.visualize.objectives import Glass, l2, total_variation

    paper = chosen.recipe == "paper"
    steps = (1000 if paper else 256) if chosen.steps is None else chosen.steps
    lr = (3.0 if paper else 0.05) if chosen.lr is None else chosen.lr
    if steps < 1 or lr <= 0:
        raise DeepClusterError(f"{steps} steps of {lr:g} lead nowhere: give --steps and --lr above 0.")
    decay = (DECAY if paper else 0.0) if chosen.decay is None else chosen.decay
    glass = Glass(subject.backbone, normalize=not paper, device=subject.device)
    parts = [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]
    found = []
    with screen.bar("ascent", steps * len(parts), "steps") as bar:
        for place, part in enumerate(parts):
            wanted = objective(part)
            if chosen.smooth:
                wanted = wanted - chosen.smooth * total_variation()
            if decay and not paper:
                wanted = wanted - decay * l2()
            common: dict[str, Any] = {"size": size, "steps": steps, "lr": lr, "check": bar}
            common["seed"] = chosen.seed + 1_000_003 * place
            if paper:
                found.append(ascend_pixels(glass, wanted, len(part), decay=decay, **common))
            else:
                found.append(ascend_waves(glass, wanted, len(part), **common))
    return found


def images_of(subject: Subject, found: list[Ascent], recipe: str) -> list[np.ndarray]:
    """(S, S, 3) uint8 each; in gray for a network that sees no colors, whose colors would be chance."""
    import numpy as np

    from deepcluster.visualize.activation_maximization import DEVIATION, MEAN

    images = [image for each in found for image in each.images]
    if not blind(subject):
        return images
    grays = [image.mean(2, keepdims=True) / 255 for image in images]
    if recipe == "paper":  # the mean of three colors that differ by chance has less contrast than each
        grays = [(gray - gray.mean()) / max(float(gray.std()), 1e-5) * DEVIATION + MEAN for gray in grays]
    return [(gray.clip(0, 1) * 255).round().astype(np.uint8).repeat(3, axis=2) for gray in grays]


def blind(subject: Subject) -> bool:
    """Whether the network begins with Sobel, which adds the colors up."""
    from deepcluster.models.sobel import Sobel

    return isinstance(subject.backbone.sobel, Sobel)


def _clusters(subject: Subject, numbers: Sequence[int], by: str) -> Callable[[Sequence[int]], Objective]:
    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize.groups import run_of
    from deepcluster.visualize.layers import embedding
    from deepcluster.visualize.objectives import closeness, logit

    run = run_of(subject, "activations --clusters")
    head = run.head if by == "logit" else None
    if by == "logit" and head is None:
        raise DeepClusterError(
            f"{run.folder} has no checkpoint with a classifier over all clusters: leave out --by logit."
        )
    k = len(run.centroids if head is None else head[0])
    for number in numbers:
        if not 0 <= number < k:
            raise DeepClusterError(f"There is no cluster {number} in {run.folder}; its clusters are 0 to {k - 1}.")
    if head is not None:
        weight, bias = head
        return lambda part: logit(weight[list(part)], bias[list(part)], relu=run.backbone.head_relu)
    return lambda part: closeness(embedding(run.model), run.centroids[list(part)])

"""Images that excite a filter, or a cluster, as much as possible, found by gradient ascent, several at once.

Two recipes: the paper's own regularizers on bare pixels (arXiv 1807.05520, figures 4 and 5; values from the authors'
script), and Fourier spectra of decorrelated colors seen through random views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.naming import short_name
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.models.heads import ProjectionHead
from deepcluster.models.sobel import Sobel
from deepcluster.random import seeded
from deepcluster.visualize import objectives
from deepcluster.visualize.clustered_images import SILENT, check_clusters, require_clusters
from deepcluster.visualize.images import enlarged, grid, stacked, text_line, titled
from deepcluster.visualize.layers import choose_filters, deepest_layer
from deepcluster.visualize.objectives import FrozenNetwork, Objective, l2, total_variation
from deepcluster.visualize.parametrizations import random_spectrum, random_views, spectrum_to_image
from deepcluster.visualize.style import Pictures

Recipe = Literal["paper", "fourier"]
ObjectiveOf = Callable[[Sequence[int]], Objective]
"""The objective for some filters or clusters, one image each."""

# the authors' script: a bright noise of low contrast at the start, and little else than that to hold colors together
START, NOISE, DECAY, BLUR, BLUR_EVERY = 128.0, 20.0, 1e-5, 0.3, 5
SHOWN_MEAN, SHOWN_STD = 0.5, 0.1
"""Mean and deviation of the colors of an image that is shown."""
STEPS = {"paper": 1000, "fourier": 256}
OBJECTIVES = {"contrast": objectives.contrast, "channel": objectives.channel, "neuron": objectives.neuron}
AT_ONCE = 32
"""Images optimized together."""
_PIXELS, _SPECTRUM, _VIEWS = 51, 52, 53  # purposes of random draws


def draw_activations(
    subject: Subject,
    *,
    tap: str | None = None,
    filters: tuple[int, ...] = (),
    count: int = 16,
    clusters: tuple[int, ...] = (),
    by: Literal["centroid", "logit"] | None = None,
    recipe: Recipe = "paper",
    objective: Literal["contrast", "channel", "neuron"] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    decay: float | None = None,
    smooth: float = 0.0,
    size: int | None = None,
    seed: int = 0,
    screen: Screen = SILENT,
) -> Pictures:
    """Images that excite filters, or clusters, as much as possible, by gradient ascent (the paper's figure 4).

    Args:
        tap: layer, such as conv3; by default the deepest one that has maps.
        filters: numbers of filters; by default `count` of them drawn at random.
        count: how many filters where none are named.
        clusters: numbers of a run's clusters, in place of filters.
        by: for clusters: approach the centroid (default), or raise the logit of the last checkpoint's classifier.
        recipe: paper = bare pixels from noise, steps of one length, weight decay and blur; fourier = a spectrum of
            decorrelated colors seen through random shifts, scales and rotations.
        objective: contrast = the filter's mean against all others of its layer (the paper's), channel = the filter's
            mean (the default of fourier), neuron = the center of its map.
        steps: number of steps; by default 1000 (paper; its authors advise 30000 for the first layer, 3000 for the
            last) or 256.
        lr: length of a step: 3 (paper; 30 for the last layer), or Adam's rate, 0.05 (fourier).
        decay: weight of the squared length of the image, which is subtracted; by default 1e-5 (paper) or 0.
        smooth: weight of the mean difference of neighboring pixels, which is subtracted.
        size: side of the images in pixels; by default the network's.
        seed: of the images at the start and of the filters that are drawn.
    """
    backbone = subject.backbone
    if clusters and (filters or tap or objective):
        raise DeepClusterError("--clusters stand in place of filters: leave out --tap, --filters and --objective.")
    if by and not clusters:
        raise DeepClusterError("--by says how clusters are approached: name some by --clusters.")
    if clusters:
        numbers, tap, noun = list(clusters), "clusters", "cluster"
        objective_of = _cluster_objective(subject, numbers, by or "centroid")
    else:
        tap, noun = tap or deepest_layer(backbone), "filter"
        numbers = choose_filters(backbone, tap, filters, count, seed)
        objective_of = filter_objective(tap, recipe, objective)
    size = subject.image_size if size is None else size
    if backbone.refusal(size):
        raise DeepClusterError(
            f"{backbone.name} cannot take images of {size} px; it was made for {backbone.image_size} px:"
            " choose another --size, or leave it out."
        )
    asked = {"steps": steps, "lr": lr, "decay": decay}
    images = maximize(subject, objective_of, numbers, recipe, asked, smooth=smooth, size=size, seed=seed, screen=screen)
    factor = max(1, round(112 / size))
    side = size * factor
    tiles = [
        stacked([text_line(f"{noun} {number}", side, size=13), enlarged(image, factor)], gap=0)
        for number, image in zip(numbers, images, strict=True)
    ]
    sheet = grid(tiles, min(8, max(1, 1100 // side)), gap=6)
    steps = STEPS[recipe] if steps is None else steps
    text = {
        "paper": f"Images found by {steps:,} steps of gradient ascent from noise, with weight decay and a faint blur;"
        f" each is brought to mean {SHOWN_MEAN} and deviation {SHOWN_STD}.",
        "fourier": f"Images found by {steps:,} steps of Adam on a Fourier spectrum of decorrelated colors, seen through"
        " random shifts, scales and rotations.",
    }[recipe]
    if sees_no_colors(subject):
        text += " They are shown in gray: behind Sobel the network sees no colors."
    page = titled(sheet, f"What excites {tap} of {short_name(subject.name)}", text)
    return {f"activations-{tap.replace('/', '-')}": page}


def maximize(
    subject: Subject,
    objective_of: ObjectiveOf,
    numbers: Sequence[int],
    recipe: Recipe,
    asked: Mapping[str, Any],
    *,
    smooth: float = 0.0,
    size: int | None = None,
    seed: int = 0,
    screen: Screen = SILENT,
) -> list[np.ndarray]:
    """A (S, S, 3) uint8 image for each of some filters or clusters, as shown; options as in `draw_activations`.

    Args:
        asked: steps, lr and decay; None = the recipe's own.
    """
    options = {"steps": STEPS[recipe]} | {name: value for name, value in asked.items() if value is not None}
    if options["steps"] < 1 or options.get("lr", 1) <= 0:
        raise DeepClusterError("Images change by steps of some length: give --steps and --lr above 0.")
    paper = recipe == "paper"
    network = FrozenNetwork(subject.backbone, normalize=not paper, device=subject.device)
    maximizer = maximize_pixels if paper else maximize_spectrum
    parts = [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]
    images: list[np.ndarray] = []
    with screen.bar("ascent", options["steps"] * len(parts), "steps") as bar:
        for number, part in enumerate(parts):
            objective = objective_of(part)
            if smooth:
                objective -= smooth * total_variation()
            options |= {"size": size or subject.image_size, "seed": seed + 1_000_003 * number}
            images += list(maximizer(network, objective, len(part), check=bar, **options).images)
    return [_in_gray(image, recipe) for image in images] if sees_no_colors(subject) else images


@dataclass(frozen=True)
class Maximized:
    """What was found.

    Attributes:
        images: (B, S, S, 3) uint8.
        before, after: (B,) the objective of the image at the start, and of the last one.
    """

    images: np.ndarray
    before: np.ndarray
    after: np.ndarray


def maximize_pixels(
    network: FrozenNetwork,
    objective: Objective,
    count: int,
    *,
    size: int,
    steps: int = STEPS["paper"],
    lr: float = 3.0,
    decay: float = DECAY,
    seed: int = 0,
    check: Callable[[int], None] = lambda steps: None,
) -> Maximized:
    """The paper's recipe: steps of length `lr` along the gradient, weight decay, and a faint blur now and then.

    The first image is noise around 128; pixels are used as they are, neither normalized nor held within 0 and 255.

    Args:
        network: without normalization.
        objective: for `count` images; the paper's is `contrast`.
        check: called with 1 after each step.
    """
    images = START + NOISE * torch.randn(count, 3, size, size, generator=seeded(seed, _PIXELS))
    images = images.to(network.device)
    before = _score(network, images, objective)
    for step in range(steps):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(network.score(images, objective - decay * l2()).sum(), images)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        images = images.detach() + lr * gradient / length[:, None, None, None]
        if (step + 1) % BLUR_EVERY == 0:
            blurred = gaussian_filter(images.cpu().numpy(), (0, 0, BLUR, BLUR))
            images = torch.from_numpy(blurred).to(images.device)
        check(1)
    return Maximized(displayed(images), before, _score(network, images, objective))


def maximize_spectrum(
    network: FrozenNetwork,
    objective: Objective,
    count: int,
    *,
    size: int,
    steps: int = STEPS["fourier"],
    lr: float = 0.05,
    decay: float = 0.0,
    seed: int = 0,
    check: Callable[[int], None] = lambda steps: None,
) -> Maximized:
    """A Fourier spectrum of decorrelated colors, changed by Adam, seen through a random view at each step.

    Args:
        network: with its normalization; images have colors in 0 to 1.
        objective: for `count` images, such as `channel` or `closeness`.
    """
    objective = objective - decay * l2() if decay else objective
    spectrum = random_spectrum(count, size, seeded(seed, _SPECTRUM)).to(network.device).requires_grad_(True)
    adam = torch.optim.Adam([spectrum], lr=lr)
    before = _score(network, spectrum_to_image(spectrum.detach()), objective)
    for step in range(steps):
        colors = spectrum_to_image(spectrum)
        viewed = random_views(colors, seeded(seed, _VIEWS, step))
        (spectrum.grad,) = torch.autograd.grad(-network.score(viewed, objective, colors).sum(), spectrum)
        adam.step()
        check(1)
    colors = spectrum_to_image(spectrum.detach())
    return Maximized(_bytes(colors), before, _score(network, colors, objective))


def displayed(images: Tensor) -> np.ndarray:
    """(B, S, S, 3) uint8 of bare pixels: each image brought to mean 0.5 and deviation 0.1, and clipped to 0 and 1."""
    std, mean = torch.std_mean(images, dim=(1, 2, 3), correction=0, keepdim=True)
    return _bytes((images - mean) / std.clamp_min(1e-5) * SHOWN_STD + SHOWN_MEAN)


def filter_objective(tap: str, recipe: Recipe, name: str | None = None) -> ObjectiveOf:
    """The objective of some filters of a layer; None = the recipe's own."""
    objective = OBJECTIVES[name or {"paper": "contrast", "fourier": "channel"}[recipe]]
    return lambda filters: objective(tap, filters)


def embedding(model: Model) -> Callable[[Tensor], Tensor]:
    """(B, D) features to (B, P) unit rows in the space of the centroids, as `Model.embed`, with gradients."""

    def embed(features: Tensor) -> Tensor:
        for step in model.embedding:
            if isinstance(step, Whitening):
                features = (features - step.mean_.to(features)) @ step.components_.to(features).T
                features = torch.nn.functional.normalize(features, dim=1) if step.l2 else features
            else:
                assert isinstance(step, ProjectionHead)
                features = step.to(features.device).eval().directions(features)
        return features

    return embed


def sees_no_colors(subject: Subject) -> bool:
    """Whether the network begins with Sobel, which adds the colors up."""
    return isinstance(subject.backbone.sobel, Sobel)


def _cluster_objective(subject: Subject, numbers: Sequence[int], by: str) -> ObjectiveOf:
    run = require_clusters(subject, "activations --clusters")
    if by == "centroid":
        check_clusters(run, numbers, len(run.centroids))
        return lambda part: objectives.closeness(embedding(run.model), run.centroids[list(part)])
    if (head := run.head) is None:
        raise DeepClusterError(
            f"{run.folder} has no checkpoint with a classifier over all clusters: leave out --by logit."
        )
    weight, bias = head
    check_clusters(run, numbers, len(weight))
    return lambda part: objectives.logit(weight[list(part)], bias[list(part)], relu=run.backbone.head_relu)


def _in_gray(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """An (S, S, 3) image in gray: colors that the network does not see are noise."""
    gray = image.mean(2, keepdims=True) / 255
    if recipe == "paper":  # the mean of three independent colors has less contrast than each
        gray = (gray - gray.mean()) / max(float(gray.std()), 1e-5) * SHOWN_STD + SHOWN_MEAN
    return np.repeat(np.round(255 * np.clip(gray, 0, 1)).astype(np.uint8), 3, axis=2)


def _bytes(colors: Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 of (B, 3, H, W) colors, clipped to 0 and 1."""
    return (colors.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def _score(network: FrozenNetwork, images: Tensor, objective: Objective) -> np.ndarray:
    return network.score(images, objective).cpu().numpy()

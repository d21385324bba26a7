"""Images that excite a filter, or a cluster, as much as possible, found by gradient ascent, several at once.

Two recipes: the paper's own regularizers on bare pixels (arXiv 1807.05520, figures 4 and 5; numbers from the authors'
script), and waves of decorrelated colors seen through random views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.random import seeded
from deepcluster.visualize.objectives import Glass, Objective, l2
from deepcluster.visualize.parametrizations import Shake, gaussian_blur, to_colors, waves

Check = Callable[[int], None]

# the authors' script: a light and narrow noise to begin with, and little else than that to hold colors together
START, NOISE, DECAY, BLUR, BLUR_EVERY = 128.0, 20.0, 1e-5, 0.3, 5
MEAN, DEVIATION = 0.5, 0.1
"""What pixels are brought to when an image is shown."""
_PIXELS, _WAVES, _SHAKE = 51, 52, 53  # purposes of random draws


@dataclass(frozen=True)
class Ascent:
    """What was found.

    Attributes:
        images: (B, S, S, 3) uint8.
        before, after: (B,) the objective of the image one began with, and of the last one.
    """

    images: np.ndarray
    before: np.ndarray
    after: np.ndarray


def ascend_pixels(
    glass: Glass,
    objective: Objective,
    count: int,
    *,
    size: int,
    steps: int = 1000,
    lr: float = 3.0,
    decay: float = DECAY,
    seed: int = 0,
    check: Check = lambda steps: None,
) -> Ascent:
    """The paper's recipe: steps of length `lr` along the gradient, weight decay, and a faint blur now and then.

    The first image is noise around 128; pixels are used as they are, neither normalized nor held within 0 and 255.

    Args:
        glass: the network, without normalization.
        objective: for `count` images; the paper's is `against_others`.
        size: of the images, in pixels.
        lr: length of a step, of the gradient as one long vector; the authors advise 3 with 30,000 steps for the
            first layer and 30 with 3,000 for the last.
        decay: of the squared length of the image.
        check: called with 1 after each step.
    """
    generator = seeded(seed, _PIXELS)
    images = (START + NOISE * torch.randn(count, 3, size, size, generator=generator)).to(glass.device)
    whole = objective - decay * l2()
    before = _score(glass, images, objective)
    for number in range(steps):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(glass.see(images, whole).sum(), images)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        images = images.detach() + lr * gradient / length[:, None, None, None]
        if (number + 1) % BLUR_EVERY == 0:
            images = gaussian_blur(images, BLUR)
        check(1)
    return Ascent(shown(images), before, _score(glass, images, objective))


def ascend_waves(
    glass: Glass,
    objective: Objective,
    count: int,
    *,
    size: int,
    steps: int = 256,
    lr: float = 0.05,
    shake: Shake | None = None,
    seed: int = 0,
    check: Check = lambda steps: None,
) -> Ascent:
    """Waves of decorrelated colors, changed by Adam, seen through a random view at each step.

    Args:
        glass: the network, with its normalization; images have colors in 0 to 1.
        objective: for `count` images, such as `channel` or `closeness`.
        size: of the images, in pixels.
        shake: the random views; None = those of `Shake`.
    """
    shake = shake or Shake()
    spectrum = waves(count, size, seeded(seed, _WAVES)).to(glass.device).requires_grad_(True)
    adam = torch.optim.Adam([spectrum], lr=lr)
    before = _score(glass, to_colors(spectrum.detach()), objective)
    for number in range(steps):
        colors = to_colors(spectrum)
        views = shake(colors, seeded(seed, _SHAKE, number))
        (gradient,) = torch.autograd.grad(-glass.see(views, objective, colors).sum(), spectrum)
        spectrum.grad = gradient
        adam.step()
        check(1)
    colors = to_colors(spectrum.detach())
    pixels = (colors * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return Ascent(pixels, before, _score(glass, colors, objective))


def shown(images: Tensor) -> np.ndarray:
    """(B, S, S, 3) uint8 of bare pixels: each image brought to mean 0.5 and deviation 0.1, and cut to 0 and 1."""
    rows = images.detach().cpu().flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, unbiased=False, keepdim=True).clamp_min(1e-5)
    levels = (rows * DEVIATION + MEAN).clamp(0, 1).view(images.shape)
    return (levels * 255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def _score(glass: Glass, images: Tensor, objective: Objective) -> np.ndarray:
    return glass.see(images, objective).cpu().numpy()

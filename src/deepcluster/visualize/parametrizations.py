"""Images as numbers that a gradient can change: pixels, or waves of decorrelated colors; and shaken views of them.

Waves: Olah, Mordvintsev and Schubert, "Feature Visualization" (Distill, 2017), with the values of their library.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

# square root of the covariance of ImageNet's colors, as Olah et al. publish it, its largest column of length 1
_COLORS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLORS = _COLORS / _COLORS.norm(dim=0).max()
FAINT = 0.01
"""Deviation of the waves one begins with: almost plain gray."""


def frequencies(side: int) -> Tensor:
    """(S, S // 2 + 1) cycles a pixel of each wave, not below one cycle an image."""
    across = torch.fft.rfftfreq(side)
    length = torch.hypot(torch.fft.fftfreq(side)[:, None], across[None])
    return length.clamp_min(1 / side)


def waves(count: int, side: int, generator: Generator) -> Tensor:
    """(B, 3, S, S // 2 + 1, 2) faint random waves, all frequencies alike."""
    return FAINT * torch.randn(count, 3, side, side // 2 + 1, 2, generator=generator)


def to_colors(spectrum: Tensor) -> Tensor:
    """(B, 3, S, S) colors in (0, 1) of (B, 3, S, S // 2 + 1, 2) waves.

    Waves are scaled by one over their frequency, as natural images have them, so that a step changes coarse shapes
    as much as fine texture; then the three decorrelated channels are mixed into colors.
    """
    side = spectrum.shape[2]
    scaled = spectrum / frequencies(side).to(spectrum)[..., None]
    flat = torch.fft.irfft2(torch.view_as_complex(scaled.contiguous()), s=(side, side), norm="ortho")
    mixed = torch.einsum("rc,bchw->brhw", COLORS.to(flat), flat / 4)
    return mixed.sigmoid()


def to_waves(colors: Tensor) -> Tensor:
    """The inverse of `to_colors`, for colors within (0, 1)."""
    side = colors.shape[2]
    flat = 4 * torch.einsum("cr,brhw->bchw", torch.linalg.inv(COLORS.double()).to(colors), colors.logit())
    spectrum = torch.view_as_real(torch.fft.rfft2(flat, norm="ortho"))
    return spectrum * frequencies(side).to(colors)[..., None]


@dataclass(frozen=True)
class Shake:
    """Random views of an image, so that what is found does not hang on single pixels.

    Attributes:
        jitter: shift, up to this share of the side in each direction.
        scale: enlarged or shrunk by up to this share.
        rotate: degrees to either side.
    """

    jitter: float = 0.05
    scale: float = 0.1
    rotate: float = 5.0

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """(B, 3, S, S) views, each shaken by its own draw; beyond the edge the image is mirrored."""
        drawn = torch.rand(len(images), 4, generator=generator) * 2 - 1
        angle, factor = torch.deg2rad(drawn[:, 0] * self.rotate), 1 + drawn[:, 1] * self.scale
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        moved = 2 * self.jitter * drawn[:, 2:, None]
        around = torch.cat([turn * factor[:, None, None], moved], dim=2).to(images)
        places = functional.affine_grid(around, list(images.shape), align_corners=False)
        return functional.grid_sample(images, places, padding_mode="reflection", align_corners=False)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) blurred by a Gaussian of `sigma` pixels, cut at four sigmas; edges are mirrored.

    Scipy's `gaussian_filter` with its defaults gives the same.
    """
    radius = int(4 * sigma + 0.5)
    if radius < 1:
        return images
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    # "symmetric" padding, of which the edge pixel is part, as scipy's "reflect" is
    padded = torch.cat([images[:, :, :radius].flip(2), images, images[:, :, -radius:].flip(2)], dim=2)
    images = functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    padded = torch.cat([images[..., :radius].flip(3), images, images[..., -radius:].flip(3)], dim=3)
    return functional.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

"""Images as Fourier spectra of decorrelated colors, which a gradient can change, and random views of images.

After Olah, Mordvintsev and Schubert, "Feature Visualization" (Distill, 2017), with the values of their library.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

# square root of the covariance of ImageNet's colors, as Olah et al. publish it, its largest column of length 1
_COLORS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLORS = _COLORS / _COLORS.norm(dim=0).max()
START_STD = 0.01
"""Deviation of the spectrum at the start: almost plain gray."""


def random_spectrum(count: int, side: int, generator: Generator) -> Tensor:
    """(B, 3, S, S // 2 + 1, 2) spectra of faint noise, all frequencies with equal weight."""
    return START_STD * torch.randn(count, 3, side, side // 2 + 1, 2, generator=generator)


def spectrum_to_image(spectrum: Tensor) -> Tensor:
    """(B, 3, S, S) colors in (0, 1) of (B, 3, S, S // 2 + 1, 2) spectra.

    Amplitudes are scaled by one over their frequency, as natural images have them, so that a step changes coarse
    shapes as much as fine texture; then the three decorrelated channels are mixed into colors.
    """
    side = spectrum.shape[2]
    # cycles per pixel, not below one cycle per image
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]).clamp_min(1 / side)
    scaled = spectrum / frequency.to(spectrum)[..., None]
    channels = torch.fft.irfft2(torch.view_as_complex(scaled.contiguous()), s=(side, side), norm="ortho")
    return torch.einsum("rc,bchw->brhw", COLORS.to(channels), channels / 4).sigmoid()


def random_views(
    images: Tensor, generator: Generator, *, jitter: float = 0.05, scale: float = 0.1, rotate: float = 5.0
) -> Tensor:
    """(B, 3, S, S) views, each drawn on its own, so that what is found does not depend on single pixels.

    Beyond the edge the image is mirrored.

    Args:
        jitter: shift, up to this share of the side in each direction.
        scale: enlarged or shrunk by up to this share.
        rotate: degrees to either side.
    """
    drawn = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle, factor = torch.deg2rad(drawn[:, 0] * rotate), 1 + drawn[:, 1] * scale
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    affine = torch.cat([rotation * factor[:, None, None], 2 * jitter * drawn[:, 2:, None]], dim=2).to(images)
    positions = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, positions, padding_mode="reflection", align_corners=False)

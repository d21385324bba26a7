"""Color jitter of many images at once, equal to torchvision's `adjust_*` functions for the same factors.

Images are float planes in 0 … 255 and change in place; scratch space is made once, since fresh memory costs more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: ITU-R 601 luma, as Pillow and torchvision weigh red, green and blue.
LUMA = (0.2989, 0.587, 0.114)


class Recolor:
    """Changes blocks of images on one device.

    Args:
        images: most images in a block.
        pixels: of each image.
        device: where they lie.
    """

    def __init__(self, images: int, pixels: int, device: torch.device | str = "cpu") -> None:
        self._planes = torch.empty((5, images, pixels), device=device)
        self._luma = torch.tensor(LUMA, device=device)

    def jitter_(self, x: Tensor, factors: Tensor, order: Sequence[int], active: Sequence[bool]) -> None:
        """Brightness, contrast, saturation and hue in the given order.

        Args:
            x: (n, 3, S, S) float32 in 0 … 255, contiguous, changed in place.
            factors: (n, 4), see `Draw.factors`.
            order: permutation of 0 … 3.
            active: which of the four vary at all.
        """
        steps = (self.brightness_, self.contrast_, self.saturation_, self.hue_)
        for step in order:
            if active[step]:
                steps[step](x, factors[:, step])

    def brightness_(self, x: Tensor, factor: Tensor) -> None:
        """x · f."""
        x.view(len(x), -1).mul_(factor[:, None]).clamp_max_(255)

    def contrast_(self, x: Tensor, factor: Tensor) -> None:
        """A blend with the mean luma of each whole image."""
        mean = x.mean((2, 3)) @ self._luma
        flat = x.view(len(x), -1)
        flat.mul_(factor[:, None]).add_(((1 - factor) * mean)[:, None]).clamp_(0, 255)

    def saturation_(self, x: Tensor, factor: Tensor) -> None:
        """A blend with the luma of each pixel."""
        flat = x.view(len(x), 3, -1)
        luma = _luma(flat, self._planes[0, : len(x)]).mul_((1 - factor)[:, None])
        flat.mul_(factor[:, None, None]).add_(luma[:, None]).clamp_(0, 255)

    def gray_(self, x: Tensor, chosen: np.ndarray) -> None:
        """All three channels of the `chosen` (n,) bool images become luma."""
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(x.device)
        if len(rows):
            flat = x.view(len(x), 3, -1)
            luma = _luma(flat[rows], self._planes[0, : len(rows)])
            flat[rows] = luma[:, None].expand(-1, 3, -1)

    def hue_(self, x: Tensor, turn: Tensor) -> None:
        """A turn of the color circle in HSV, saturation and value kept.

        With value v, chroma c and hue h in turns, a channel whose own hue is k is
        v - c · clamp(6 · |h - k| - 1, 0, 1), the distance taken around the circle. Distance from red needs no
        case for which channel is largest: 6 · |h| · c = v - 2 · min + green + blue - red, and green > blue
        tells the side.
        """
        red, green, blue = x.view(len(x), 3, -1).unbind(1)
        value, chroma, hue, near, low = self._planes[:, : len(x)].unbind(0)
        torch.maximum(red, green, out=value)
        torch.maximum(value, blue, out=value)
        torch.minimum(red, green, out=low)
        torch.minimum(low, blue, out=low)
        torch.sub(value, low, out=chroma)
        chroma.clamp_min_(1e-6).mul_(6)  # grey pixels have no hue: any will do, but not 0/0
        torch.add(green, blue, out=hue).sub_(red).add_(value).sub_(low, alpha=2).div_(chroma)
        torch.sub(green, blue, out=near)
        torch.copysign(hue, near, out=hue)
        hue.add_(turn[:, None])
        torch.round(hue, out=near)
        hue.sub_(near)  # in [-1/2, 1/2]
        # From here on `chroma` is six times itself, and with p = clamp(…, 1/6, 1/3)
        # red = value + chroma - 6 chroma p,  green and blue = value - 2 chroma + 6 chroma p.
        torch.abs(hue, out=near).clamp_(1 / 6, 1 / 3)
        torch.add(value, chroma, alpha=1 / 6, out=low)
        torch.addcmul(low, chroma, near, value=-1, out=red)
        value.sub_(chroma, alpha=1 / 3)
        for channel, center in ((green, 1 / 6), (blue, -1 / 6)):  # 1/2 - distance = |h ± 1/6|, or both are clamped
            torch.add(hue, center, out=near).abs_().clamp_(1 / 6, 1 / 3)
            torch.addcmul(value, chroma, near, out=channel)


def _luma(x: Tensor, out: Tensor) -> Tensor:
    """Luma (n, p) of pixels (n, 3, p)."""
    torch.mul(x[:, 0], LUMA[0], out=out)
    return out.add_(x[:, 1], alpha=LUMA[1]).add_(x[:, 2], alpha=LUMA[2])

"""Color jitter of blocks of images, equal to torchvision's `adjust_*` functions for the same factors.

A block holds planes z, and two numbers per image say what its colors are: scale · z + shift. Brightness and contrast
change these two and clamp z; saturation, gray and the final normalization are products of the planes with a small
matrix; hue is one such product between two bounds, see `_hue`. A `Plan` computes the matrices of up to a block of
images beforehand, so that each image costs few passes over memory that is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONTRAST, SATURATION, HUE = 1, 2, 3
#: ITU-R 601 luma, as Pillow and torchvision weigh red, green and blue.
LUMA = np.array([0.2989, 0.587, 0.114])
#: Pixels that are worked on at a time on a CPU, so that their planes stay in its cache; products of more would be
#: divided over threads by OpenBLAS.
CACHED = 20_000
#: Pixels of an image from which a CPU clamps each by itself.
LARGE = 4096
#: In place of factors of 0, so that planes can be divided by their scale.
TINY = 1e-20

Numbers = Any
"""(n, ...) per image: an array on a CPU, where small arrays are cheaper than small tensors; else a tensor."""
Change = Callable[[Tensor], None]


class Plan:
    """The numbers with which the colors of B images change.

    Args:
        orders: (B, 4) permutations of 0 … 3: brightness, contrast, saturation, hue.
        factors: (B, 4), see `Draw.factors`.
        gray: (B,) bool, images whose channels all become luma at the end.
        mean: of each channel in 0 … 1, taken off at the end.
        std: of each channel, divided by at the end.
        pixels: of each image.
        device: where the images are.
    """

    def __init__(
        self,
        orders: np.ndarray,
        factors: np.ndarray,
        gray: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        pixels: int,
        device: torch.device,
    ) -> None:
        self._device, self._as_lists = device, device.type == "cpu" and pixels >= LARGE
        place = np.argsort(orders, 1).T  # (4, B), of each step in the order
        self._factors = np.maximum(factors[:, :3].T.astype(np.float64), TINY)
        bright, contrast, saturation = self._factors
        #: (B,) bool, images whose colors stay as they are, but for gray.
        self.still = (factors == (1, 1, 1, 0)).all(1)
        turn, moved = self._hue(factors[:, 3].astype(np.float64))
        # Of each step (4, B), and of the end: the scale after it, and how much of an image's mean luma is in its shift.
        done = np.concatenate([place, np.full_like(place[:1], 4)])[:, None] >= place
        scale = np.where(done[:, 0], bright, 1) * np.where(done[:, 1], contrast, 1)
        later = done[:, [0, 2]] & (place[1] < place[[0, 2]])  # brightness and saturation after contrast
        kept = saturation + (1 - saturation) * LUMA.sum()
        share = (
            np.where(done[:, 1], 1 - contrast, 0) * np.where(later[:, 0], bright, 1) * np.where(later[:, 1], kept, 1)
        )
        luma = np.where(done[:, 3, :, None], LUMA[moved], LUMA)  # (5, B, 3), of the planes
        #: (B, 3, 1) weights of sums over the planes, without those of brightness after contrast.
        self.mean = self._numbers((luma[1] * (scale[1] / contrast / pixels)[:, None])[:, :, None])
        f = saturation[:, None, None]
        #: (B, 3, 3), a blend with the luma of each pixel.
        self.blend = self._numbers(f * np.eye(3) + (1 - f) * luma[2][:, None])
        #: (B, 3, 4), see `_hue`.
        self.turn = self._numbers(turn)
        #: Of brightness, contrast and saturation: the upper bound of planes with colors up to 255; what it and the
        #: lower one lose per mean luma; whether they are needed: a factor of at most 1 takes no color out.
        self.bounds = [
            [self._bound(255 / scale[k]), self._bound(share[k] / scale[k]), self._bound(self._factors[k] > 1)]
            for k in range(3)
        ]
        own = np.where(gray[:, None, None], luma[4][:, :, None], moved[:, :, None] == np.arange(3))
        ones = np.broadcast_to(-255 * np.asarray(mean), (len(gray), 1, 3))
        #: (B, 4, 3), from planes and ones to normalized channels; (B, 1, 3), what the mean luma adds to its last row.
        self.weight = self._numbers(np.concatenate([own * scale[4][:, None, None], ones], 1) / (255 * np.asarray(std)))
        share[4] *= np.where(gray, LUMA.sum(), 1)
        self.share = self._numbers(share[4][:, None, None] / (255 * np.asarray(std)))

    @staticmethod
    def _hue(turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A turn of the color circle in HSV, saturation and value kept.

        A third of the circle exchanges the channels. What remains is up to a sixth, t / 6: then a channel moves
        linearly within a sector of the circle, and never past the channel before it:

            x[k] + (1 - t) (x[k] - middle) - t (x[k+1] - x[k-1]), between x[k] and x[k-1]

        where `middle` is the second largest channel. Backwards, before and after change places: then what comes out
        of the bounds x[k] and x[k-1] is channel k - 1.

        Args:
            turn: (B,) shares of the circle.

        Returns:
            (B, 3, 4) weights of the middle and of the three channels, and (B, 3) which channel each plane is then of.
        """
        thirds = np.rint(turn * 3)
        rest = turn - thirds / 3
        t, ahead = 6 * np.abs(rest), rest >= 0
        one, two = np.where(ahead, 2 - t, t), np.where(ahead, t, 2 - t)  # of x[k] and x[k-1]
        rows = np.array([(t - 1, one, -t, two), (t - 1, two, one, -t), (t - 1, -t, two, one)])
        return rows.transpose(2, 0, 1), (np.arange(3) + (thirds + ~ahead * 2)[:, None].astype(np.int64)) % 3

    def _bound(self, numbers: np.ndarray) -> Numbers:
        return numbers.tolist() if self._as_lists else self._numbers(numbers[:, None, None])

    def _numbers(self, numbers: np.ndarray) -> Numbers:
        made: Numbers = numbers.astype(np.float32)
        return made if self._device.type == "cpu" else torch.from_numpy(made).to(self._device, non_blocking=True)


class Recolor:
    """Carries plans out, block by block.

    Args:
        images: most images in a block; on a CPU fewer, so that a block stays in its cache.
        size: height and width of each image.
        device: where the images are.
    """

    def __init__(self, images: int, size: int, device: torch.device) -> None:
        pixels = size * size
        self._on_cpu = device.type == "cpu"
        self._by_image = self._on_cpu and pixels >= LARGE
        self.images = max(1, min(images, CACHED // pixels)) if self._on_cpu else images
        strips = -(-pixels // CACHED) if self._on_cpu else 1
        edges = np.linspace(0, pixels, strips + 1).astype(int).tolist()
        self._strips = [slice(*edges[k : k + 2]) for k in range(strips)]
        # Of each pixel its middle channel, the three, and 1.
        self._planes = torch.empty((self.images, 5, pixels), device=device)
        self._planes[:, 4] = 1
        # For products, which cannot be done in place, and for the bounds of hue.
        self._scratch = torch.empty((3, self.images, 3, -(-pixels // strips)), device=device)
        self._views: dict[int, tuple[Tensor, tuple[Tensor, ...], Tensor, list[_Strip]]] = {}
        library: Any = np if self._on_cpu else torch
        self._least, self._most, self._multiply = (
            library.minimum,
            library.maximum,
            np.matmul if self._on_cpu else torch.bmm,
        )

    def __call__(
        self, images: Tensor, plan: Plan, rows: slice, steps: Sequence[int], out: Numbers, change: Change | None = None
    ) -> None:
        """Recolored and normalized images.

        Args:
            images: (n, 3, S, S) in 0 … 255, of any kind.
            plan: for these and other images.
            rows: where these n are among them.
            steps: what to do, in order: 0 … 3 are brightness, contrast, saturation and hue.
            out: (n, S · S, 3) float32, an array on a CPU, else a tensor: overwritten.
            change: called with the planes (n, 3, S, S) before they are normalized; what it does to them, in place,
                must be linear.
        """
        n = len(images)
        if n not in self._views:
            strips = [_Strip(self._planes[:n, :, pixels], self._scratch[:, :n]) for pixels in self._strips]
            planes = self._planes[:n, 1:4]
            self._views[n] = planes, planes.unbind(), planes.view(images.shape), strips
        planes, each, view, strips = self._views[n]
        view.copy_(images)
        mean: Numbers = None
        if self.images == 1 and plan.still[rows.start]:
            steps = ()
        for step in steps:
            if step == HUE:
                for strip in strips:
                    self._turn(strip, plan.turn[rows])
                continue
            if step == CONTRAST:
                mean = _numbers(planes.sum(2))[:, None] @ plan.mean[rows]
            limits = self._limits(mean, *(bound[rows] for bound in plan.bounds[step]))
            if step != SATURATION:
                _clamp(planes, planes, limits, each, each)
                continue
            for strip in strips:
                self._multiply(plan.blend[rows], strip.channels, out=strip.product)
                _clamp(strip.result, strip.three, limits, strip.each_result, strip.each)
        if change is not None:
            change(view)
        weight = plan.weight[rows]
        if mean is not None:
            weight[:, 3:] += plan.share[rows] * mean
        for strip, pixels in zip(strips, self._strips, strict=True):
            self._multiply(strip.columns, weight, out=out[:, pixels])

    def _limits(self, mean: Numbers, top: Numbers, slope: Numbers, needed: Numbers) -> Numbers:
        """What keeps colors in 0 … 255, whatever their scale and shift.

        A list of the two numbers of each image where it is large, None where no color can be outside: with numbers, an
        image is clamped in one pass. Else two tensors (n, 1, 1).
        """
        if not self._by_image:
            low = 0 * slope if mean is None else -slope * mean
            return torch.as_tensor(low), torch.as_tensor(top + low)
        means = [0.0] * len(top) if mean is None else mean.ravel().tolist()
        lows = [-a * b for a, b in zip(slope, means, strict=True)]
        return [(a, a + b) if c else None for a, b, c in zip(lows, top, needed, strict=True)]

    def _turn(self, strip: _Strip, weight: Numbers) -> None:
        """See `Plan._hue`."""
        for side, (_, first, later) in ((self._least, strip.low), (self._most, strip.high)):
            side(*strip.ends, out=first)
            side(*strip.neighbors, out=later)
        torch.clamp(strip.last, *strip.first_two, out=strip.middle)
        self._multiply(weight, strip.middle_and_channels, out=strip.product)
        torch.clamp(strip.result, strip.low[0], strip.high[0], out=strip.three)


def _clamp(x: Tensor, out: Tensor, limits: Numbers, each: Sequence[Tensor], each_out: Sequence[Tensor]) -> None:
    """Images x (n, 3, P), or `each` of them, within their `Recolor._limits`, into `out`."""
    if isinstance(limits, tuple):
        torch.minimum(torch.maximum(x, limits[0], out=out), limits[1], out=out)
        return
    for image, result, limit in zip(each, each_out, limits, strict=True):
        if limit is not None:
            torch.clamp(image, *limit, out=result)
        elif image is not result:
            result.copy_(image)


class _Strip:
    """Views of some pixels of a block, made once since each costs a microsecond."""

    def __init__(self, rows: Tensor, scratch: Tensor) -> None:
        self.result, low, high = scratch[..., : rows.shape[2]]
        self.middle, self.three, self.last = rows[:, 0], rows[:, 1:4], rows[:, 3]
        self.each, self.each_result = self.three.unbind(), self.result.unbind()
        self.first_two = low[:, 1], high[:, 1]  # the bounds of planes 0 and 1
        self.ends = _numbers(rows[:, 1]), _numbers(rows[:, 3])
        self.neighbors = _numbers(rows[:, 1:3]), _numbers(rows[:, 2:4])
        # Bounds of each plane and the one before it; the first of these; the others.
        self.low, self.high = ((bound, _numbers(bound[:, 0]), _numbers(bound[:, 1:])) for bound in (low, high))
        self.columns: Numbers = _numbers(rows[:, 1:].transpose(1, 2))
        self.channels: Numbers = _numbers(self.three)
        self.middle_and_channels: Numbers = _numbers(rows[:, :4])
        self.product: Numbers = _numbers(self.result)


def _numbers(x: Tensor) -> Numbers:
    return x.numpy() if x.device.type == "cpu" else x

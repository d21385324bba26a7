"""Images per second of the input pipeline on one core, beside torchvision's and beside a bound.

    OMP_NUM_THREADS=1 python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --decode 'imagenette/*.tar'

Views are compared at the same work: random resized crop, flip, and (where named) full color jitter with gray, then
normalized float32. The bound is torch's bare uint8 resize of each crop, as `F.interpolate` does it; the same into
memory that is there, channels last, is what no crop can do without in torch. Times are CPU seconds of the thread, the
least of several rounds taken in turn, so that other work on the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as T
from PIL import Image

from deepcluster.data.augment import augment, center_crop
from deepcluster.data.cache import load_pixels
from deepcluster.data.decode_pool import decode_batches
from deepcluster.data.open import open_images
from deepcluster.data.views import IMAGENET_MEAN, IMAGENET_STD, ViewGroup, draw
from deepcluster.random import seeded

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def rates(jobs: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, float]:
    """Images per second of each job that handles `images` of them, interleaved."""
    best = dict.fromkeys(jobs, float("inf"))
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.thread_time()
            job()
            if turn:  # the first round warms up
                best[name] = min(best[name], time.thread_time() - start)
    return {name: images / seconds for name, seconds in best.items()}


def smooth(count: int, side: int) -> np.ndarray:
    """(count, side, side, 3) uint8 pictures of soft noise."""
    noise = torch.rand((count, 3, 8, 8), generator=seeded(0)).mul_(255)
    large = F.interpolate(noise, (side, side), mode="bicubic").clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(large.permute(0, 2, 3, 1).numpy())


def view_jobs(size: int, side: int, count: int) -> dict[str, dict[str, Callable[[], object]]]:
    """For crop + flip and for the full jitter: ours, torchvision on Pillow and on uint8 tensors, and the bound."""
    block = smooth(count, side)
    images = list(block)
    pillow = [Image.fromarray(image) for image in images]
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]  # channels last in memory
    sizes = np.tile([side, side], (count, 1))
    boxes = draw(ViewGroup(size=size), sizes, seeded(0)).box.tolist()

    def bound() -> None:
        for image, (top, left, height, width) in zip(tensors, boxes, strict=True):
            crop = image[None, :, top : top + height, left : left + width]
            F.interpolate(crop, (size, size), mode="bilinear", antialias=True)

    place = torch.empty((1, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def least() -> None:
        for image, (top, left, height, width) in zip(tensors, boxes, strict=True):
            crop = image[None, :, top : top + height, left : left + width]
            torch._C._nn._upsample_bilinear2d_aa(crop, (size, size), False, out=place)

    def ours(views: ViewGroup) -> Callable[[], object]:
        return lambda: augment(images, draw(views, sizes, seeded(0)), views)

    def theirs(source: list, jitter: bool, to_tensor: bool, blur: bool = False) -> Callable[[], object]:
        steps: list = [T.RandomResizedCrop(size, antialias=True), T.RandomHorizontalFlip()]
        if jitter:
            steps += [T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.RandomGrayscale(0.2)]
        edge = 2 * max(1, round(size / 20)) + 1
        steps += [T.RandomApply([T.GaussianBlur(edge, (0.1, 2.0))], 0.5)] if blur else []
        steps += [T.PILToTensor()] if to_tensor else []
        steps += [T.ToDtype(torch.float32, scale=True), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        transform = T.Compose(steps)
        return lambda: torch.stack([transform(image) for image in source])

    return {
        "crop + flip": {
            "deepcluster": ours(ViewGroup(size=size)),
            "torchvision v2, Pillow": theirs(pillow, False, True),
            "torchvision v2, uint8 tensors": theirs(tensors, False, False),
            "bound: bare resize": bound,
            "bare resize, into place": least,
        },
        "crop + flip + jitter + gray": {
            "deepcluster": ours(ViewGroup(size=size, gray=0.2, **JITTER)),
            "torchvision v2, Pillow": theirs(pillow, True, True),
            "torchvision v2, uint8 tensors": theirs(tensors, True, False),
            "bound: bare resize": bound,
            "bare resize, into place": least,
        },
        "the same with blur of half of them": {
            "deepcluster": ours(ViewGroup(size=size, gray=0.2, blur=0.5, **JITTER)),
            "torchvision v2, Pillow": theirs(pillow, True, True, blur=True),
            "torchvision v2, uint8 tensors": theirs(tensors, True, False, blur=True),
        },
        "plain view": {"deepcluster": lambda: center_crop(images, size), "bound: bare resize": bound},
    }


def show(title: str, measured: dict[str, float]) -> None:
    ours = measured["deepcluster"]
    print(f"\n{title}")
    for name, rate in measured.items():
        print(f"  {name:32s} {rate:10,.0f} images/s   deepcluster / this = {ours / rate:5.2f}")


def decoding(name: str, short_side: int | None, workers: int) -> None:
    """Wall-clock rates of one pass over a source: decoding, with processes, and from the cache."""
    source = open_images(name)
    index = np.array_split(np.arange(len(source)), max(1, len(source) // 128))
    print(f"\ndecoding {name}: {len(source):,} images, short side {short_side or 'kept'}")
    for count in sorted({1, workers}):
        start = time.perf_counter()
        for _ in decode_batches(source, index, short_side, count, source.read(0, short_side).nbytes):
            pass
        print(
            f"  {count} process{'es' if count > 1 else ''}: {len(source) / (time.perf_counter() - start):,.0f} images/s"
        )
    pixels = load_pixels(source, short_side=short_side, cache_gb=1000)
    start = time.perf_counter()
    for part in index:
        for image in pixels.gather(part):
            if image is not None:
                image.sum()  # touch every pixel
    print(f"  cached: {len(source) / (time.perf_counter() - start):,.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 112, 224], help="edge of a view, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decode", help="a source to measure decoding on")
    parser.add_argument("--short-side", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for size in options.sizes:
        side = size if size < 224 else size * 256 // 224
        count = 256 if size <= 64 else 32
        for title, jobs in view_jobs(size, side, count).items():
            show(f"{title}, {side} px -> {size} px, one core", rates(jobs, count, options.rounds))
    if options.decode:
        decoding(options.decode, options.short_side, options.workers)


if __name__ == "__main__":
    main()

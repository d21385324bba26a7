"""Features in ten minutes on a laptop's CPU: ours and a peer, the same network, images, minutes and judge.

    python benchmarks/cifar.py --train "cifar10/train-*.tar" --test cifar10/test.tar [--presets NAME ...] [--seeds N]
    python benchmarks/cifar.py --train "imagenette112/train-*.tar" --test imagenette112/val.tar --side 64 --images 9469

Trains each preset for the same minutes on the first 20,000 training images and scores 5,000 test images by their 20
nearest training images (cosine of the backbone's output, one vote each), against the same network untrained. `patches`
among the presets is the network that `deepcluster cluster --backbone patches` fits, which takes the time it takes. With
`--peer`, lightly's SwAV follows (pip install lightly): PIL augmentation in worker processes, two views of 32 px, 512
prototypes, Adam .002 with a cosine over the minutes. Prints a table; leaves run folders in `--out`.
"""

from __future__ import annotations

import argparse
import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from deepcluster.config import override
from deepcluster.data.arrays import Arrays
from deepcluster.data.cache import load_pixels
from deepcluster.data.open import open_images
from deepcluster.engine import train as engine
from deepcluster.engine.log import Screen
from deepcluster.engine.patches import fit_patches
from deepcluster.features.extract import extract
from deepcluster.features.neighbors import score_features
from deepcluster.models.backbone import Backbone
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import find_preset


def first(source: str, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, side, side, 3) uint8, the middle squares of the first images, and (count,) labels."""
    opened = open_images(source)
    assert opened.labels is not None
    count = min(count, len(opened))
    squares = (ImageOps.fit(Image.fromarray(opened.read(index)), (side, side)) for index in range(count))
    return np.stack([np.asarray(square) for square in squares]), opened.labels[:count]


def judge(backbone: Backbone, bank: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """kNN accuracy of the mean-pooled map, or of what patches give, 20 neighbors, one vote each."""
    tables = []
    for images, _ in (bank, test):
        pixels = load_pixels(open_images(images), short_side=None, cache_gb=1)
        tables.append(extract(backbone, pixels, tap="pool" if backbone.name == "convnet" else None)[1])
    scores = dict(score_features(tables[0], bank[1], tables[1], test[1], k=(20,), classes=10))
    return scores["knn20_majority_top1"]


def ours(bank: tuple[np.ndarray, np.ndarray], preset: str, out: Path, values: dict[str, Any]) -> tuple[Backbone, float]:
    """One of our presets, from its first line to its last."""
    began = time.perf_counter()
    if preset == "patches":
        backbone = build_backbone("patches", image_size=bank[0].shape[1])
        fit_patches(backbone, load_pixels(open_images(bank[0]), short_side=None, cache_gb=1), seed=values["seed"])
        return backbone, time.perf_counter() - began
    run = override(find_preset(preset).run, values)
    view = round(run.data.view_size * bank[0].shape[1] / run.image_size)
    run = override(run, {"image_size": bank[0].shape[1], "data.view_size": view})
    done = engine.train(
        run,
        Arrays(f"benchmark-{len(bank[0])}", *bank),
        out / preset,
        preset=preset,
        overwrite=True,
        screen=Screen(),
    )
    return done.backbone, time.perf_counter() - began


def peer(bank: tuple[np.ndarray, np.ndarray], minutes: float, workers: int, seed: int) -> tuple[Backbone, float]:
    """lightly's SwAV with its own parts, for so many minutes."""
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
    from lightly.transforms.swav_transform import SwaVTransform

    side = bank[0].shape[1]
    views = SwaVTransform(
        crop_sizes=(side,), crop_counts=(2,), crop_min_scales=(0.2,), crop_max_scales=(1.0,),
        cj_strength=0.5, gaussian_blur=0.0,
    )  # fmt: skip
    pictures = [Image.fromarray(image) for image in bank[0]]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            return views(pictures[index])

    torch.manual_seed(seed)
    backbone = build_backbone("convnet", image_size=side)
    head, prototypes, criterion = SwaVProjectionHead(128, 128, 128), SwaVPrototypes(128, 512), SwaVLoss()
    parameters = [*backbone.parameters(), *head.parameters(), *prototypes.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.002)
    loader = torch.utils.data.DataLoader(
        Pictures(), 256, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    began, limit, epoch = time.perf_counter(), 60 * minutes, 0
    while (spent := time.perf_counter() - began) < limit:
        for both in loader:
            if (spent := time.perf_counter() - began) >= limit:
                break
            for group in optimizer.param_groups:
                group["lr"] = 0.001 * (1 + math.cos(math.pi * spent / limit))
            prototypes.normalize()
            logits = [prototypes(torch.nn.functional.normalize(head(backbone(view)), dim=1)) for view in both]
            loss = criterion(logits, [])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epoch += 1
        print(f"lightly SwAV epoch {epoch}  loss {loss.item():.3f}  {spent:.0f} s", flush=True)
    return backbone.eval(), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar"))
    parser.add_argument("--images", type=int, default=20_000, help="to train on")
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--side", type=int, default=32, help="pixels that images are shrunk to")
    parser.add_argument("--presets", nargs="+", default=["deepcluster-convnet"], help="ours")
    parser.add_argument("--k", type=int, help="ours; by default the presets'")
    parser.add_argument("--epochs", type=int, help="ours, in place of the minutes")
    parser.add_argument("--minutes", type=float, default=10, help="of each, clusterings included")
    parser.add_argument("--seeds", type=int, default=1, help="of each, from 0 on")
    parser.add_argument("--workers", type=int, default=2, help="the peer's")
    parser.add_argument("--peer", action="store_true")
    args = parser.parse_args()
    bank, test = (
        first(source, count, args.side) for source, count in ((args.train, args.images), (args.test, args.test_images))
    )
    rows: dict[str, list[tuple[float, float]]] = {}  # seconds and kNN of each seed
    values = {"minutes": args.minutes} if args.epochs is None else {"epochs": args.epochs}
    values |= {} if args.k is None else {"k": args.k}
    if args.peer and find_spec("lightly") is None:
        print("lightly is not installed (pip install lightly): no peer")
        args.peer = False
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        untrained = judge(build_backbone("convnet", image_size=args.side).eval(), bank, test)
        rows.setdefault("untrained", []).append((0.0, untrained))
        for preset in args.presets:
            backbone, seconds = ours(bank, preset, args.out, values | {"seed": seed})
            rows.setdefault(preset, []).append((seconds, judge(backbone, bank, test)))
        if args.peer:
            backbone, seconds = peer(bank, args.minutes, args.workers, seed)
            rows.setdefault("lightly SwAV", []).append((seconds, judge(backbone, bank, test)))
    print(f"\n{'':<24}{'seconds':>9}{'kNN':>8}   each seed")
    for name, runs in rows.items():
        seconds, score = (sum(column) / len(runs) for column in zip(*runs, strict=True))
        print(f"{name:<24}{seconds:>9.0f}{score:>8.1%}   {' '.join(f'{each:.1%}' for _, each in runs)}")


if __name__ == "__main__":
    main()

"""An epoch against its bounds, in one run: the same network on one resident batch, and the plain recipe.

    python benchmarks/epoch.py                                # AlexNet + Sobel at 224 px on files it makes
    python benchmarks/epoch.py --preset deepcluster-resnet18 --image-size 112 --data "imagenette112/train-*.tar"

`ours / compute`: images a second of real training epochs over those of the same steps on one batch that lies
ready. `ours / plain`: the same network fed the usual way: a folder of files, PIL transforms in two worker
processes, float32, contiguous. `clustering share`: features and clustering over the whole epoch. Rounds are
interleaved and the median of each is taken, so that a slow minute of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from deepcluster.config import TrainRun, override
from deepcluster.data.open import open_images
from deepcluster.engine import build
from deepcluster.engine import train as engine
from deepcluster.engine.log import Screen
from deepcluster.engine.optim import make_optimizer, step_all
from deepcluster.models.heads import LinearClassifier
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import find_preset
from deepcluster.types import Batch, TrainStep


def make_files(folder: Path, images: int) -> None:
    """JPEG files of 500 x 375 pixels, smooth with some grain, as photos are."""
    draw = np.random.default_rng(0)
    (folder / "all").mkdir(parents=True)
    for number in range(images):
        coarse = Image.fromarray(draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        grain = np.asarray(coarse, np.int16) + draw.integers(-8, 8, (375, 500, 3))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / "all" / f"{number:05d}.jpg", quality=90)


def unpack(source: str, folder: Path, images: int) -> None:
    """The first images of any source as JPEG files."""
    opened = open_images(source)
    (folder / "all").mkdir(parents=True)
    for number in range(min(images, len(opened))):
        Image.fromarray(opened.read(number)).save(folder / "all" / f"{number:05d}.jpg", quality=90)


def ours(run: TrainRun, data: Path, epochs: int) -> dict[str, float]:
    """Real epochs; the first is left out, since it warms up."""
    with tempfile.TemporaryDirectory() as out:
        rows = engine.train(run, str(data), Path(out) / "run", screen=Screen(quiet=True)).metrics[1:]
    train, features, cluster = (
        sum(row[f"seconds_{part}"] for row in rows) for part in ("train", "features", "cluster")
    )
    rate = statistics.median(row["images_per_second"] for row in rows)
    return {"rate": rate, "share": (features + cluster) / (train + features + cluster), "epochs": epochs}


def compute(run: TrainRun, steps: int) -> float:
    """Images a second of the same steps on one batch that lies ready."""
    method = build.build_method(run, run.batch_size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    o = run.optimizer
    optimizer = make_optimizer(
        method.backbone.parameters(), o.name, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay
    )
    method.assignments.random_(0, run.method.k)  # type: ignore[operator, union-attr]
    size = run.data.view_size or run.image_size
    view = torch.randn(run.batch_size, 3, size, size).to(memory_format=torch.channels_last)
    batch = Batch(torch.arange(run.batch_size), (view,), torch.arange(run.batch_size), run.batch_size)
    began = time.perf_counter()
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        method.loss(batch, TrainStep(step, steps, steps + 1))["loss"].backward()
        step_all([optimizer, *method.optimizers().values()], method.parameters(), o.clip)
        method.after_step(batch)
    return steps * run.batch_size / (time.perf_counter() - began)


def plain(run: TrainRun, folder: Path, steps: int) -> float:
    """Images a second of the usual recipe with the same network."""
    from torchvision import datasets, transforms

    size = run.data.view_size or run.image_size
    views = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=run.data.crop_scale or (0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(folder), views), run.batch_size, shuffle=True, num_workers=2, drop_last=True
    )
    backbone = build_backbone(
        run.backbone.name, sobel=run.backbone.sobel, image_size=run.image_size, **run.backbone.options
    )
    head = LinearClassifier(backbone.dim, run.method.k, relu=backbone.head_relu)
    both = [
        torch.optim.SGD(part.parameters(), lr=0.05, momentum=momentum, weight_decay=1e-5)
        for part, momentum in ((backbone, 0.9), (head, 0.0))
    ]
    done, began = -1, time.perf_counter()
    while done < steps:
        for images, _ in loader:
            loss = F.cross_entropy(head(backbone(images)), torch.randint(run.method.k, (len(images),)))
            for optimizer in both:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in both:
                optimizer.step()
            done += 1
            if done == 0:
                began = time.perf_counter()
            if done == steps:
                break
    return steps * run.batch_size / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deepcluster-alexnet")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of which the first warms up")
    parser.add_argument("--data", help="any source; by default photos made of noise")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain recipe out")
    args = parser.parse_args()
    run = override(
        find_preset(args.preset).run,
        {"image_size": args.image_size, "batch_size": args.batch_size, "k": args.k, "epochs": args.epochs}
        | {"keep_every": 0, "device": "cpu"},
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        unpack(args.data, files, args.images) if args.data else make_files(files, args.images)
        steps = max(2, args.images // args.batch_size)
        rounds: list[tuple[dict[str, float], float, float]] = []
        for number in range(args.rounds):
            rest = 0.0 if args.no_plain else plain(run, files, steps)
            rounds.append((ours(run, files, args.epochs), compute(run, steps), rest))
            one, bound, rest = rounds[-1]
            print(
                f"round {number + 1}: ours {one['rate']:,.1f}  compute {bound:,.1f}  plain {rest:,.1f} images/s"
                f"  clustering {one['share']:.1%}",
                flush=True,
            )
    rate, bound, rest = (
        statistics.median(values) for values in zip(*((o["rate"], c, p) for o, c, p in rounds), strict=True)
    )
    print(f"\n{args.preset}, {args.image_size} px, batch {args.batch_size}, {torch.get_num_threads()} threads")
    print(f"ours / compute    {rate / bound:6.2f}   (aim >= 0.90)")
    if not args.no_plain:
        print(f"ours / plain      {rate / rest:6.2f}   (aim >= 2)")
    print(f"clustering share  {statistics.median(o['share'] for o, _, _ in rounds):6.1%}   (aim <= 25 %)")


if __name__ == "__main__":
    main()

"""What `voc-detection` scores on 72 microscope images of blood cells (BCCD), and how long it takes.

    python benchmarks/detection.py BCCD [--run RUN] [--iterations 300] [--min-size 192] [--draws 1]

BCCD is the set as a PASCAL VOC folder or .tar: 205 images to learn from, 72 to score, red and white cells and
platelets. Without --run the network is a convnet drawn at random; with --run it is a run folder, a file of weights or
a backbone by name, and `--untrained` gives the same network before it learned.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_subject
from deepcluster.evaluate.voc.detection import voc_detection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--run")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--train", choices=("all", "fc6-8"), default="all")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--min-size", type=int, default=192)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("evaluations/blood-cells"))
    args = parser.parse_args()
    subject = load_subject(
        args.run or "convnet",
        image_size=None if args.run else 64,
        untrained=args.untrained or not args.run,
        results=args.out,
    )
    # red cells are a sixth, platelets a thirteenth of the shorter side
    sides = tuple(round(args.min_size / share) for share in (12, 6, 3))
    screen = Screen()
    began = time.perf_counter()
    result = voc_detection(
        subject,
        args.data,
        split="train",
        train=args.train,
        min_size=args.min_size,
        max_size=2 * args.min_size,
        anchors=sides,
        regions=64,
        iterations=args.iterations,
        batch=args.batch,
        lr=args.lr,
        draws=args.draws,
        screen=screen,
    )
    screen.print(result.table())
    screen.print(f"{time.perf_counter() - began:.0f} s; {result.save(args.out)}")


if __name__ == "__main__":
    main()

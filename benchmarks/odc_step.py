"""What ODC's memories cost in one step, at 10^4, 10^5 and 10^6 images: the figure must not grow with them.

    python benchmarks/odc_step.py [--k 10000] [--batch 256]

Backbone and classifier are left out: timed is all that a step does to memories, centroids, sizes and small clusters,
beside a pass that counts every label once (the least that a method without running sizes would do each step). The
sizes take turns, so that other work on the machine disturbs all alike; printed are medians over the steps.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import torch
import torch.nn.functional as F

from deepcluster.engine.optim import make_optimizer
from deepcluster.methods.odc import ODC
from deepcluster.methods.params import ODCParams
from deepcluster.models.zoo import build_backbone
from deepcluster.types import Batch


def filled(n: int, k: int, dim: int, centers: torch.Tensor) -> ODC:
    """ODC whose memory holds `n` noisy copies of `k` centers, all clusters of the same size."""
    sgd = functools.partial(make_optimizer, name="sgd", lr=0.06, momentum=0.9, weight_decay=1e-5)
    backbone = build_backbone("convnet", image_size=32)
    learner = ODC(backbone, ODCParams(k=k, feature_dim=dim, head_lr=0.06), n=n, make_optimizer=sgd)
    learner.assignment.copy_(torch.randperm(n) % k)
    for rows in torch.arange(n).split(65536):
        label = learner.assignment[rows]
        learner.features[rows] = F.normalize(centers[label] + 0.03 * torch.randn(len(rows), dim), dim=1)
        learner.sums.index_add_(0, label, learner.features[rows].double())
    learner.centroids.copy_(learner._means(torch.arange(k)))
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    torch.manual_seed(0)
    centers = F.normalize(torch.randn(args.k, args.dim), dim=1)
    learners = {n: filled(n, args.k, args.dim, centers) for n in args.images}
    seconds: dict[int, list[float]] = {n: [] for n in learners}
    counting: dict[int, list[float]] = {n: [] for n in learners}
    for _ in range(args.steps):
        for n, learner in learners.items():
            index = torch.randint(n, (args.batch,))
            learner._step_features = [learner.features[index] + 0.05 * torch.randn(args.batch, args.dim)]
            began = time.perf_counter()
            learner.after_step(Batch(index, (), torch.arange(args.batch), args.batch))
            seconds[n].append(time.perf_counter() - began)
            began = time.perf_counter()
            torch.bincount(learner.assignment, minlength=args.k)
            counting[n].append(time.perf_counter() - began)
    first = statistics.median(seconds[args.images[0]])
    print(f"K={args.k:,}, batch {args.batch}, {args.dim} dimensions, median of {args.steps} steps")
    for n in args.images:
        median = statistics.median(seconds[n])
        count = statistics.median(counting[n])
        print(
            f"N={n:>10,}  step {1e3 * median:7.2f} ms  ({median / first:.2f} of the first)"
            f"   counting all labels once {1e3 * count:7.2f} ms"
        )


if __name__ == "__main__":
    main()

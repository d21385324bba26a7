"""A linear probe on cached features: ours beside scikit-learn's LogisticRegression.

    python benchmarks/linear.py [--images 50000] [--dim 512] [--classes 10] [--features table.npy --labels labels.npy]

Three things are timed once each, taking turns as often as `--rounds` says: one fit of ours and one of scikit-learn's
at the same C on the same standardized float32 features, and our whole probe, which chooses the decay by 5 folds before
it fits. Without files, features are drawn: classes that overlap, and a spectrum that falls as 1/rank, as those of
trained networks do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from deepcluster.evaluate.linear.logistic import Solver, cross_validated_fit, standardization


def drawn(images: int, dim: int, classes: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) float32 and (N,) labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    noise = random.standard_normal((images, dim), np.float32)
    points = noise + apart * random.standard_normal((classes, dim), np.float32)[labels]
    turn = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
    return (points / np.arange(1, dim + 1, dtype=np.float32)) @ turn, labels


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--apart", type=float, default=0.12, help="distance of the classes' means")
    parser.add_argument("--c", type=float, default=0.2, help="scikit-learn's C of the two fits")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--features")
    parser.add_argument("--labels")
    args = parser.parse_args()
    if args.features:
        table, labels = np.load(args.features).astype(np.float32), np.load(args.labels)
        order = np.random.default_rng(0).permutation(len(table))
        table, labels = table[order], labels[order]
    else:
        table, labels = drawn(args.images + args.images // 5, args.dim, args.classes, args.apart)
    count = len(table) * 5 // 6
    classes = int(labels.max()) + 1
    mean, std = standardization(torch.from_numpy(table[:count]))
    plain = ((torch.from_numpy(table) - mean) / std).numpy()
    train, test = torch.from_numpy(plain[:count]), torch.from_numpy(plain[count:])
    known, answers = torch.from_numpy(labels[:count]), labels[count:]

    def ours() -> Any:
        return Solver(train, known, classes).fit(1 / (args.c * count))

    def theirs() -> Any:
        return LogisticRegression(C=args.c, max_iter=1000).fit(plain[:count], labels[:count])

    def whole() -> Any:
        return cross_validated_fit(torch.from_numpy(table[:count]), known, classes)

    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "whole": []}
    for _ in range(args.rounds):
        for name, work in (("ours", ours), ("theirs", theirs), ("whole", whole)):
            spent, result = timed(work)
            seconds[name].append(spent)
            if name == "ours":
                fit = result
            elif name == "theirs":
                model = result
            else:
                probe = result
    took = {name: statistics.median(values) for name, values in seconds.items()}
    predicted = (test @ fit.weight[0] + fit.bias[0]).argmax(1).numpy()
    right = (predicted == answers).mean()
    print(f"{count:,} x {train.shape[1]} features, {classes} classes, {torch.get_num_threads()} threads")
    print(f"ours, C = {args.c:g}: {took['ours']:.1f} s, test {right:.4f}")
    accuracy = model.score(plain[count:], answers)
    print(f"scikit-learn, the same: {took['theirs']:.1f} s, {model.n_iter_.max()} iterations, test {accuracy:.4f}")
    print(f"ratio {took['theirs'] / took['ours']:.2f}; {(predicted == model.predict(plain[count:])).mean():.4%} agree")
    right = (probe.scores(torch.from_numpy(table[count:])).argmax(1).numpy() == answers).mean()
    print(f"our whole probe: {took['whole']:.1f} s, C = {1 / probe.decay / count:.3g}, test {right:.4f}; held out:")
    print(", ".join(f"decay {decay} {accuracy:.4f}" for decay, accuracy in probe.tried.items()))


if __name__ == "__main__":
    main()

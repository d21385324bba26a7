"""Classifying a VOC set by linear SVMs on frozen features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.data.cache import load_pixels
from deepcluster.evaluate.linear.pooling import OUTPUT, poolings
from deepcluster.evaluate.voc import svm
from deepcluster.evaluate.voc.classifier import describe, save_machines
from deepcluster.evaluate.voc.finetune import read_state
from deepcluster.evaluate.voc.work import PROTOCOL, Work
from deepcluster.io import write_atomic

SAVE_SECONDS = 5.0
"""How often machines that are done are written: with thousands of images each takes minutes."""


@dataclass(frozen=True)
class SVMs:
    """Linear SVMs on frozen features.

    Attributes:
        taps: layers to read; `output` is the backbone's, `all` every map.
        shots: numbers of positives of each class for low-shot scores beside the full ones.
        samples: draws for each of them.
        costs: to choose from by cross-validation.
    """

    taps: tuple[str, ...] = (OUTPUT,)
    shots: tuple[int, ...] = ()
    samples: int = 5
    costs: tuple[float, ...] = svm.COSTS


class Kept:
    """Machines that are done, in a file beside the results, so that a killed evaluation fits the others alone.

    Args:
        file: written whole, or not at all.
        key: tells the machines of other settings apart.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key
        found = read_state(file) or {}
        self.machines: dict[str, dict[str, Any]] = found.get("machines", {}) if found.get("key") == key else {}
        self._written = time.monotonic()

    def known(self, seed: int, tap: str) -> dict[int, svm.Machine]:
        """Class -> machine, of those that are done."""
        prefix = f"{seed} {tap} "
        return {
            int(name.removeprefix(prefix)): svm.Machine(**{**parts, "weight": parts["weight"].numpy()})
            for name, parts in self.machines.items()
            if name.startswith(prefix)
        }

    def keeper(self, seed: int, tap: str) -> Callable[[int, svm.Machine], None]:
        """What is to be called with a class and its machine."""

        def keep(number: int, machine: svm.Machine) -> None:
            parts = asdict(machine) | {"weight": torch.from_numpy(machine.weight)}
            self.machines[f"{seed} {tap} {number}"] = parts
            if time.monotonic() - self._written >= SAVE_SECONDS:
                state = {"key": self.key, "machines": self.machines}
                write_atomic(self.file, lambda beside: torch.save(state, beside))
                self._written = time.monotonic()

        return keep


def by_svm(work: Work, how: SVMs, seeds: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One draw for each seed, and settings; leaves the first seed's machines beside the results."""
    subject, screen = work.subject, work.screen
    pools = poolings(subject.backbone, how.taps)
    sides = []
    for voc in (work.train, work.held):
        # each image is looked at once, at its full size: nothing is worth keeping
        pixels = load_pixels(voc.images, short_side=None, cache_gb=0, workers=subject.workers)
        with screen.bar(f"features of {voc.split}", len(pixels)) as advance:
            sides.append(describe(subject.backbone, pixels, pools, subject.device, advance))
    (rows, features), (test_rows, test_features) = sides
    labels = work.labels[rows]
    key = work.key(list(how.costs), [str(pool) for pool in pools.values()], subject.image_size)
    kept = Kept(subject.results / f"{PROTOCOL}.state", key)
    draws: list[dict[str, Any]] = []
    saved: dict[str, list[svm.Machine | None]] = {}
    for seed in seeds:
        draw: dict[str, Any] = {"seed": seed}
        for tap in pools:
            prefix = f"{tap}_" if len(pools) > 1 else ""
            with screen.bar(f"SVMs of {tap}", labels.shape[1], "classes") as advance:
                machines = svm.fit_machines(
                    features[tap],
                    labels,
                    seed=seed,
                    costs=how.costs,
                    check=advance,
                    known=kept.known(seed, tap),
                    keep=kept.keeper(seed, tap),
                )
            found = work.scores(svm.scores_of(machines, test_features[tap]), test_rows)
            draw |= {prefix + name: value for name, value in found.items()}
            draw[f"{prefix}costs"] = {
                name: machine.cost
                for name, machine in zip(work.train.classes, machines, strict=True)
                if machine is not None
            }
            draw[f"{prefix}unconverged"] = sum(machine.unconverged for machine in machines if machine is not None)
            draw |= _low_shot(work, how, seed, prefix, features[tap], labels, test_features[tap], test_rows)
            if seed == seeds[0]:
                saved[tap] = machines
        draws.append(draw)
    size = subject.image_size
    about = {
        "mode": "svm",
        "subject": subject.name,
        "classes": work.train.classes,
        "poolings": {tap: pool.as_dict() for tap, pool in pools.items()},
        "short_side": None,
        "costs": {tap: [None if one is None else one.cost for one in row] for tap, row in saved.items()},
    }
    kept.file.unlink(missing_ok=True)
    save_machines(subject.results / f"{PROTOCOL}.safetensors", saved, about)
    settings = {
        "mode": "svm",
        "features": f"{', '.join(f'{tap}: {pool}' for tap, pool in pools.items())}, L2-normalized",
        "images": f"whole images resized to {size} x {size}",
        "classifier": "linear SVM for each class, squared hinge, positives weigh 2, cost by the average precision of"
        f" {svm.FOLDS} folds of the training split, at most {svm.MAX_ITER} iterations",
        "costs": list(how.costs),
        "shots": list(how.shots),
        "images_described": len(rows),
    }
    if how.shots:
        settings["samples"] = how.samples
        settings["low_shot"] = (
            "k positives and (classes - 1) k negatives of each class, cost by folds where there are 2 positives or"
            f" more, else {svm.FALLBACK:g}"
        )
    return draws, settings


def _low_shot(
    work: Work,
    how: SVMs,
    seed: int,
    prefix: str,
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_rows: np.ndarray,
) -> dict[str, Any]:
    """`map_Kshot` and the maps of the samples it is the mean of."""
    found: dict[str, Any] = {}
    for shots in how.shots:
        values = []
        with work.screen.bar(f"{shots} shots", how.samples * labels.shape[1], "classes") as advance:
            for sample in range(how.samples):
                some = svm.few_shots(labels, shots, seed, sample)
                rows = np.flatnonzero((some >= 0).any(axis=1))
                machines = svm.fit_machines(features[rows], some[rows], seed=seed, costs=how.costs, check=advance)
                values.append(work.scores(svm.scores_of(machines, test_features), test_rows)["map"])
        found[f"{prefix}map_{shots}shot"] = float(np.mean(values))
        found[f"{prefix}map_{shots}shot_samples"] = values
    return found

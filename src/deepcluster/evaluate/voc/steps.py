"""Some thousand steps of SGD on images of their own sizes, which go on where they were stopped, to the bit.

This file knows neither detection nor segmentation.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.engine.checkpoint import undisturbed
from deepcluster.engine.log import Screen
from deepcluster.engine.signals import stop_signals
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.io import write_atomic
from deepcluster.random import seed_of, seeded

ORDER, INSIDE, BUILD = 1, 2, 3
"""What the keys of random draws are for: the order of images, all that happens in a step, new layers."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum.

    Attributes:
        iterations: steps.
        batch: images in each.
        lr: rate of the first step; biases learn twice as fast, as in all of these papers (arXiv 1504.08083 §2.3).
        drops: steps at which the rate falls to a tenth.
        momentum, weight_decay: as named.
    """

    iterations: int
    batch: int
    lr: float
    drops: tuple[int, ...]
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch) < 1:
            raise DeepClusterError(
                f"{self.iterations} iterations with {self.batch} images each are no training: give 1 or more of both."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * 0.1 ** sum(step >= drop for drop in self.drops)

    def optimizer(self, network: nn.Module) -> torch.optim.SGD:
        """For those weights that are to be learned."""
        named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        biases = [weight for name, weight in named if name.endswith("bias")]
        others = [weight for name, weight in named if not name.endswith("bias")]
        groups = [{"params": others, "factor": 1.0}, {"params": biases, "factor": 2.0}]
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


def batch_of(images: Sequence[int], recipe: Recipe, seed: int, step: int) -> list[tuple[int, int]]:
    """The images of a step, and how often each has been seen before: every epoch is a shuffle of its own."""
    chosen = []
    for position in range(step * recipe.batch, (step + 1) * recipe.batch):
        epoch, place = divmod(position, len(images))
        chosen.append((int(images[int(_shuffle(len(images), seed, epoch)[place])]), epoch))
    return chosen


_SHUFFLES: dict[tuple[int, int, int], np.ndarray] = {}


def _shuffle(count: int, seed: int, epoch: int) -> np.ndarray:
    key = (count, seed, epoch)
    if key not in _SHUFFLES:
        if len(_SHUFFLES) > 3:
            _SHUFFLES.clear()
        _SHUFFLES[key] = torch.randperm(count, generator=seeded(seed, ORDER, epoch)).numpy()
    return _SHUFFLES[key]


class State:
    """What a stopped evaluation goes on with: one file beside the results, gone when they are there.

    Args:
        file: its place.
        settings: all that the result depends on; a file of other settings is not gone on with.
        minutes: it is written at least this often.
    """

    def __init__(self, file: Path, settings: dict[str, Any], minutes: float = 5.0) -> None:
        self.file, self.minutes = file, minutes
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self._written = time.monotonic()

    def read(self) -> dict[str, Any]:
        """What was kept; empty where nothing was, or where it belongs to something else."""
        if not self.file.is_file():
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DeepClusterError(f"{self.file} is damaged: delete it to begin the evaluation anew.") from error
        return found if isinstance(found, dict) and found.get("settings") == self.settings else {}

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._written > 60 * self.minutes

    def write(self, **values: Any) -> None:
        """Keeps these values in place of the ones before."""
        write_atomic(self.file, lambda beside: torch.save({"settings": self.settings, **values}, beside))
        self._written = time.monotonic()

    def remove(self) -> None:
        """All is done."""
        self.file.unlink(missing_ok=True)


def learn(
    network: nn.Module,
    loss_of: Callable[[Sequence[tuple[int, int]], int], Tensor],
    images: Sequence[int],
    recipe: Recipe,
    *,
    seed: int,
    state: State,
    done: dict[str, Any],
    screen: Screen,
    what: str,
) -> list[float]:
    """Trains `network` in place, from the step that `state` holds on.

    Args:
        loss_of: the loss of some (image, epoch) in a step; whatever it draws from torch's global generator is the same
            for the same seed and step.
        images: indices to learn from.
        seed: of order and draws.
        done: values to keep in the state beside the training's own.
        what: words for the bar.

    Returns:
        The mean loss of each tenth of the steps since it was begun or resumed.

    Raises:
        DeepClusterError: the loss is no number.
        Interrupted: Ctrl-C; the state is written.
    """
    optimizer = recipe.optimizer(network)
    kept = state.read()
    first = 0
    if "network" in kept:
        first = kept["step"]
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])

    def keep(step: int) -> None:
        state.write(**done, step=step, network=network.state_dict(), optimizer=optimizer.state_dict())

    losses: list[float] = []
    network.train()
    with undisturbed(), stop_signals() as stopped, screen.bar(what, recipe.iterations, "iterations") as bar:
        bar.to(first)
        for step in range(first, recipe.iterations):
            torch.manual_seed(seed_of(seed, INSIDE, step))
            loss = loss_of(batch_of(images, recipe, seed, step), step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step) * group["factor"]
            optimizer.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise DeepClusterError(f"The loss is no number any more at iteration {step + 1}: lower --lr.")
            bar()
            if stopped():
                keep(step + 1)
                raise Interrupted
            if state.due:
                keep(step + 1)
        keep(recipe.iterations)  # the scores that follow take their time
    network.eval()
    return [float(np.mean(part)) for part in np.array_split(losses, min(10, len(losses)))] if losses else []


def repeated(
    draws: int,
    seed: int,
    state: State,
    prepare: Callable[[int], Network],
    teach: Callable[[Network, int, dict[str, Any]], object],
    score: Callable[[Network], dict[str, float]],
    save: Callable[[Network, int], object],
) -> list[dict[str, float]]:
    """Prepares, teaches, scores and saves one network for each of the seeds that follow `seed`.

    Args:
        prepare: makes a network, of a seed.
        teach: trains it in place, of a seed and what is to be kept beside the training's state.
        score: scores of a trained network.
        save: keeps it, of the number of the draw.

    Returns:
        The scores of each draw; those that a stopped evaluation had finished are not made again.
    """
    finished: list[dict[str, float]] = list(state.read().get("finished", []))
    for draw in range(len(finished), draws):
        network = prepare(seed + draw)
        teach(network, seed + draw, {"finished": finished})
        network.eval()
        finished.append(score(network))
        save(network, draw)
        state.write(finished=finished)
    state.remove()
    return finished


def digest(network: nn.Module) -> str:
    """Hex digest of all weights and buffers."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def mean_and_spread(draws: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each score's mean over the draws that have it and, of several, its standard deviation (n - 1) as NAME_std.

    A class that neither truth nor guess has in one draw may be guessed in another.
    """
    scores = {}
    for name in dict.fromkeys(name for draw in draws for name in draw):
        values = [draw[name] for draw in draws if name in draw]
        scores[name] = float(np.mean(values))
        if len(values) > 1:
            scores[f"{name}_std"] = float(np.std(values, ddof=1))
    return scores

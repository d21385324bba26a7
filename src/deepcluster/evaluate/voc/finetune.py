"""Fine-tuning for the classes of a VOC set: several classes to an image, each a yes or no.

Every draw comes from a key, so that a training that was stopped goes on to the bit.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.engine.checkpoint import undisturbed
from deepcluster.engine.log import Screen
from deepcluster.engine.signals import stop_signals
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.io import write_atomic
from deepcluster.random import seed_of, seeded
from deepcluster.types import Batch

SAVE_SECONDS = 300.0
"""How often the state is written: what a kill can cost."""
ORDER, VIEWS, STEP, BUILD = 21, 22, 23, 24
"""What the keys of random draws are for."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast; the defaults are DeepCluster's published evaluation of VOC 2007.

    Attributes:
        iterations: batches.
        batch: images in each.
        lr: learning rate, halved every `step` iterations.
        step: see `lr`.
        momentum, weight_decay: of SGD.
        clip: the largest norm of the gradient of all weights together.
        crop_scale, crop_ratio: of random crops, in training and in the test.
        draw_top: see `Transfer`.
    """

    iterations: int = 80_000
    batch: int = 16
    lr: float = 0.003
    step: int = 5_000
    momentum: float = 0.9
    weight_decay: float = 1e-6
    clip: float = 10.0
    crop_scale: tuple[float, float] = (0.1, 0.5)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    draw_top: bool = False

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch, self.step) < 1:
            raise DeepClusterError(
                f"Fine-tuning with {self.iterations} iterations, batches of {self.batch} and a step of {self.step} is"
                " none: give 1 or more of each."
            )

        if not (self.lr > 0 and self.weight_decay >= 0):
            raise DeepClusterError(
                f"A rate of {self.lr} with a decay of {self.weight_decay} is no training: give --lr above 0 and"
                " --weight-decay from 0 up."
            )

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        return self.lr * 0.5 ** (iteration // self.step)

    def views(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ViewGroup:
        """Random crops and flips of training and test."""
        return ViewGroup(size=size, crop_scale=self.crop_scale, crop_ratio=self.crop_ratio, mean=mean, std=std)


RECIPES = ("deepcluster", "deepercluster")


def recipe_of(name: str, mode: str, **changes: Any) -> Recipe:
    """The recipe of a paper's code, with what the user asked for otherwise (None = as it is).

    "deepercluster" (arXiv 1905.01278 §4): 150,000 iterations; decay 1e-5 and a step of 20,000 for fc6-8, 1e-4 and
    10,000 for all; usual random crops; every new layer drawn N(0, .01).

    Raises:
        DeepClusterError: there is no such recipe.
    """
    if name not in RECIPES:
        raise DeepClusterError(f"There is no recipe {name!r}: use {' or '.join(RECIPES)}.")
    recipe = Recipe()
    if name == "deepercluster":
        recipe = Recipe(
            iterations=150_000,
            step=20_000 if mode == "fc6-8" else 10_000,
            weight_decay=1e-5 if mode == "fc6-8" else 1e-4,
            crop_scale=(0.08, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            draw_top=True,
        )
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def multilabel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over classes of binary cross-entropy, over the labels that are told, divided by the batch's images.

    Args:
        logits: (B, C).
        labels: (B, C) 1, 0, or -1 = not told.
    """
    told = labels >= 0
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), reduction="none")
    return (losses * told).sum() / len(logits)


def finetune(
    network: nn.Module,
    pixels: Pixels,
    labels: np.ndarray,
    recipe: Recipe,
    views: ViewGroup,
    *,
    seed: int,
    device: str,
    state: Path,
    key: str,
    screen: Screen,
    check: Callable[[int], None] = lambda iteration: None,
) -> float:
    """Trains `network` in place; goes on where `state` stood if that is of the same `key`.

    Args:
        pixels: N training images.
        labels: (N, C) 1, 0 or -1; an image without any told label is not shown.
        seed: of the order, the views and dropout.
        state: file that is written every `SAVE_SECONDS` and on Ctrl-C, and removed by whoever is done with it.
        key: tells states of other trainings apart.
        check: called with each iteration that is done; may raise.

    Returns:
        The mean loss of the last tenth of the iterations.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is written.
        DeepClusterError: no image has a label.
    """
    shown = np.intersect1d(pixels.good, np.flatnonzero((labels >= 0).any(axis=1)))
    if not len(shown):
        raise DeepClusterError(f"No image of {pixels.source.name} can be decoded and has a label.")
    truth = torch.from_numpy(labels.astype(np.int64)).to(device)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    network.to(device).train()
    start, losses = _restore(state, key, network, optimizer)
    saved = time.monotonic()
    with undisturbed(), stop_signals() as stopped, screen.bar("fine-tuning", recipe.iterations, "batches") as bar:
        bar.to(start)
        # One order for all epochs, as the published code has it.
        order = shown[torch.randperm(len(shown), generator=seeded(seed, ORDER)).numpy()]
        for iteration, batch in _batches(pixels, order, recipe, views, seed, start, device):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(iteration)
            if len(batch.index):
                torch.manual_seed(seed_of(seed, STEP, iteration))  # dropout
                loss = multilabel_loss(network(batch.views[0]), truth[batch.index.to(device)])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, recipe.clip)
                optimizer.step()
                if 10 * iteration >= 9 * recipe.iterations:
                    losses.append(_whole(loss, iteration))
                elif iteration % 100 == 99:
                    _whole(loss, iteration)
            bar()
            late = time.monotonic() - saved > SAVE_SECONDS
            if late or stopped():
                _write(state, key, network, optimizer, iteration + 1, losses)
                saved = time.monotonic()
            if stopped():
                screen.say(f"stopped and saved at iteration {iteration + 1}; the same command goes on from there")
                raise Interrupted()
            check(iteration)
    network.eval()
    return float(np.mean(losses)) if losses else float("nan")


def _batches(
    pixels: Pixels, order: np.ndarray, recipe: Recipe, views: ViewGroup, seed: int, start: int, device: str
) -> Iterator[tuple[int, Batch]]:
    """(iteration, batch) from iteration `start` on, epoch after epoch."""
    each = -(-len(order) // recipe.batch)
    iteration = start
    while iteration < recipe.iterations:
        epoch, first = divmod(iteration, each)
        loader = Loader(
            pixels,
            order[: min(len(order), (first + recipe.iterations - iteration) * recipe.batch)],
            batch_size=recipe.batch,
            transform=RandomViews(views),
            key=(seed, VIEWS, epoch),
            start=first,
            device=device,
            empty=True,
        )
        for batch in loader:
            yield iteration, batch
            iteration += 1


def _whole(loss: Tensor, iteration: int) -> float:
    value = loss.item()
    if not np.isfinite(value):
        raise DeepClusterError(f"The loss is {value} at iteration {iteration}: take a lower --lr.")
    return value


def key_of(*parts: Any) -> str:
    """A short text that is equal for equal plain values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=asdict).encode(), digest_size=12).hexdigest()


def _write(
    file: Path, key: str, network: nn.Module, optimizer: torch.optim.Optimizer, iteration: int, losses: list[float]
) -> None:
    state = {
        "key": key,
        "iteration": iteration,
        "losses": losses,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_atomic(file, lambda beside: torch.save(state, beside))


def _restore(file: Path, key: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """Puts back what `_write` wrote with this key.

    Returns:
        The next iteration and the losses so far; 0 and none where there is nothing such.
    """
    found = read_state(file)
    if found is None or found.get("key") != key:
        return 0, []
    network.load_state_dict(found["network"])
    optimizer.load_state_dict(found["optimizer"])
    return int(found["iteration"]), list(found["losses"])


def read_state(file: Path) -> dict[str, Any] | None:
    """What is in a file of state; None where there is none or it cannot be read, so that work begins anew."""
    if not file.is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch fails in many ways on damaged files, and refuses those that want to run code
        return None
    return found if isinstance(found, dict) else None

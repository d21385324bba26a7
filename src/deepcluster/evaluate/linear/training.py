"""Several classifiers trained by SGD in one pass over the images, each as if it were alone.

A `Training` is repeated bit for bit from its state after any epoch. It does not know what protocol asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.evaluate.linear.cached import hits
from deepcluster.evaluate.linear.feed import Feed, Make
from deepcluster.evaluate.linear.parts import Part
from deepcluster.evaluate.linear.recipes import Recipe
from deepcluster.random import seed_of, seeded

ORDER, VIEW, NOISE = 21, 22, 23
"""What a key is for."""

Describe = Callable[[Tensor], Mapping[str, Tensor]]
"""(B, 3, S, S) images -> tap -> what the heads of that tap take."""


@dataclass
class Learner:
    """One classifier.

    Attributes:
        tap: what it reads.
        head: (B, ...) -> (B, K) logits.
        lr, weight_decay: its own.
        multiples: module of `head` -> factor of its rate; for what is not named, 1.
    """

    tap: str
    head: nn.Module
    lr: float
    weight_decay: float
    multiples: tuple[tuple[str, float], ...] = ()

    def groups(self, number: int) -> list[dict[str, Any]]:
        """For the optimizer."""
        named = dict(self.multiples)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.head.named_parameters():
            if parameter.requires_grad:
                multiple = next((times for start, times in named.items() if name.startswith(start)), 1.0)
                groups.setdefault(multiple, []).append(parameter)
        return [
            {"params": own, "lr": self.lr * times, "weight_decay": self.weight_decay, "learner": number, "times": times}
            for times, own in groups.items()
        ]


class Training:
    """Learners on one part of the images.

    Args:
        learners: their heads are trained in place, on `device`.
        describe: what they read; heads that train a whole network read the images.
        part: the training images.
        make: makes their views.
        recipe: but for the rates, which are the learners'.
        seed: of order, views and dropout.
        autocast: of the heads, for those that train a whole network.
    """

    def __init__(
        self,
        learners: list[Learner],
        describe: Describe,
        part: Part,
        make: Make,
        recipe: Recipe,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        autocast: torch.dtype | None = None,
    ) -> None:
        self.learners = learners
        self.describe = describe
        self.part = part
        self.make = make
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.autocast = autocast
        self.steps_per_epoch = -(-len(part) // recipe.batch_size)
        self.epochs, self.steps = recipe.length(self.steps_per_epoch)
        for learner in learners:
            learner.head.to(self.device)
        self.optimizer = torch.optim.SGD(
            [group for number, learner in enumerate(learners) for group in learner.groups(number)],
            lr=0.0,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
        )
        parts = [module for learner in learners for module in learner.head.modules()]
        self.noisy = any(isinstance(module, nn.Dropout) for module in parts)
        self.fewest = 2 if any(isinstance(module, _BatchNorm) for module in parts) else 1
        self.labels = torch.from_numpy(part.labels)

    def epoch(self, epoch: int, check: Callable[[int], None] = lambda images: None) -> float:
        """One pass over the images; the mean loss of a learner."""
        for learner in self.learners:
            learner.head.train()
        order = torch.randperm(len(self.part), generator=seeded(self.seed, ORDER, epoch)).numpy()
        feed = Feed(self.part, order, self.recipe.batch_size, self.make, (self.seed, VIEW, epoch), self.device)
        total, images = 0.0, 0
        step = epoch * self.steps_per_epoch
        for rows, views in feed:
            if step >= self.steps:
                break
            if len(rows) < self.fewest:  # one image alone has no variance
                continue
            self._rates(step)
            total += self._step(views[0], self.labels[rows].to(self.device), step) * len(rows)
            images += len(rows)
            step += 1
            check(len(rows))
        return total / max(1, images) / len(self.learners)

    def _rates(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            learner = self.learners[group["learner"]]
            fall = self.recipe.factor(step, self.steps, self.steps_per_epoch, learner.lr, learner.weight_decay)
            group["lr"] = learner.lr * group["times"] * fall

    def _step(self, images: Tensor, labels: Tensor, step: int) -> float:
        read = self.describe(images)
        with torch.random.fork_rng(_devices(self.device), enabled=self.noisy):
            if self.noisy:
                torch.manual_seed(seed_of(self.seed, NOISE, step))
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                losses = [F.cross_entropy(learner.head(read[learner.tap]), labels) for learner in self.learners]
            # The heads share no parameter: the gradient of the sum is each one's own.
            loss = torch.stack([each.float() for each in losses]).sum()
            self.optimizer.zero_grad()
            loss.backward()
        if self.recipe.clip:
            for learner in self.learners:
                torch.nn.utils.clip_grad_norm_(learner.head.parameters(), self.recipe.clip)
        self.optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on."""
        return {
            "heads": [learner.head.state_dict() for learner in self.learners],
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for learner, saved in zip(self.learners, state["heads"], strict=True):
            learner.head.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])


def _devices(device: torch.device) -> list[int]:
    return [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []


@torch.no_grad()
def judge(
    learners: list[Learner],
    describe: Describe,
    part: Part,
    make: Make,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    check: Callable[[int], None] = lambda images: None,
) -> list[tuple[float, float]]:
    """Top-1 and top-5 accuracy of each learner; where `make` gives several views, softmax is averaged over them."""
    right = np.zeros((len(learners), 2))
    images = 0
    for learner in learners:
        learner.head.eval()
    for rows, views in Feed(part, np.arange(len(part)), batch_size, make, (0,), device):
        labels = torch.from_numpy(part.labels[rows]).to(device)
        chances = [torch.zeros(())] * len(learners)
        for view in views:
            read = describe(view)
            for number, learner in enumerate(learners):
                chances[number] = chances[number].to(device) + learner.head(read[learner.tap]).float().softmax(1)
        right += [hits(chance, labels) for chance in chances]
        images += len(rows)
        check(len(rows))
    return [(top1 / images, top5 / images) for top1, top5 in right.tolist()]

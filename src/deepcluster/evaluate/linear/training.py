"""Several classifiers trained by SGD in one pass over the images, each as if it were alone, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.data.loader import Loader
from deepcluster.data.transforms import Transform
from deepcluster.engine.log import Screen
from deepcluster.evaluate.linear.recipes import Recipe, length
from deepcluster.evaluate.linear.splits import Split
from deepcluster.evaluate.trainer import epochs, train
from deepcluster.random import seeded
from deepcluster.resume import ResumeFile
from deepcluster.types import Batch

ORDER, VIEW = 21, 22
"""Purposes of keys (seed, purpose, epoch)."""

Read = Callable[[Tensor], Mapping[str, Tensor]]
"""(B, 3, S, S) images -> tap -> what the heads of that tap take."""


@dataclass
class Learner:
    """One classifier to train.

    Attributes:
        tap: what it reads.
        head: (B, ...) -> (B, K) logits.
        multiplier: (beginning of parameter names, factor of their learning rate).
    """

    tap: str
    head: nn.Module
    lr: float
    weight_decay: float
    multiplier: tuple[str, float] = ("", 1.0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer; `base_lr` and `multiplier` are for the schedule."""
        prefix, factor = self.multiplier
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.head.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(factor if name.startswith(prefix) else 1.0, []).append(parameter)
        common = {"base_lr": self.lr, "weight_decay": self.weight_decay}
        return [{"params": own, "multiplier": factor, **common} for factor, own in groups.items()]


def train_learners(
    learners: list[Learner],
    read: Read,
    split: Split,
    transform: Transform,
    recipe: Recipe,
    *,
    seed: int,
    device: str | torch.device,
    resume: ResumeFile,
    screen: Screen,
    name: str,
    autocast: torch.dtype | None = None,
    notes: MutableMapping[str, Any] | None = None,
    after_epoch: Callable[[int], object] = lambda done: None,
    after_step: Callable[[int], object] = lambda done: None,
) -> None:
    """Trains the learners' heads in place; see `trainer.train`.

    Args:
        read: what the heads take; heads that train a whole network take the images.
        recipe: but for learning rates and weight decays, which are the learners'.
        seed: of order, views and dropout.
    """
    heads = [learner.head.to(device) for learner in learners]
    steps, steps_per_epoch = length(recipe, len(split))
    optimizer = torch.optim.SGD(
        [group for learner in learners for group in learner.parameter_groups()],
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )
    labels = _labels_by_index(split, device)
    # Batch-norm over vectors needs two of them.
    fewest = 2 if any(isinstance(module, _BatchNorm) for head in heads for module in head.modules()) else 1

    def load(epoch: int, first: int) -> Loader:
        order = torch.randperm(len(split), generator=seeded(seed, ORDER, epoch))
        return Loader(
            split.pixels,
            split.index[order.numpy()],
            batch_size=recipe.batch_size,
            transform=transform,
            key=(seed, VIEW, epoch),
            start=first,
            device=device,
            empty=True,
        )

    def loss(batch: Batch, step: int) -> Tensor | None:
        if len(batch.index) < fewest:
            return None
        inputs, targets = read(batch.views[0]), labels[batch.index.to(device)]
        losses = [F.cross_entropy(learner.head(inputs[learner.tap]), targets) for learner in learners]
        # The heads share no parameter, so the gradient of the sum is each one's own.
        return torch.stack([own.float() for own in losses]).sum()

    def learning_rate(step: int, group: Mapping[str, Any]) -> float:
        lr, decay = float(group["base_lr"]), float(group["weight_decay"])
        return lr * float(group["multiplier"]) * recipe.factor(step, steps, steps_per_epoch, lr, decay)

    train(
        heads,
        optimizer,
        epochs(load, steps_per_epoch),
        loss,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        clip=recipe.clip,
        autocast=autocast,
        seed=seed,
        resume=resume,
        notes=notes,
        after_step=after_step,
        after_epoch=after_epoch,
        screen=screen,
        name=name,
    )


@torch.no_grad()
def accuracy(
    learners: list[Learner],
    read: Read,
    split: Split,
    transform: Transform,
    *,
    device: str | torch.device,
    check: Callable[[int], object] = lambda images: None,
) -> list[tuple[float, float]]:
    """Top-1 and top-5 accuracy of each learner; softmax is averaged over the views of an image."""
    hits = torch.zeros(len(learners), 2, dtype=torch.float64)
    images = 0
    for learner in learners:
        learner.head.eval()
    labels = _labels_by_index(split, device)
    for batch in Loader(split.pixels, split.index, batch_size=256, transform=transform, device=device):
        scores = [torch.zeros((), device=device)] * len(learners)
        for view in batch.views:
            inputs = read(view)
            for number, learner in enumerate(learners):
                scores[number] = scores[number] + learner.head(inputs[learner.tap]).float().softmax(1)
        targets = labels[batch.index.to(device)]
        hits += torch.tensor([count_hits(own, targets) for own in scores])
        images += len(targets)
        check(len(targets))
    return [(top1 / images, top5 / images) for top1, top5 in hits.tolist()]


def _labels_by_index(split: Split, device: str | torch.device) -> Tensor:
    """(N,) int64 labels of all images of the source; those of other images mean nothing."""
    labels = torch.zeros(len(split.pixels), dtype=torch.int64)
    labels[torch.from_numpy(split.index)] = torch.from_numpy(split.labels)
    return labels.to(device)


def count_hits(scores: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many of (M, K) scores have their label first, and how many have it among the first five."""
    first = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return int(first[:, 0].sum()), int(first.any(1).sum())

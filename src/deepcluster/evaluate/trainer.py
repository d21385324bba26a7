"""The one SGD loop of all evaluation protocols; killed at any step, it goes on to the bit.

Linear and MLP probes, low-shot fine-tuning and the VOC networks all train with `train`. Every random draw comes from
(seed, step), never from a generator's history. The methods themselves are trained by `engine/loop.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster.data.cache import Pixels
from deepcluster.data.loader import Loader
from deepcluster.data.transforms import Transform
from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.log import Screen
from deepcluster.engine.signals import stop_signals
from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.linear.recipes import Recipe, length
from deepcluster.random import seed_of
from deepcluster.resume import ResumeFile
from deepcluster.types import Batch as ImageBatch

VIEW, STEP = 22, 23
"""Purposes of the keys (seed, VIEW, epoch) of the views of an epoch, and (seed, STEP, step) that the global generators
are seeded with before each step, for dropout."""
CHECK_EVERY = 32
"""Steps between two looks at the losses: each one waits for the GPU."""

Batch = TypeVar("Batch")


def train(
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Generator[Batch, None, None]],
    loss: Callable[[Batch, int], Tensor | None],
    *,
    steps: int,
    steps_per_epoch: int | None = None,
    learning_rate: Callable[[int, Mapping[str, Any]], float],
    clip: float = 0.0,
    autocast: torch.dtype | None = None,
    seed: int,
    resume: ResumeFile,
    notes: MutableMapping[str, Any] | None = None,
    after_epoch: Callable[[int], object] = lambda done: None,
    screen: Screen,
    name: str,
) -> Tensor:
    """Trains `modules` in place, from the state of `resume`'s running stage on where it has one.

    The state is saved after each epoch (where there are epochs), whenever `resume.due`, on Ctrl-C, and at the end.

    Args:
        modules: what is trained, on its device already; several are independent and share the batches. All of
            them are in training mode during steps and in evaluation mode at the end.
        optimizer: of all trained parameters; its groups may hold entries of the caller's, for `learning_rate`.
        batches: first step -> the batches of that step and all following ones, the same whenever it is called.
        loss: batch, step (from 0) -> loss; for several modules the sum of theirs. None = nothing to learn from in this
            batch, which then counts as a step without an update. What it draws from torch's global generators depends
            on (seed, step) alone.
        steps: optimizer steps in all.
        steps_per_epoch: None = no epochs.
        learning_rate: step, parameter group -> its rate.
        clip: largest norm of the gradient of each module; 0 = any.
        autocast: 16-bit type to compute the loss in; None = as the modules are.
        notes: values of the caller's, which are saved and restored with the state.
        after_epoch: called with the number of epochs done, before the save.
        screen: shows a bar, and one line an epoch.
        name: of what is trained, for these.

    Returns:
        (steps,) float32 loss of each step, of those before a restart too; NaN where there was none.

    Raises:
        DeepClusterError: the loss is infinite or not a number.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    notes = {} if notes is None else notes
    device = next(modules[0].parameters()).device
    done, losses = 0, torch.full((steps,), math.nan, device=device)
    if resume.state is not None:
        done, losses = resume.state["done"], resume.state["losses"].to(device)
        for module, saved in zip(modules, resume.state["modules"], strict=True):
            module.load_state_dict(saved)
        optimizer.load_state_dict(resume.state["optimizer"])
        notes.update(resume.state["notes"])

    def check_losses() -> None:
        wrong = losses.isinf().nonzero()
        if len(wrong):
            raise DeepClusterError(f"The loss of {name} is not finite at step {wrong[0].item() + 1}: use a lower --lr.")

    def end_step(must_save: bool) -> None:
        stopping = stopped()
        if must_save or stopping or resume.due:
            check_losses()
            state = {"modules": [module.state_dict() for module in modules], "optimizer": optimizer.state_dict()}
            resume.save({"done": done, "losses": losses.cpu(), "notes": dict(notes), **state})
        if stopping:
            screen.print(f"stopped and saved after step {done} of {steps}; the same command continues from there")
            raise Interrupted

    length = steps_per_epoch or steps
    with preserve_random_state(), stop_signals() as stopped, contextlib.closing(batches(done)) as stream:
        while done < steps:
            epoch = done // length
            first, last = epoch * length, min((epoch + 1) * length, steps)
            title = name if steps_per_epoch is None else f"{name}: epoch {epoch + 1}/{-(-steps // length)}"
            for module in modules:
                module.train()
            with screen.bar(title, last - first, "batches") as bar:
                bar.to(done - first)
                for step in range(done, last):
                    batch = next(stream)
                    torch.manual_seed(seed_of(seed, STEP, step))
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(step, group)
                    with torch.autocast(device.type, autocast, enabled=autocast is not None):
                        value = loss(batch, step)
                    if value is not None:
                        optimizer.zero_grad()
                        torch.autograd.backward(value)
                        if clip:
                            for module in modules:
                                nn.utils.clip_grad_norm_(module.parameters(), clip)
                        optimizer.step()
                        losses[step] = value.detach().float().nan_to_num(math.inf, math.inf, math.inf)
                    done = step + 1
                    bar()
                    if done % CHECK_EVERY == 0:
                        check_losses()
                    if done < last:
                        end_step(must_save=False)
            if steps_per_epoch is not None:
                check_losses()
                screen.print(f"{title}  loss {losses[first:last].nanmean():.4f}")
                after_epoch(epoch + 1)
            end_step(must_save=True)
    for module in modules:
        module.eval()
    return losses.cpu()


def train_on_views(
    modules: Sequence[nn.Module],
    groups: list[dict[str, Any]],
    pixels: Pixels,
    order: Callable[[int], np.ndarray],
    recipe: Recipe,
    transform: Transform,
    loss: Callable[[ImageBatch], Tensor],
    *,
    seed: int,
    device: str | torch.device,
    fewest: int = 1,
    by_epochs: bool = True,
    **more: Any,
) -> Tensor:
    """`train` on views of images as a recipe has it, by SGD whose parameter groups have `base_lr`, `weight_decay` and a
    `multiplier` of the learning rate. `order` gives the (n,) images of an epoch as they are shown, `fewest` is how many
    a batch needs to be learned from; `by_epochs` it is saved, and its loss said, after each."""
    steps, steps_per_epoch = length(recipe, len(order(0)))

    def batches(step: int) -> Generator[ImageBatch, None, None]:
        for epoch in itertools.count(step // steps_per_epoch):
            yield from Loader(
                pixels,
                order(epoch),
                batch_size=recipe.batch_size,
                transform=transform,
                key=(seed, VIEW, epoch),
                start=step - epoch * steps_per_epoch,
                device=device,
                empty=True,
            )
            step = (epoch + 1) * steps_per_epoch

    def learning_rate(step: int, group: Mapping[str, Any]) -> float:
        lr, decay = float(group["base_lr"]), float(group["weight_decay"])
        return lr * float(group["multiplier"]) * recipe.factor(step, steps, steps_per_epoch, lr, decay)

    return train(
        modules,
        torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov),
        batches,
        lambda batch, step: loss(batch) if len(batch.index) >= fewest else None,
        steps=steps,
        steps_per_epoch=steps_per_epoch if by_epochs else None,
        learning_rate=learning_rate,
        clip=recipe.clip,
        seed=seed,
        **more,
    )

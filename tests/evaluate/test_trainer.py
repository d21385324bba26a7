"""The SGD loop of the evaluation protocols."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.errors import DeepClusterError, Interrupted
from deepcluster.evaluate.trainer import train
from deepcluster.random import seeded
from deepcluster.resume import ResumeFile

from .steps import Steps, interrupting, stopping

STEPS, PER_EPOCH = 11, 4


def networks() -> list[Any]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in range(2)]


def batches(step: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    while True:
        generator = seeded(5, step)
        step += 1
        yield torch.randn(10, 6, generator=generator), torch.randint(3, (10,), generator=generator)


def fit(
    file: Path,
    models: list[nn.Module],
    screen: Steps | None = None,
    end: Callable[[], object] = lambda: None,
    **more: object,
) -> Tensor:
    groups = [{"params": model.parameters(), "base": 0.1 / (1 + k)} for k, model in enumerate(models)]
    resume = ResumeFile(file, "same", save_seconds=more.pop("save_seconds", 300.0))  # type: ignore[arg-type]

    def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor | None:
        return None if step == 2 else sum(F.cross_entropy(model(batch[0]), batch[1]) for model in models)  # type: ignore[return-value]

    def work() -> Tensor:
        losses = train(
            models,
            torch.optim.SGD(groups, lr=0.0, momentum=0.9),
            batches,
            loss,
            learning_rate=lambda step, group: group["base"] * 0.9**step,
            seed=3,
            resume=resume,
            screen=screen or Steps(),
            name="test",
            **{"steps": STEPS, "steps_per_epoch": PER_EPOCH} | more,  # type: ignore[arg-type]
        )
        end()
        return losses

    return resume.run("stage", work)


def weights(models: list[nn.Module]) -> list[Tensor]:
    return [value for model in models for value in model.state_dict().values()]


class Kill(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("save_seconds", [0.0, 300.0])  # after each step, or after each epoch
@pytest.mark.parametrize("at", [1, 4, 6, 11])
def test_killed_and_continued_training_gives_the_same_bits(tmp_path: Path, at: int, save_seconds: float) -> None:
    undisturbed = networks()
    losses = fit(tmp_path / "a.state", undisturbed)

    def kill() -> None:
        raise Kill

    with pytest.raises(Kill):
        fit(tmp_path / "b.state", networks(), stopping(at, Kill()), kill, save_seconds=save_seconds)
    torch.manual_seed(99)  # the history of the global generator does not matter
    continued = networks()
    screen = Steps()
    again = fit(tmp_path / "b.state", continued, screen)
    assert screen.count == STEPS - (at if at == STEPS or save_seconds == 0 else at // PER_EPOCH * PER_EPOCH)
    assert torch.equal(again.nan_to_num(), losses.nan_to_num()) and losses.isnan().nonzero().tolist() == [[2]]
    for one, other in zip(weights(undisturbed), weights(continued), strict=True):
        assert torch.equal(one, other)


def test_interrupt_saves_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    undisturbed = networks()
    fit(tmp_path / "a.state", undisturbed)
    with pytest.raises(Interrupted):
        fit(tmp_path / "b.state", networks(), interrupting(6))
    assert torch.load(tmp_path / "b.state")["state"]["done"] == 6
    continued = networks()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(tmp_path / "b.state", continued)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(weights(undisturbed), weights(continued), strict=True):
        assert torch.equal(one, other)


def test_modules_share_batches_and_are_trained_as_if_alone(tmp_path: Path) -> None:
    both = networks()
    for model in both:
        model[2].p = 0.0  # dropout would draw other numbers
    alone = [copy.deepcopy(both[0])]
    fit(tmp_path / "a.state", both, clip=0.5)
    fit(tmp_path / "b.state", alone, clip=0.5)
    for one, other in zip(weights(both[:1]), weights(alone), strict=True):
        torch.testing.assert_close(one, other)


def test_notes_and_epochs_are_told_before_the_save(tmp_path: Path) -> None:
    notes: dict[str, object] = {}
    seen: list[tuple[int, bool]] = []
    models = networks()

    def note(done: int) -> None:
        seen.append((done, models[0].training))
        models[0].eval()  # an evaluation does that
        notes["epochs"] = done
        if done == 2:
            raise Kill

    with pytest.raises(Kill):
        fit(tmp_path / "a.state", models, notes=notes, after_epoch=note)
    notes, seen = {}, []
    with pytest.raises(Kill):
        fit(tmp_path / "a.state", models, notes=notes, after_epoch=note)  # the second epoch was not saved
    assert seen == [(2, True)]
    restored: dict[str, object] = {}
    fit(tmp_path / "a.state", models, notes=restored)
    assert restored == {"epochs": 1} and not models[0].training


def test_a_loss_that_is_not_finite_is_refused_and_not_saved(tmp_path: Path) -> None:
    models = networks()

    def poison(done: int) -> None:
        if done == 5:
            models[1][0].weight.data[0, 0] = float("inf")

    with pytest.raises(DeepClusterError, match=r"loss of test is not finite at step 6: use a lower --lr"):
        fit(tmp_path / "a.state", models, Steps(poison), steps=20)
    assert torch.load(tmp_path / "a.state")["state"]["done"] == 4


def test_without_epochs_the_steps_are_one_row(tmp_path: Path) -> None:
    models = networks()
    with_epochs = networks()
    losses = fit(tmp_path / "a.state", models, steps_per_epoch=None)
    assert torch.equal(losses.nan_to_num(), fit(tmp_path / "b.state", with_epochs).nan_to_num())

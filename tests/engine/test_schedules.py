"""Learning rates against torch's own schedulers and the formulas they come from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deepcluster.config import OptimizerParams
from deepcluster.engine.optim import factor, make_optimizer, set_rate, step_all


def test_cosine_and_step_are_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedulers: list[tuple[Any, Any]] = [
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40)),
        ("step", lambda o: torch.optim.lr_scheduler.StepLR(o, 20, 0.1)),
    ]
    for name, scheduler in schedulers:
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        theirs = scheduler(optimizer)
        for step in range(40):
            o = OptimizerParams(schedule=name, step_epochs=2.0)
            ours = factor(o, step, steps=40, steps_per_epoch=10)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), (name, step)
            optimizer.step()
            theirs.step()


def test_bottou_constant_and_warmup() -> None:
    def at(step: int, schedule: Any, **more: float) -> float:
        o = OptimizerParams(schedule=schedule, lr=0.05, weight_decay=0.5, **more)  # type: ignore[arg-type]
        return factor(o, step, steps=100, steps_per_epoch=10)

    assert at(40, "bottou") == pytest.approx(1 / math.sqrt(1 + 0.05 * 0.5 * 40))
    assert {at(step, "constant") for step in range(100)} == {1.0}
    rise = [at(step, "constant", warmup=0.5) for step in range(6)]
    assert rise == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert at(99, "cosine", warmup=1.0) < 0.01


def test_rates_multiply_each_groups_own() -> None:
    one, two = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    made = [make_optimizer([p], "sgd", lr=lr, momentum=0.0, weight_decay=0.0) for p, lr in ((one, 1.0), (two, 0.1))]
    for _ in range(2):  # setting twice does not compound
        set_rate(made, 0.5)
    assert [optimizer.param_groups[0]["lr"] for optimizer in made] == [0.5, 0.05]


def test_clipping_is_over_all_parameters_together() -> None:
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    made = [make_optimizer([p], "sgd", lr=1.0, momentum=0.0, weight_decay=0.0) for p in (one, two)]
    one.grad, two.grad = torch.tensor([3.0]), torch.tensor([4.0])
    step_all(made, [one, two], 1.0, None)
    torch.testing.assert_close(torch.stack([one, two]).flatten(), torch.tensor([-0.6, -0.8]))
    assert one.grad is None and two.grad is None


def test_a_loss_scaler_is_undone_before_clipping_and_skips_overflow() -> None:
    for gradient, moved in (([3.0, 4.0], [-0.6, -0.8]), ([float("inf"), 4.0], None)):
        one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
        made = [make_optimizer([p], "sgd", lr=1.0, momentum=0.0, weight_decay=0.0) for p in (one, two)]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.zeros(1))
        one.grad, two.grad = torch.tensor([gradient[0] * 8]), torch.tensor([gradient[1] * 8])
        step_all(made, [one, two], 1.0 if moved else 0.0, scaler)
        if moved:
            torch.testing.assert_close(torch.stack([one, two]).flatten(), torch.tensor(moved))
            assert scaler.get_scale() == 8.0
        else:
            assert one.item() == 0.0 and scaler.get_scale() < 8.0


def test_lars_is_its_formula() -> None:
    """Against the steps written out (arXiv 1708.03888, algorithm 1), and SGD where nothing is scaled."""
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))
    lr, momentum, decay = 0.7, 0.9, 0.01
    optimizer = make_optimizer([weight, bias], "lars", lr=lr, momentum=momentum, weight_decay=decay)
    w, b = weight.detach().clone().double(), bias.detach().clone().double()
    v, u = torch.zeros_like(w), torch.zeros_like(b)
    for _ in range(5):
        weight.grad, bias.grad = torch.randn(4, 3), torch.randn(4)
        gw, gb = weight.grad.double(), bias.grad.double()
        v = momentum * v + 0.001 * w.norm() / (gw.norm() + decay * w.norm()) * (gw + decay * w)
        u = momentum * u + gb
        w, b = w - lr * v, b - lr * u
        optimizer.step()
        torch.testing.assert_close(weight.detach().double(), w, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(bias.detach().double(), b, atol=1e-5, rtol=1e-5)


def test_lars_takes_weights_and_gradients_of_zero() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = make_optimizer(weights, "lars", lr=1.0, momentum=0.9, weight_decay=0.0)
    weights[0].grad, weights[1].grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(weights[0], -torch.ones(2, 2)) and torch.equal(weights[1], torch.ones(2, 2))

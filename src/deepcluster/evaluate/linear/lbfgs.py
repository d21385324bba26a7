"""L-BFGS on several convex problems in step, so that one pass over the data serves them all.

This file does not know what is minimized. Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5, with
backtracking; the first approximation of the inverse Hessian is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MEMORY = 10
ARMIJO = 1e-4
NOISE = 1e-7
"""Of the objective, in float32: a step that is worse by less is no worse."""
SMALLEST_STEP = 1e-6

Objective = Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]
"""Points (p, ...) of the problems with these numbers -> values (p,) float64 on the CPU, gradients (p, ...)."""
Precondition = Callable[[Tensor, int], Tensor]
"""A gradient of the problem with this number -> about the inverse Hessian times it; linear and positive."""


@dataclass
class _Problem:
    """Where one problem stands."""

    point: Tensor
    value: float
    gradient: Tensor
    direction: Tensor = field(init=False)
    slope: float = 0.0
    step: float = 1.0
    moves: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)  # s, y, 1 / (s · y)
    stalled: int = 0


def minimize(
    objective: Objective,
    start: Tensor,
    precondition: Precondition,
    *,
    tolerance: float = 1e-4,
    evaluations: int = 500,
) -> tuple[Tensor, Tensor, int]:
    """Minimizes P problems of one shape.

    Args:
        objective: values and gradients.
        start: (P, ...) points to begin at.
        precondition: see `Precondition`.
        tolerance: a problem is done when no entry of its gradient is larger.
        evaluations: calls of the objective, at most.

    Returns:
        (P, ...) points, (P,) float64 values there, and how often the objective was called.
    """
    values, gradients = objective(start, range(len(start)))
    calls = 1
    problems = [
        _Problem(point, float(value), gradient) for point, value, gradient in zip(start, values, gradients, strict=True)
    ]
    open_ = [number for number, problem in enumerate(problems) if not _done(problem, tolerance)]
    for number in open_:
        _aim(problems[number], precondition, number)
    while open_ and calls < evaluations:
        trial = torch.stack([problems[n].point + problems[n].step * problems[n].direction for n in open_])
        values, gradients = objective(trial, open_)
        calls += 1
        still = []
        for row, number in enumerate(open_):
            problem = problems[number]
            if _accepted(problem, trial[row], float(values[row]), gradients[row]):
                if not _done(problem, tolerance):
                    _aim(problem, precondition, number)
                    still.append(number)
            elif problem.step > SMALLEST_STEP:
                still.append(number)
        open_ = still
    return torch.stack([p.point for p in problems]), torch.tensor([p.value for p in problems]).double(), calls


def _done(problem: _Problem, tolerance: float) -> bool:
    # Three steps in a row within the noise of float32: no better value can be told.
    return problem.gradient.abs().max().item() <= tolerance or problem.stalled >= 3


def _accepted(problem: _Problem, point: Tensor, value: float, gradient: Tensor) -> bool:
    """Moves there if the value has fallen enough; else shortens the step by the parabola through what is known."""
    expected = problem.slope * problem.step
    if not value <= problem.value + ARMIJO * expected + NOISE * abs(problem.value):
        above = value - problem.value - expected
        parabola = -0.5 * expected / above if above > 0 and above < float("inf") else 0.1
        problem.step *= min(0.5, max(0.1, parabola))
        return False
    move, turn = point - problem.point, gradient - problem.gradient
    product = _dot(move, turn)
    if product > 1e-10 * _dot(turn, turn) ** 0.5 * _dot(move, move) ** 0.5:
        problem.moves = [*problem.moves[-MEMORY + 1 :], (move, turn, 1 / product)]
    problem.stalled = problem.stalled + 1 if problem.value - value <= NOISE * abs(problem.value) else 0
    problem.point, problem.value, problem.gradient = point, value, gradient
    return True


def _aim(problem: _Problem, precondition: Precondition, number: int) -> None:
    """The two loops: minus the approximate inverse Hessian times the gradient."""
    rest, weights = problem.gradient.clone(), []
    for move, turn, rho in reversed(problem.moves):
        weights.append(rho * _dot(move, rest))
        rest.sub_(turn, alpha=weights[-1])
    rest = precondition(rest, number)
    if problem.moves:
        _, turn, rho = problem.moves[-1]
        rest.mul_(1 / (rho * _dot(turn, precondition(turn, number))))
    for (move, turn, rho), weight in zip(problem.moves, reversed(weights), strict=True):
        rest.add_(move, alpha=weight - rho * _dot(turn, rest))
    problem.direction = -rest
    problem.slope, problem.step = -_dot(problem.gradient, rest), 1.0


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.flatten(), b.flatten()).item()

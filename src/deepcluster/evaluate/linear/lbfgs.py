"""L-BFGS on several convex problems in step, so that one pass over the data serves them all.

Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5, with backtracking; the first approximation of the
inverse Hessian is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MEMORY = 10
ARMIJO = 1e-4
NOISE = 1e-7
"""Of the objective, in float32: a step that is worse by less is not worse."""
SMALLEST_STEP = 1e-6

Objective = Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]
"""Points (p, ...) of the problems with these numbers -> values (p,) float64 on the CPU, gradients (p, ...)."""
Precondition = Callable[[Tensor], Tensor]
"""A gradient -> roughly the inverse Hessian times it; linear and positive."""


def minimize(
    objective: Objective,
    start: Tensor,
    precondition: Precondition,
    *,
    tolerance: float = 1e-4,
    evaluations: int = 500,
) -> Tensor:
    """Minimizes P problems of one shape.

    Args:
        start: (P, ...) points to start from.
        tolerance: a problem is solved when no entry of its gradient is larger.
        evaluations: calls of the objective, at most.

    Returns:
        (P, ...) points.
    """
    values, gradients = objective(start, range(len(start)))
    problems = [
        _Problem(point, float(value), gradient) for point, value, gradient in zip(start, values, gradients, strict=True)
    ]
    active = [number for number, problem in enumerate(problems) if not problem.solved(tolerance)]
    for number in active:
        problems[number].set_direction(precondition)
    for _ in range(evaluations - 1):
        if not active:
            break
        trial = torch.stack([problems[n].point + problems[n].step * problems[n].direction for n in active])
        values, gradients = objective(trial, active)
        still = []
        for row, number in enumerate(active):
            problem = problems[number]
            if problem.accepts(trial[row], float(values[row]), gradients[row]):
                if not problem.solved(tolerance):
                    problem.set_direction(precondition)
                    still.append(number)
            elif problem.step > SMALLEST_STEP:
                still.append(number)
        active = still
    return torch.stack([problem.point for problem in problems])


@dataclass
class _Problem:
    """The state of one problem."""

    point: Tensor
    value: float
    gradient: Tensor
    direction: Tensor = field(init=False)
    slope: float = 0.0
    step: float = 1.0
    history: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)  # s, y, 1 / (s · y)
    stalled: int = 0

    def solved(self, tolerance: float) -> bool:
        # After three steps in a row within the noise of float32, no better value can be recognized.
        return self.gradient.abs().max().item() <= tolerance or self.stalled >= 3

    def accepts(self, point: Tensor, value: float, gradient: Tensor) -> bool:
        """Moves to the point if the value has fallen enough; else shortens the step by the parabola through what is
        known."""
        expected = self.slope * self.step
        if not value <= self.value + ARMIJO * expected + NOISE * abs(self.value):
            above = value - self.value - expected
            parabola = -0.5 * expected / above if above > 0 and above < float("inf") else 0.1
            self.step *= min(0.5, max(0.1, parabola))
            return False
        s, y = point - self.point, gradient - self.gradient
        product = _dot(s, y)
        if product > 1e-10 * _dot(y, y) ** 0.5 * _dot(s, s) ** 0.5:
            self.history = [*self.history[-MEMORY + 1 :], (s, y, 1 / product)]
        self.stalled = self.stalled + 1 if self.value - value <= NOISE * abs(self.value) else 0
        self.point, self.value, self.gradient = point, value, gradient
        return True

    def set_direction(self, precondition: Precondition) -> None:
        """The two loops: minus the approximate inverse Hessian times the gradient."""
        rest, weights = self.gradient.clone(), []
        for s, y, rho in reversed(self.history):
            weights.append(rho * _dot(s, rest))
            rest.sub_(y, alpha=weights[-1])
        rest = precondition(rest)
        if self.history:
            _, y, rho = self.history[-1]
            rest.mul_(1 / (rho * _dot(y, precondition(y))))
        for (s, y, rho), weight in zip(self.history, reversed(weights), strict=True):
            rest.add_(s, alpha=weight - rho * _dot(y, rest))
        self.direction = -rest
        self.slope, self.step = -_dot(self.gradient, rest), 1.0


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.flatten(), b.flatten()).item()

"""Runge-Kutta methods on the probability-flow ODE: Euler, Heun, RK4."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from scoresde.core.doors import checked
from scoresde.solvers.base import Solver

if TYPE_CHECKING:
    from scoresde.models.answers import Answers
    from scoresde.sdes.levels import Level
    from scoresde.solvers.base import Draw


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method on the probability-flow ODE: x_s = x + (s - t) velocity(x, t). Order 1, one call a step."""

    accuracy: ClassVar[float] = 1.0

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        return x + (s - t) * model.velocity(x, t), state


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method on the probability-flow ODE (2206.00364, algorithm 1 in any SDE's time). Order 2, two calls a step."""

    accuracy: ClassVar[float] = 2.0

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        h = s - t
        v_t = model.velocity(x, t)
        v_s = model.velocity(x + h * v_t, s)
        return x + (h / 2) * (v_t + v_s), state


@checked
@dataclass(frozen=True)
class RK4(Solver):
    """The classical Runge-Kutta method on the probability-flow ODE. Order 4, four calls a step."""

    accuracy: ClassVar[float] = 4.0

    def init(self, model: Answers, x: Tensor, times: list[Level]) -> dict[float, Level]:
        middles = model.sde.levels([(t + s) / 2 for t, s in pairwise(times)])
        return dict(zip(times, middles, strict=False))  # the middle of each step, by its start

    def step(self, model: Answers, x: Tensor, t: Level, s: Level, state: Any, noise: Draw) -> tuple[Tensor, Any]:
        h, m = s - t, state[t]
        v1 = model.velocity(x, t)
        v2 = model.velocity(x + (h / 2) * v1, m)
        v3 = model.velocity(x + (h / 2) * v2, m)
        v4 = model.velocity(x + h * v3, s)
        return x + (h / 6) * (v1 + 2 * v2 + 2 * v3 + v4), state
